"""Transforms of a detection sample: image, boxes and masks together, before they enter a batch.

Pipelines: `EvaluationResize`, `paper_augmentation` (DETR, section 4), `jitter_augmentation` (RetinaNet) and
`small_augmentation` (small images, trained from scratch). Pixels stay uint8; the batch is normalised on the device.
Decoders write the channels of a pixel together; every step keeps this memory order, which resizes two to three times as
fast as planes. All random numbers come from the generator that is passed in, so a sample depends on its seed alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from regard.data.samples import Sample
from regard.data.transforms.image import (
    ColorJitter,
    ImagePipeline,
    RandomFlip,
    check_range,
    integer,
    resize_image,
    uniform,
)
from regard.structures.image_batch import IMAGENET_MEAN

Transform = Callable[[Sample, torch.Generator], Sample]


def paper_augmentation(short_side: int = 800, max_size: int = 1333) -> Pipeline:
    """Return DETR's training augmentation: flip, then either scale, or scale, crop and scale again, equally likely.

    Carion et al. 2020, section 4, and the authors' `make_coco_transforms` (datasets/coco.py).

    Args:
        short_side: largest short side in pixels. All sizes are the authors' at 800 and scale with it: 512 trains at
            307 to 512 pixels.
        max_size: upper limit of the long side in pixels, not scaled.

    Raises:
        ConfigError: a size below 1 pixel (C03).
    """
    check_range("short_side", short_side, 1)
    check_range("max_size", max_size, 1)

    def scaled(pixels: int) -> int:
        return max(1, round(pixels * short_side / 800))

    to_scale = RandomResize(tuple(scaled(side) for side in range(480, 801, 32)), max_size)
    # The authors set no upper limit here. This one matters only for images longer than 20:1, which would fill the
    # memory when enlarged, before the crop.
    to_crop = RandomResize(tuple(scaled(side) for side in (400, 500, 600)), 20 * scaled(600))
    crop_and_scale = Pipeline((to_crop, RandomSizeCrop(scaled(384), scaled(600)), to_scale))
    return Pipeline((RandomFlip(), RandomChoice(to_scale, crop_and_scale)))


def jitter_augmentation(size: int) -> Pipeline:
    """Return the augmentation of detectors trained from scratch: flip, and scale by 0.8 to 1.2 into a square.

    Bello et al. 2019, section 4.3, name multi-scale jitter; the range is that of the public RetinaNet for TPUs.

    Args:
        size: side of the square in pixels.

    Raises:
        ConfigError: a size below 1 pixel (C03).
    """
    check_range("size", size, 1)
    return Pipeline((RandomFlip(), ScaleJitter(size, 0.8, 1.2)))


def small_augmentation(size: int) -> Pipeline:
    """Return the augmentation for small images trained from scratch: flip, scale into a square, colour jitter.

    Args:
        size: side of the square in pixels.

    Raises:
        ConfigError: a size below 1 pixel (C03).
    """
    check_range("size", size, 1)
    return Pipeline((RandomFlip(), ScaleJitter(size, 0.7, 1.3), ImagePipeline((ColorJitter(0.2, saturation=False),))))


@dataclass(frozen=True)
class Pipeline:
    """Apply transforms one after the other."""

    steps: tuple[Transform, ...]

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        for step in self.steps:
            sample = step(sample, generator)
        return sample


@dataclass(frozen=True)
class EvaluationResize:
    """Resize the short side to `short_side` pixels, with the long side at most `max_size`. Uses no randomness."""

    short_side: int = 800
    max_size: int = 1333

    def __post_init__(self) -> None:
        check_range("short_side", self.short_side, 1)
        check_range("max_size", self.max_size, 1)

    def size_of(self, height: int, width: int) -> tuple[int, int]:
        """Return the (height, width) that an image of this size is resized to, in pixels."""
        return resized_size(height, width, self.short_side, self.max_size)

    def __call__(self, sample: Sample, generator: torch.Generator | None = None) -> Sample:
        return resize(sample, self.size_of(*sample.size))


@dataclass(frozen=True)
class RandomResize:
    """Resize to a short side drawn from `short_sides`, with the long side at most `max_size`; all in pixels."""

    short_sides: tuple[int, ...]
    max_size: int

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        short_side = self.short_sides[integer(generator, 0, len(self.short_sides) - 1)]
        return resize(sample, resized_size(*sample.size, short_side, self.max_size))


@dataclass(frozen=True)
class RandomSizeCrop:
    """Crop a random rectangle, its width and height drawn separately from `min_size`..`max_size` pixels.

    A side shorter than `min_size` is kept whole; the authors' code fails on it.
    """

    min_size: int
    max_size: int

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        height, width = sample.size
        new_width = integer(generator, min(self.min_size, width), min(self.max_size, width))
        new_height = integer(generator, min(self.min_size, height), min(self.max_size, height))
        top = integer(generator, 0, height - new_height)
        left = integer(generator, 0, width - new_width)
        return crop(sample, top, left, new_height, new_width)


@dataclass(frozen=True)
class RandomChoice:
    """Apply one of two transforms, equally likely."""

    first: Transform
    second: Transform

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        return (self.first if uniform(generator) < 0.5 else self.second)(sample, generator)


@dataclass(frozen=True)
class ScaleJitter:
    """Scale the long side to a random fraction of `size`, then crop or pad to a square of `size` pixels.

    The crop and the position in the square are random. Padding has ImageNet's mean colour, near 0 after normalisation.
    Objects without box area are removed; samples with masks also lose the objects without a remaining pixel.

    Args:
        size: side of the square in pixels.
        min_scale, max_scale: range of the long side as a fraction of `size`.
    """

    size: int
    min_scale: float
    max_scale: float

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        long_side = self.size * uniform(generator, self.min_scale, self.max_scale)
        ratio = long_side / max(sample.size)
        height, width = (max(1, round(side * ratio)) for side in sample.size)
        margins = (self.size - height, self.size - width)
        top, left = (integer(generator, min(0, margin), max(0, margin)) for margin in margins)
        sample = resize(sample, (height, width))
        sample = crop(sample, max(0, -top), max(0, -left), min(height, self.size), min(width, self.size))
        if sample.masks is not None:
            kept = sample.masks.flatten(1).any(1)
            boxes, labels, masks = sample.boxes[kept], sample.labels[kept], sample.masks[kept]
            sample = replace(sample, boxes=boxes, labels=labels, masks=masks)
        return _pad(sample, max(0, top), max(0, left), self.size)


def resized_size(height: int, width: int, short_side: int, max_size: int) -> tuple[int, int]:
    """Return the (height, width) with this short side, or a smaller one where the long side would exceed `max_size`.

    All in pixels. Rounds like the authors' `get_size_with_aspect_ratio` (datasets/transforms.py). Where that gives a
    short side of 0, the size is 1 x `max_size`.
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


def resize(sample: Sample, size: tuple[int, int]) -> Sample:
    """Resize a sample to `size` (height, width) in pixels.

    The image is interpolated with antialias, boxes are scaled, masks take the pixel at floor(i / scale) as in the
    authors' code.
    """
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
    """Crop a sample to the rectangle at `top`, `left`; all in pixels.

    Removes objects whose box has no area left. As in the authors' code the box decides, also for objects with a mask.
    """
    if (top, left) == (0, 0) and (height, width) == sample.size:
        return sample
    boxes = sample.boxes - torch.tensor([left, top, left, top])
    boxes = torch.minimum(boxes, torch.tensor([width, height, width, height])).clamp(min=0)
    kept = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    masks = sample.masks
    if masks is not None:
        masks = masks[:, top : top + height, left : left + width][kept]
    # Copy: resizing a view with gaps between its rows takes twice as long and loses the memory order.
    image = sample.image[:, top : top + height, left : left + width].clone()
    return replace(sample, image=image, boxes=boxes[kept], labels=sample.labels[kept], masks=masks)


def _pad(sample: Sample, top: int, left: int, size: int) -> Sample:
    """Paste a sample at `top`, `left` into a square of `size` pixels of ImageNet's mean colour."""
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
