"""Transforms of a classification sample, before it enters a batch.

Four pipelines: `imagenet_training` (random crops of all scales), `three_augment` (the same crops, other colours),
`cifar_training` (shifted small images) and `Evaluation`. Pixels stay uint8; the batch is normalised on the device. All
random numbers come from the generator that is passed in, so a sample depends on its seed alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from regard.data.samples import ClassSample
from regard.data.transforms.image import (
    ColorJitter,
    ImagePipeline,
    ImageStep,
    RandomFlip,
    check_range,
    integer,
    resize_image,
    uniform,
)
from regard.data.transforms.randaugment import RandAugment
from regard.structures.categories import ModelCard
from regard.structures.image_batch import IMAGENET_MEAN, IMAGENET_STD

MAX_ASPECT = 16  # evaluation crops longer images: one of a few bytes could otherwise fill the memory when resized
BICUBIC = InterpolationMode.BICUBIC


def imagenet_training(
    size: int = 224, *, magnitude: float = 9.0, erasing: float = 0.25, color_jitter: float = 0.0
) -> ImagePipeline:
    """Return DeiT's training augmentation: random resized crop, flip, RandAugment, random erasing.

    Touvron et al. 2021, table 9.

    Args:
        size: height and width in pixels of the model's input.
        magnitude: of RandAugment, 0..10; 0 turns it off.
        erasing: probability of random erasing, 0..1.
        color_jitter: strength of colour jitter, 0..1. The authors use none with RandAugment, and 0.4 without it.

    Raises:
        ConfigError: a value out of range (C03).
    """
    return _pipeline((RandomResizedCrop(size), RandomFlip()), magnitude, erasing, color_jitter)


def three_augment(
    size: int = 224, *, magnitude: float = 0.0, erasing: float = 0.0, color_jitter: float = 0.3
) -> ImagePipeline:
    """Return DeiT III's training augmentation: random resized crop, flip, grey or solarise or blur, colour jitter.

    Touvron et al. 2022, section 3.3, and the authors' augment.py. Arguments as in `imagenet_training`.
    """
    return _pipeline((RandomResizedCrop(size), RandomFlip(), ThreeAugment()), magnitude, erasing, color_jitter)


def cifar_training(
    size: int = 32, *, magnitude: float = 0.0, erasing: float = 0.0, color_jitter: float = 0.0
) -> ImagePipeline:
    """Return the usual augmentation of CIFAR: a crop after 4 black pixels of padding on each side, and a flip.

    He et al. 2016, section 4.2. Arguments as in `imagenet_training`; DeiT's authors combine them with this crop for
    images of 32 pixels. Images of another size than `size` are resized first.
    """
    return _pipeline((SquareResize(size), PaddedCrop(size, 4), RandomFlip()), magnitude, erasing, color_jitter)


def _pipeline(steps: tuple[ImageStep, ...], magnitude: float, erasing: float, color_jitter: float) -> ImagePipeline:
    steps += (ColorJitter(color_jitter),) if color_jitter else ()
    steps += (RandAugment(magnitude),) if magnitude else ()
    steps += (RandomErasing(erasing),) if erasing else ()
    return ImagePipeline(steps)


@dataclass(frozen=True)
class Evaluation:
    """Evaluation transform: resize and crop the middle `size` x `size` pixels. Uses no randomness.

    The short side becomes floor(size / crop_pct): 256 for 224 at 0.875, 438 for 384.

    Args:
        size: height and width in pixels of the model's input.
        crop_pct: `size` divided by the short side of the resized image, 0.05..1. None resizes the whole image to the
            square, for small images.
        squash: resize the whole image to a square of side floor(size / crop_pct), not its short side.
        interpolation: of the resize.
        crop_rounding: as in `ModelCard`.

    Raises:
        ConfigError: a value out of range (C03).
    """

    size: int = 224
    crop_pct: float | None = 0.875
    squash: bool = False
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    crop_rounding: Literal["nearest", "down"] = "nearest"

    @classmethod
    def of(cls, card: ModelCard) -> Evaluation:
        """Return the transform that a classifier's card describes."""
        return cls(card.short_side, card.crop_pct, card.squash, card.interpolation, card.crop_rounding)

    def __post_init__(self) -> None:
        check_range("size", self.size, 1)
        if self.crop_pct is not None:
            check_range("crop_pct", self.crop_pct, 0.05, 1)

    def __call__(self, sample: ClassSample, generator: torch.Generator | None = None) -> ClassSample:
        image = sample.image
        if self.crop_pct is None:
            return replace(sample, image=self._resize(image, (self.size, self.size)))
        cut, resized = self._sizes(image.shape[-2], image.shape[-1])
        image = self._resize(F.center_crop(image, list(cut)), resized)
        top, left = (self._first(side) for side in resized)
        return replace(sample, image=image[..., top : top + self.size, left : left + self.size])

    def _resize(self, image: Tensor, size: tuple[int, int]) -> Tensor:
        return resize_image(image, size, InterpolationMode(self.interpolation))

    def _first(self, side: int) -> int:
        """Return where the crop starts in a resized image of `side` pixels."""
        return (side - self.size) // 2 if self.crop_rounding == "down" else round((side - self.size) / 2)

    def extent(self, height: int, width: int) -> tuple[float, float, float, float]:
        """Return the part of an image that the model sees, as x0, y0, x1, y1 in pixels of the image."""
        if self.crop_pct is None:
            return 0.0, 0.0, float(width), float(height)
        cut, resized = self._sizes(height, width)
        (y0, y1), (x0, x1) = (
            self._middle(whole, part, new) for whole, part, new in zip((height, width), cut, resized, strict=True)
        )
        return x0, y0, x1, y1

    def _sizes(self, height: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return the (height, width) after the cut to `MAX_ASPECT`, and after the resize."""
        assert self.crop_pct is not None
        short_side = int(self.size / self.crop_pct)
        if self.squash:
            return (height, width), (short_side, short_side)
        longest = MAX_ASPECT * min(height, width)
        height, width = min(height, longest), min(width, longest)
        if height < width:
            return (height, width), (short_side, int(short_side * width / height))
        return (height, width), (int(short_side * height / width), short_side)

    def _middle(self, whole: int, part: int, resized: int) -> tuple[float, float]:
        """Return where the crop of `resized` pixels starts and ends, in pixels of `whole`.

        The middle `part` pixels of `whole` were resized to `resized`.
        """
        scale = part / resized
        first = round((whole - part) / 2) + self._first(resized) * scale
        return first, first + self.size * scale


@dataclass(frozen=True)
class SquareResize:
    """Resize to a square of `size` pixels; the aspect ratio may change."""

    size: int

    def __post_init__(self) -> None:
        check_range("size", self.size, 1)

    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        return resize_image(image, (self.size, self.size), BICUBIC)


@dataclass(frozen=True)
class RandomResizedCrop:
    """Crop a random rectangle of 8 to 100 % of the area with sides of 3:4 to 4:3, and resize it to a square (bicubic).

    Szegedy et al. 2015, section 6. After ten draws that do not fit into the image, takes the largest rectangle of
    these shapes in the middle, as torchvision does.
    """

    size: int

    def __post_init__(self) -> None:
        check_range("size", self.size, 1)

    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        top, left, height, width = self.draw(image.shape[-2], image.shape[-1], generator)
        # Copy: resizing a view with gaps between its rows takes longer and loses the memory order.
        crop = image[:, top : top + height, left : left + width].clone()
        return resize_image(crop, (self.size, self.size), BICUBIC)

    def draw(self, height: int, width: int, generator: torch.Generator) -> tuple[int, int, int, int]:
        """Draw the crop of an image: (top, left, height, width) in pixels."""
        for _ in range(10):
            area = height * width * uniform(generator, 0.08, 1)
            ratio = math.exp(uniform(generator, math.log(3 / 4), math.log(4 / 3)))
            new_width, new_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < new_width <= width and 0 < new_height <= height:
                top = integer(generator, 0, height - new_height)
                return top, integer(generator, 0, width - new_width), new_height, new_width
        new_width = min(width, max(1, round(height * 4 / 3)))
        new_height = min(height, max(1, round(width * 4 / 3)))
        return (height - new_height) // 2, (width - new_width) // 2, new_height, new_width


@dataclass(frozen=True)
class PaddedCrop:
    """Pad a square image with `padding` black pixels on each side and crop a random square of `size` pixels."""

    size: int
    padding: int

    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        top, left = (integer(generator, 0, 2 * self.padding) for _ in range(2))
        padded = F.pad(image, [self.padding] * 4)
        return padded[:, top : top + self.size, left : left + self.size]


@dataclass(frozen=True)
class ThreeAugment:
    """Apply one of three, equally likely: greyscale, solarise at 128, or Gaussian blur with sigma 0.1 to 2 pixels."""

    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        chosen = integer(generator, 0, 2)
        if chosen == 0:
            return F.rgb_to_grayscale(image, num_output_channels=3)
        if chosen == 1:
            return F.solarize(image, 128)
        sigma = uniform(generator, 0.1, 2.0)
        side = 2 * math.ceil(4 * sigma) + 1  # beyond 4 sigma a pixel changes by less than one level
        side = min(side, 2 * ((min(image.shape[-2:]) - 1) // 2) + 1)  # torch cannot reflect further than the image
        return F.gaussian_blur(image, [side, side], [sigma, sigma])


@dataclass(frozen=True)
class RandomErasing:
    """Replace a random rectangle by noise, drawn for each pixel as in timm's mode `pixel` (Zhong et al. 2020).

    The rectangle has 2 to 33 % of the area and sides of 3:10 to 10:3. The authors draw the noise from N(0, 1) after
    normalisation. Here it is converted to levels 0..255, which clips it at about two standard deviations.
    """

    probability: float

    def __post_init__(self) -> None:
        check_range("erasing", self.probability, 0, 1)

    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        if uniform(generator) >= self.probability:
            return image
        height, width = image.shape[-2:]
        for _ in range(10):
            area = height * width * uniform(generator, 0.02, 1 / 3)
            ratio = math.exp(uniform(generator, math.log(0.3), math.log(1 / 0.3)))
            h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if h < height and w < width:
                top, left = integer(generator, 0, height - h), integer(generator, 0, width - w)
                image = image.clone()
                image[:, top : top + h, left : left + w] = _noise(h, w, generator)
                return image
        return image


def _noise(height: int, width: int, generator: torch.Generator) -> Tensor:
    """Return noise (3, height, width) uint8 that is N(0, 1) after normalisation, clipped to 0..255."""
    noise = torch.randn(3, height, width, generator=generator)
    mean, std = (torch.tensor(values)[:, None, None] * 255 for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (mean + std * noise).round().clamp(0, 255).to(torch.uint8)
