"""What happens to an image between its file and the batch when a classifier is trained or evaluated.

Four pipelines: `imagenet_training` (random crops of all scales), `three_augment` (the same with other colours),
`cifar_training` (small images, shifted) and `evaluation`. Pixels stay uint8; a batch turns them into floats on the
device. Every draw comes from the generator that is passed in: a sample depends on its seed and on nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from regard.data.samples import ClassSample
from regard.data.transforms.randaugment import RandAugment
from regard.errors import ConfigError
from regard.structures.image_batch import IMAGENET_MEAN, IMAGENET_STD

LONGEST = 16  # short sides of an image that are looked at when it is judged

ImageStep = Callable[[Tensor, torch.Generator], Tensor]


def imagenet_training(
    size: int = 224, *, magnitude: float = 9.0, erasing: float = 0.25, color_jitter: float = 0.0
) -> ClassPipeline:
    """DeiT's training augmentation: random resized crop, flip, RandAugment, random erasing (Touvron 2021, table 9).

    Args:
        size: height and width in pixels of what the model sees.
        magnitude: of RandAugment, 0..10; 0 leaves it out. erasing: probability of random erasing.
        color_jitter: strength of colour jitter. The authors leave it out where there is RandAugment; 0.4 without.
    """
    return _pipeline((RandomResizedCrop(size), RandomFlip()), magnitude, erasing, color_jitter)


def three_augment(
    size: int = 224, *, magnitude: float = 0.0, erasing: float = 0.0, color_jitter: float = 0.3
) -> ClassPipeline:
    """DeiT III's training augmentation: random resized crop, flip, grey or solarised or blurred, colour jitter.

    Touvron et al. 2022, section 3.3, and the authors' augment.py. The rest is off; it is as for `imagenet_training`.
    """
    return _pipeline((RandomResizedCrop(size), RandomFlip(), ThreeAugment()), magnitude, erasing, color_jitter)


def cifar_training(
    size: int = 32, *, magnitude: float = 0.0, erasing: float = 0.0, color_jitter: float = 0.0
) -> ClassPipeline:
    """The usual augmentation of CIFAR: a crop after 4 black pixels of padding on each side, and a flip.

    He et al. (2016, section 4.2). The rest is off; it is as for `imagenet_training`, and DeiT's authors use it with
    this crop for images of 32 pixels. Images of another size than `size` are resized first.
    """
    return _pipeline((Squeeze(size), PaddedCrop(size, 4), RandomFlip()), magnitude, erasing, color_jitter)


def evaluation(size: int = 224, crop_pct: float | None = 0.875) -> Evaluation:
    """What a model sees of an image when it is judged: the middle `size` x `size` pixels of the resized image.

    Args:
        crop_pct: `size` over the short side of the resized image. None for small images: the whole image,
            resized to the square.
    """
    return Evaluation(size, crop_pct)


def _pipeline(steps: tuple[ImageStep, ...], magnitude: float, erasing: float, color_jitter: float) -> ClassPipeline:
    steps += (ColorJitter(color_jitter),) if color_jitter else ()
    steps += (RandAugment(magnitude),) if magnitude else ()
    steps += (RandomErasing(erasing),) if erasing else ()
    return ClassPipeline(steps)


@dataclass(frozen=True)
class ClassPipeline:
    """Steps on the image of a sample, one after the other."""

    steps: tuple[ImageStep, ...]

    def __call__(self, sample: ClassSample, generator: torch.Generator) -> ClassSample:
        image = sample.image
        for step in self.steps:
            image = step(image, generator)
        return replace(sample, image=image)


@dataclass(frozen=True)
class Evaluation:
    """Resize (bicubic, as the authors) and take the middle; see `evaluation`. Draws nothing.

    The short side becomes floor(size / crop_pct): 256 for 224 at 0.875, 438 for 384.
    """

    size: int
    crop_pct: float | None = 0.875

    def __post_init__(self) -> None:
        _check("size", self.size, 1, math.inf)
        if self.crop_pct is not None:
            _check("crop_pct", self.crop_pct, 0.05, 1)

    def __call__(self, sample: ClassSample, generator: torch.Generator | None = None) -> ClassSample:
        image = sample.image
        if self.crop_pct is None:
            return replace(sample, image=resize_image(image, (self.size, self.size)))
        cut, resized = self._sizes(image.shape[-2], image.shape[-1])
        image = resize_image(F.center_crop(image, list(cut)), resized)
        return replace(sample, image=F.center_crop(image, [self.size, self.size]))

    def extent(self, height: int, width: int) -> tuple[float, float, float, float]:
        """x0, y0, x1, y1: what is seen of an image, in its pixels."""
        if self.crop_pct is None:
            return 0.0, 0.0, float(width), float(height)
        cut, resized = self._sizes(height, width)
        (y0, y1), (x0, x1) = (
            _middle(whole, part, new, self.size) for whole, part, new in zip((height, width), cut, resized, strict=True)
        )
        return x0, y0, x1, y1

    def _sizes(self, height: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """What is left of a very long image, or a file of a few bytes would fill the memory; and its new size."""
        assert self.crop_pct is not None
        most = LONGEST * min(height, width)
        height, width = min(height, most), min(width, most)
        short_side = int(self.size / self.crop_pct)
        if height < width:
            return (height, width), (short_side, int(short_side * width / height))
        return (height, width), (int(short_side * height / width), short_side)


def _middle(whole: int, part: int, resized: int, size: int) -> tuple[float, float]:
    """First and last of the middle `size` pixels of `resized`, in pixels of `whole`, of which the middle `part` was
    taken; rounded as torchvision's center_crop."""
    scale = part / resized
    first = round((whole - part) / 2) + round((resized - size) / 2) * scale
    return first, first + size * scale


