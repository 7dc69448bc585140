"""Transforms that detection and classification share: flip, colour jitter, resize, and how random numbers are drawn."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from regard.data.samples import ClassSample, Sample
from regard.errors import ConfigError

ImageStep = Callable[[Tensor, torch.Generator], Tensor]
AnySample = TypeVar("AnySample", Sample, ClassSample)
Flippable = TypeVar("Flippable", Tensor, Sample)


@dataclass(frozen=True)
class ImagePipeline:
    """Apply steps to the image of a sample, one after the other. Steps must not move pixels of a sample with boxes."""

    steps: tuple[ImageStep, ...]

    def __call__(self, sample: AnySample, generator: torch.Generator) -> AnySample:
        image = sample.image
        for step in self.steps:
            image = step(image, generator)
        return replace(sample, image=image)


@dataclass(frozen=True)
class RandomFlip:
    """Mirror an image, or a sample with its boxes and masks, left and right with probability 0.5."""

    def __call__(self, item: Flippable, generator: torch.Generator) -> Flippable:
        return flip(item) if uniform(generator) < 0.5 else item


@dataclass(frozen=True)
class ColorJitter:
    """Multiply brightness, contrast and saturation of an image by random factors within `strength` of 1.

    Args:
        strength: 0..1; factors are drawn from 1 - strength to 1 + strength.
        saturation: change all three in random order; False changes brightness, then contrast.
    """

    strength: float
    saturation: bool = True

    def __post_init__(self) -> None:
        check_range("color_jitter", self.strength, 0, 1)

    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        adjust = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation)
        order = torch.randperm(3, generator=generator).tolist() if self.saturation else (0, 1)
        for chosen in order:
            image = adjust[chosen](image, uniform(generator, 1 - self.strength, 1 + self.strength))
        return image


def flip(item: Flippable) -> Flippable:
    """Mirror an image (..., H, W), or a sample with its boxes and masks, left and right."""
    if isinstance(item, Tensor):
        return item.flip(-1)
    width = item.size[1]
    boxes = item.boxes[:, [2, 1, 0, 3]] * torch.tensor([-1, 1, -1, 1]) + torch.tensor([width, 0, width, 0])
    masks = None if item.masks is None else item.masks.flip(-1)
    return replace(item, image=item.image.flip(-1), boxes=boxes, masks=masks)


def resize_image(
    image: Tensor, size: tuple[int, int], interpolation: InterpolationMode = InterpolationMode.BILINEAR
) -> Tensor:
    """Resize a uint8 image (3, H, W) to `size` (height, width) in pixels, with antialias as Pillow does."""
    if image.shape[-2:] == size:
        return image
    return F.resize(image, list(size), interpolation=interpolation, antialias=True)


def uniform(generator: torch.Generator, low: float = 0.0, high: float = 1.0) -> float:
    """Draw a float from [low, high)."""
    return low + (high - low) * torch.rand((), generator=generator).item()


def integer(generator: torch.Generator, low: int, high: int) -> int:
    """Draw an integer from `low` to `high`, both included."""
    return int(torch.randint(low, high + 1, (), generator=generator))


def check_range(name: str, value: float, low: float, high: float = math.inf) -> None:
    """Check that a setting is within `low`..`high`.

    Raises:
        ConfigError: it is not, or is NaN (C03).
    """
    if not low <= value <= high:
        limits = f"{low} or more" if high == math.inf else f"{low} to {high}"
        raise ConfigError(f"{name} is {value}, expected {limits}", code="C03")
