"""Resizing, cropping, flipping: what happens to a decoded image and its objects before they enter a batch.

Three pipelines: `EvaluationResize`, `paper_augmentation` (DETR, section 4) and `small_augmentation` (small
images, trained from scratch). Pixels stay uint8; a batch turns them into floats on the device. Images whose
channels lie together, as decoders write them, are resized two to three times as fast as plane by plane; all
steps here keep that order. Every draw comes from the generator that is passed in: a sample depends on its
seed and on nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from regard.data.samples import Sample
from regard.errors import ConfigError
from regard.structures.image_batch import IMAGENET_MEAN

Transform = Callable[[Sample, torch.Generator], Sample]


def paper_augmentation(short_side: int = 800, max_size: int = 1333) -> Pipeline:
    """DETR's training augmentation: flip, then half of the time scale, else scale, crop and scale again.

    Args:
        short_side: largest short side in pixels. At 800 all numbers are the authors'; others scale them: 512
            trains at 307 to 512 pixels.
        max_size: upper limit of the long side in pixels, not scaled.
    """
    _check_pixels("short_side", short_side)
    _check_pixels("max_size", max_size)

    def scaled(pixels: int) -> int:
        return max(1, round(pixels * short_side / 800))

    to_scale = RandomResize(tuple(scaled(side) for side in range(480, 801, 32)), max_size)
    # The authors set no upper limit here. This one takes effect beyond 20:1 only, where the enlarged image
    # would fill the memory before the crop makes it small again.
    to_crop = RandomResize(tuple(scaled(side) for side in (400, 500, 600)), 20 * scaled(600))
    crop_and_scale = Pipeline((to_crop, RandomSizeCrop(scaled(384), scaled(600)), to_scale))
    return Pipeline((RandomFlip(), RandomChoice(to_scale, crop_and_scale)))


def small_augmentation(size: int) -> Pipeline:
    """For small images trained from scratch: flip, scale and place in a square of `size` pixels, colours."""
    _check_pixels("size", size)
    return Pipeline((RandomFlip(), ScaleJitter(size, 0.7, 1.3), ColorJitter(0.2)))


@dataclass(frozen=True)
class Pipeline:
    """Transforms one after the other; itself a transform."""

    steps: tuple[Transform, ...]

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        for step in self.steps:
            sample = step(sample, generator)
        return sample


@dataclass(frozen=True)
class EvaluationResize:
    """Resize to the size that a detector is evaluated at. Draws nothing: the generator may be left out."""

    short_side: int = 800
    max_size: int = 1333

    def __post_init__(self) -> None:
        _check_pixels("short_side", self.short_side)
        _check_pixels("max_size", self.max_size)

    def __call__(self, sample: Sample, generator: torch.Generator | None = None) -> Sample:
        return resize(sample, resized_size(*sample.size, self.short_side, self.max_size))


@dataclass(frozen=True)
class RandomFlip:
    """Mirror left and right, half of the time."""

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        return flip(sample) if _uniform(generator) < 0.5 else sample


@dataclass(frozen=True)
class RandomResize:
    """Resize to one of `short_sides` (pixels, equally likely) with the long side at most `max_size`."""

    short_sides: tuple[int, ...]
    max_size: int

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        short_side = self.short_sides[_integer(0, len(self.short_sides) - 1, generator)]
        return resize(sample, resized_size(*sample.size, short_side, self.max_size))


@dataclass(frozen=True)
class RandomSizeCrop:
    """Cut out a rectangle whose width and height are drawn separately from `min_size`..`max_size` pixels.

    A side shorter than `min_size` is kept whole, where the authors' code fails.
    """

    min_size: int
    max_size: int

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        height, width = sample.size
        new_width = _integer(min(self.min_size, width), min(self.max_size, width), generator)
        new_height = _integer(min(self.min_size, height), min(self.max_size, height), generator)
        top = _integer(0, height - new_height, generator)
        left = _integer(0, width - new_width, generator)
        return crop(sample, top, left, new_height, new_width)


@dataclass(frozen=True)
class RandomChoice:
    """One of two transforms, equally likely."""

    first: Transform
    second: Transform

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        return (self.first if _uniform(generator) < 0.5 else self.second)(sample, generator)


@dataclass(frozen=True)
class ScaleJitter:
    """Scale the long side to `smallest`..`largest` times `size`, then crop or pad to a square of `size`.

    Where it is cut or placed is random. The border gets ImageNet's mean colour, near 0 once normalised. Where there
    are masks, objects of which no pixel is left are removed, besides those without a box.
    """

    size: int
    smallest: float
    largest: float

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        long_side = self.size * (self.smallest + (self.largest - self.smallest) * _uniform(generator))
        ratio = long_side / max(sample.size)
        height, width = (max(1, round(side * ratio)) for side in sample.size)
        rooms = (self.size - height, self.size - width)
        top, left = (_integer(min(0, room), max(0, room), generator) for room in rooms)
        sample = resize(sample, (height, width))
        sample = crop(sample, max(0, -top), max(0, -left), min(height, self.size), min(width, self.size))
        if sample.masks is not None:
            kept = sample.masks.flatten(1).any(1)
            boxes, labels, masks = sample.boxes[kept], sample.labels[kept], sample.masks[kept]
            sample = replace(sample, boxes=boxes, labels=labels, masks=masks)
        return _place(sample, max(0, top), max(0, left), self.size)


@dataclass(frozen=True)
class ColorJitter:
    """Multiply brightness and contrast, each by a factor within `strength` of 1."""

    strength: float

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        brightness, contrast = (1 + self.strength * (2 * _uniform(generator) - 1) for _ in range(2))
        image = F.adjust_contrast(F.adjust_brightness(sample.image, brightness), contrast)
        return replace(sample, image=image)


def resized_size(height: int, width: int, short_side: int, max_size: int) -> tuple[int, int]:
    """(height, width) with the short side as asked, or less where the long side would pass `max_size`.

    All in pixels. Rounds like the authors' `get_size_with_aspect_ratio` (datasets/transforms.py). Where
    that gives 0 (a short side below half a pixel), the size is 1 x `max_size`.
    """
    shorter, longer = min(height, width), max(height, width)
    if longer / shorter * short_side > max_size:
        short_side = round(max_size * shorter / longer)
        if short_side == 0:
            return (1, max_size) if height < width else (max_size, 1)
    if shorter == short_side:
        return height, width
    if width < height:
        return int(short_side * height / width), short_side
    return short_side, int(short_side * width / height)


def resize_image(image: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 image (3, H, W) at `size` (height, width): bilinear with antialias, within 1 level of Pillow."""
    return image if image.shape[-2:] == size else F.resize(image, list(size), antialias=True)


