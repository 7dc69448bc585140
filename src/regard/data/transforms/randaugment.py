"""RandAugment: a few operations on an image, drawn from fifteen, all at one magnitude."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from regard.errors import ConfigError
from regard.structures.image_batch import IMAGENET_MEAN

FILL = [float(round(255 * mean)) for mean in IMAGENET_MEAN]  # what is outside the image
TOP = 10.0  # magnitudes run from 0 to it


@dataclass(frozen=True)
class RandAugment:
    """RandAugment (Cubuk et al., 2020) in the form that DeiT trains with, timm's `rand-m9-mstd0.5-inc1`.

    `num_ops` operations are drawn with replacement from the fifteen of `OPERATIONS`. Each is applied half of the time,
    at a magnitude drawn from a normal distribution and held within 0..10; all get stronger with it. Pixels from outside
    the image have ImageNet's mean colour. Differs from timm in the interpolation of turned, sheared and shifted images:
    bilinear in place of bicubic, which torchvision does not offer for tensors.

    magnitude, magnitude_std: mean and standard deviation, 0..10.
    """

    magnitude: float = 9.0
    magnitude_std: float = 0.5
    num_ops: int = 2

    def __post_init__(self) -> None:
        for name, high in (("magnitude", TOP), ("magnitude_std", TOP), ("num_ops", 15)):
            if not 0 <= getattr(self, name) <= high:
                what = f"{name} is {getattr(self, name)}, expected 0 to {high:g}"
                raise ConfigError(what, where="RandAugment", code="C03")

    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """Augment an image (3, H, W) uint8."""
        names = tuple(OPERATIONS)
        for _ in range(self.num_ops):
            chosen = int(torch.randint(len(names), (), generator=generator))
            applied, sign = torch.rand(2, generator=generator).tolist()
            noise = torch.randn((), generator=generator).item()
            if applied < 0.5:
                level = min(max(self.magnitude + self.magnitude_std * noise, 0.0), TOP) / TOP
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
    """Of an enhancement whose neutral value is 1."""
    return max(0.1, 1 + sign * 0.9 * level)


def _affine(image: Tensor, shift: tuple[float, float] = (0, 0), shear: tuple[float, float] = (0, 0)) -> Tensor:
    """Shift by (x, y) in pixels and shear by slopes about the upper left corner."""
    slopes = [math.degrees(math.atan(slope)) for slope in shear]
    place = {"angle": 0.0, "translate": list(shift), "scale": 1.0, "shear": slopes, "center": [0.0, 0.0]}
    return F.affine(image, **place, interpolation=InterpolationMode.BILINEAR, fill=FILL)


def _rotate(image: Tensor, level: float, sign: int) -> Tensor:
    return F.rotate(image, sign * 30 * level, interpolation=InterpolationMode.BILINEAR, fill=FILL)


# Each takes an image (3, H, W) uint8, a level 0..1 and a sign, and says by its formula what the level means.
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