@dataclass(frozen=True)
class Squeeze:
    """Resize to a square, whatever the shape."""

    size: int

    def __post_init__(self) -> None:
        _check("size", self.size, 1, math.inf)

    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        return resize_image(image, (self.size, self.size))


@dataclass(frozen=True)
class RandomResizedCrop:
    """A rectangle of 8 to 100 % of the area and 3:4 to 4:3 in shape, anywhere, resized to a square (bicubic).

    Szegedy et al. (2015, section 6). Where ten draws do not fit into the image, the largest rectangle of such a
    shape in its middle, as in torchvision.
    """

    size: int
    smallest_area: float = 0.08

    def __post_init__(self) -> None:
        _check("size", self.size, 1, math.inf)
        _check("smallest_area", self.smallest_area, 0, 1)

    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        top, left, height, width = self.draw(image.shape[-2], image.shape[-1], generator)
        # A copy: resizing a view with gaps between its rows takes longer and loses the channel order.
        return resize_image(image[:, top : top + height, left : left + width].clone(), (self.size, self.size))

    def draw(self, height: int, width: int, generator: torch.Generator) -> tuple[int, int, int, int]:
        """(top, left, height, width) in pixels of the part of an image that is taken."""
        for _ in range(10):
            area = height * width * _uniform(self.smallest_area, 1, generator)
            ratio = math.exp(_uniform(math.log(3 / 4), math.log(4 / 3), generator))
            new_width, new_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < new_width <= width and 0 < new_height <= height:
                top = _integer(height - new_height, generator)
                return top, _integer(width - new_width, generator), new_height, new_width
        new_width = min(width, max(1, round(height * 4 / 3)))
        new_height = min(height, max(1, round(width * 4 / 3)))
        return (height - new_height) // 2, (width - new_width) // 2, new_height, new_width


@dataclass(frozen=True)
class PaddedCrop:
    """Put a black border of `padding` pixels around a square image and cut out a square of `size` anywhere."""

    size: int
    padding: int

    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        top, left = (_integer(2 * self.padding, generator) for _ in range(2))
        padded = F.pad(image, [self.padding] * 4)
        return padded[:, top : top + self.size, left : left + self.size]


@dataclass(frozen=True)
class RandomFlip:
    """Mirror left and right, half of the time."""

    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        return image.flip(-1) if _uniform(0, 1, generator) < 0.5 else image


@dataclass(frozen=True)
class ThreeAugment:
    """One of three, each as often: no colours, inverted above half of the brightness, or blurred (0.1 to 2 pixels)."""

    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        chosen = _integer(2, generator)
        if chosen == 0:
            return F.rgb_to_grayscale(image, num_output_channels=3)
        if chosen == 1:
            return F.solarize(image, 128)
        sigma = _uniform(0.1, 2.0, generator)
        side = 2 * math.ceil(4 * sigma) + 1  # the rest of the bell is below a level
        side = min(side, 2 * ((min(image.shape[-2:]) - 1) // 2) + 1)  # reflection at the border reaches no farther
        return F.gaussian_blur(image, [side, side], [sigma, sigma])


@dataclass(frozen=True)
class ColorJitter:
    """Multiply brightness, contrast and saturation, in random order, each by a factor within `strength` of 1."""

    strength: float

    def __post_init__(self) -> None:
        _check("color_jitter", self.strength, 0, 1)

    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        adjust = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation)
        for chosen in torch.randperm(3, generator=generator).tolist():
            image = adjust[chosen](image, _uniform(1 - self.strength, 1 + self.strength, generator))
        return image


@dataclass(frozen=True)
class RandomErasing:
    """Replace a rectangle by noise (Zhong et al., 2020), pixel by pixel, as timm's mode `pixel`.

    The rectangle has 2 to 33 % of the area and a shape of 3:10 to 10:3. The authors draw the noise from N(0, 1) after
    they normalise; here it is that in levels of 0..255, and so cut off beyond about two standard deviations.
    """

    probability: float

    def __post_init__(self) -> None:
        _check("erasing", self.probability, 0, 1)

    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        if _uniform(0, 1, generator) >= self.probability:
            return image
        height, width = image.shape[-2:]
        for _ in range(10):
            area = height * width * _uniform(0.02, 1 / 3, generator)
            ratio = math.exp(_uniform(math.log(0.3), math.log(1 / 0.3), generator))
            h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if h < height and w < width:
                top, left = _integer(height - h, generator), _integer(width - w, generator)
                image = image.clone()
                image[:, top : top + h, left : left + w] = _noise(h, w, generator)
                return image
        return image


def resize_image(image: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 image (3, H, W) at `size` (height, width): bicubic with antialias, as Pillow does it."""
    if image.shape[-2:] == size:
        return image
    return F.resize(image, list(size), interpolation=InterpolationMode.BICUBIC, antialias=True)


def _noise(height: int, width: int, generator: torch.Generator) -> Tensor:
    """(3, height, width) uint8 that is N(0, 1) once normalised."""
    noise = torch.randn(3, height, width, generator=generator)
    mean, std = (torch.tensor(values)[:, None, None] * 255 for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (mean + std * noise).round().clamp(0, 255).to(torch.uint8)


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * torch.rand((), generator=generator).item()


def _integer(highest: int, generator: torch.Generator) -> int:
    """An integer from 0 to `highest`, both included."""
    return int(torch.randint(highest + 1, (), generator=generator))


def _check(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # also catches NaN
        limits = f"{low} or more" if high == math.inf else f"{low} to {high}"
        raise ConfigError(f"{name} is {value}, expected {limits}", code="C03")