def resize(sample: Sample, size: tuple[int, int]) -> Sample:
    """The sample at `size` (height, width). Masks take the pixel at floor(i / scale), as the authors' do."""
    (height, width), (new_height, new_width) = sample.size, size
    if (height, width) == (new_height, new_width):
        return sample
    factors = torch.tensor([new_width / width, new_height / height] * 2)
    masks = sample.masks
    if masks is not None:
        nearest = F.resize(masks.view(torch.uint8), list(size), interpolation=InterpolationMode.NEAREST)
        masks = nearest.view(torch.bool)
    return replace(sample, image=resize_image(sample.image, size), boxes=sample.boxes * factors, masks=masks)


def crop(sample: Sample, top: int, left: int, height: int, width: int) -> Sample:
    """The part of the sample that starts at `top`, `left`. Objects whose box has no area left are removed.

    As in the authors' code the boxes alone decide, also where there are masks.
    """
    if (top, left) == (0, 0) and (height, width) == sample.size:
        return sample
    boxes = sample.boxes - torch.tensor([left, top, left, top])
    boxes = torch.minimum(boxes, torch.tensor([width, height, width, height])).clamp(min=0)
    kept = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    masks = sample.masks
    if masks is not None:
        masks = masks[:, top : top + height, left : left + width][kept]
    # A copy: resizing a view with gaps between its rows takes twice as long and loses the channel order.
    image = sample.image[:, top : top + height, left : left + width].clone()
    return replace(sample, image=image, boxes=boxes[kept], labels=sample.labels[kept], masks=masks)


def flip(sample: Sample) -> Sample:
    """The sample mirrored left and right."""
    width = sample.size[1]
    boxes = sample.boxes[:, [2, 1, 0, 3]] * torch.tensor([-1, 1, -1, 1]) + torch.tensor([width, 0, width, 0])
    masks = None if sample.masks is None else sample.masks.flip(-1)
    return replace(sample, image=sample.image.flip(-1), boxes=boxes, masks=masks)


def _place(sample: Sample, top: int, left: int, size: int) -> Sample:
    """The sample at `top`, `left` of a square of `size` pixels."""
    height, width = sample.size
    mean = torch.tensor(IMAGENET_MEAN).mul(255).round().to(torch.uint8)
    image = mean.repeat(size, size, 1).permute(2, 0, 1)
    image[:, top : top + height, left : left + width] = sample.image
    masks = None
    if sample.masks is not None:
        masks = sample.masks.new_zeros(len(sample.masks), size, size)
        masks[:, top : top + height, left : left + width] = sample.masks
    boxes = sample.boxes + torch.tensor([left, top, left, top])
    return replace(sample, image=image, boxes=boxes, masks=masks)


def _uniform(generator: torch.Generator) -> float:
    return torch.rand((), generator=generator).item()


def _integer(low: int, high: int, generator: torch.Generator) -> int:
    """An integer from `low` to `high`, both included."""
    return int(torch.randint(low, high + 1, (), generator=generator))


def _check_pixels(name: str, value: int) -> None:
    if value < 1:
        raise ConfigError(f"{name} is {value}", remedy="give a number of pixels, 1 or more", code="C03")
