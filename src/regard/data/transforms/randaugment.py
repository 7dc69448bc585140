"""RandAugment: two operations on an image, drawn from fifteen, at one magnitude."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from regard.data.transforms.image import check_range
from regard.structures.image_batch import IMAGENET_MEAN

FILL = [float(round(255 * mean)) for mean in IMAGENET_MEAN]  # colour of pixels from outside the image
MAX_MAGNITUDE = 10.0
MAGNITUDE_STD = 0.5
NUM_OPERATIONS = 2


@dataclass(frozen=True)
class RandAugment:
    """RandAugment (Cubuk et al. 2020) in the form that DeiT uses, timm's `rand-m9-mstd0.5-inc1`.

    Draws two of the fifteen `OPERATIONS`, with replacement. Applies each with probability 0.5, at a level drawn from
    N(magnitude, 0.5) and clipped to 0..10; every operation gets stronger with the level. Pixels from outside the image
    have ImageNet's mean colour. Differs from timm where an image is rotated, sheared or shifted: bilinear instead of
    bicubic interpolation, which torchvision does not offer for tensors.

    Args:
        magnitude: mean of the levels, 0..10.

    Raises:
        ConfigError: magnitude out of range (C03).
    """

    magnitude: float = 9.0

    def __post_init__(self) -> None:
        check_range("magnitude", self.magnitude, 0, MAX_MAGNITUDE)

    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """Augment an image (3, H, W) uint8."""
        names = tuple(OPERATIONS)
        for _ in range(NUM_OPERATIONS):
            chosen = int(torch.randint(len(names), (), generator=generator))
            applied, sign = torch.rand(2, generator=generator).tolist()
            noise = torch.randn((), generator=generator).item()
            if applied < 0.5:
                level = min(max(self.magnitude + MAGNITUDE_STD * noise, 0.0), MAX_MAGNITUDE) / MAX_MAGNITUDE
                image = OPERATIONS[names[chosen]](image, level, 1 if sign < 0.5 else -1)
        return image


def _posterize(image: Tensor, level: float, sign: int) -> Tensor:
    return F.posterize(image, bits=4 - int(4 * level))


def _solarize(image: Tensor, level: float, sign: int) -> Tensor:
    threshold = 256 - int(256 * level)
    return image if threshold > 255 else F.solarize(image, threshold)


def _solarize_add(image: Tensor, level: float, sign: int) -> Tensor:
    brighter = (image.short() + int(110 * level)).clamp(max=255).to(torch.uint8)
    return torch.where(image < 128, brighter, image)


def _factor(level: float, sign: int) -> float:
    """Return the factor of an enhancement, 1 being neutral."""
    return max(0.1, 1 + sign * 0.9 * level)


def _affine(image: Tensor, shift: tuple[float, float] = (0, 0), shear: tuple[float, float] = (0, 0)) -> Tensor:
    """Translate by (x, y) pixels and shear by slopes about the upper left corner."""
    slopes = [math.degrees(math.atan(slope)) for slope in shear]
    place = {"angle": 0.0, "translate": list(shift), "scale": 1.0, "shear": slopes, "center": [0.0, 0.0]}
    return F.affine(image, **place, interpolation=InterpolationMode.BILINEAR, fill=FILL)


def _rotate(image: Tensor, level: float, sign: int) -> Tensor:
    return F.rotate(image, sign * 30 * level, interpolation=InterpolationMode.BILINEAR, fill=FILL)


# Each takes an image (3, H, W) uint8, a level 0..1 and a sign 1 or -1.
OPERATIONS: dict[str, Callable[[Tensor, float, int], Tensor]] = {
    "autocontrast": lambda image, level, sign: F.autocontrast(image),
    "equalize": lambda image, level, sign: F.equalize(image),
    "invert": lambda image, level, sign: F.invert(image),
    "rotate": _rotate,
    "posterize": _posterize,
    "solarize": _solarize,
    "solarize_add": _solarize_add,
    "color": lambda image, level, sign: F.adjust_saturation(image, _factor(level, sign)),
    "contrast": lambda image, level, sign: F.adjust_contrast(image, _factor(level, sign)),
    "brightness": lambda image, level, sign: F.adjust_brightness(image, _factor(level, sign)),
    "sharpness": lambda image, level, sign: F.adjust_sharpness(image, _factor(level, sign)),
    "shear_x": lambda image, level, sign: _affine(image, shear=(sign * 0.3 * level, 0)),
    "shear_y": lambda image, level, sign: _affine(image, shear=(0, sign * 0.3 * level)),
    "translate_x": lambda image, level, sign: _affine(image, shift=(sign * 0.45 * level * image.shape[-1], 0)),
    "translate_y": lambda image, level, sign: _affine(image, shift=(0, sign * 0.45 * level * image.shape[-2])),
}
