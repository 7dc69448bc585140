"""Mixup and CutMix: blend the images of a batch in pairs, and their targets in the same proportion."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from regard.data.transforms.image import check_range

CUTMIX_PROBABILITY = 0.5  # of CutMix instead of Mixup where both are on, as in DeiT


@dataclass(frozen=True)
class Mix:
    """How a batch is mixed with itself in reverse order.

    Args:
        share: fraction of each image that is kept, 0..1.
        box: (top, bottom, left, right) in pixels of the rectangle that CutMix replaces. None for Mixup, which blends
            all pixels.
    """

    share: float
    box: tuple[int, int, int, int] | None = None


@dataclass(frozen=True, kw_only=True)
class Mixing:
    """Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019) as DeiT uses them: one draw for the whole batch.

    Image i is mixed with image B - 1 - i. The share λ comes from Beta(alpha, alpha). CutMix replaces a box of
    (1 - λ) of the area, clipped at the border, and corrects λ to the box's true area. A target is λ times one smoothed
    one-hot vector plus 1 - λ times the other. A smoothed vector has 1 - ε + ε / C for the class and ε / C elsewhere.

    Formulas and defaults follow timm's `Mixup` in mode `batch`. timm draws from numpy's global generator; here a draw
    depends on (seed, step, rank) alone, so that a resumed run mixes like an uninterrupted one.

    Args:
        num_classes: C.
        mixup_alpha, cutmix_alpha: 0 turns that one off.
        label_smoothing: ε.
        seed: of the random draws.

    Raises:
        ConfigError: a value out of range (C03).
    """

    num_classes: int
    mixup_alpha: float = 0.8
    cutmix_alpha: float = 1.0
    label_smoothing: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("mixup_alpha", "cutmix_alpha", "seed"):
            check_range(name, getattr(self, name), 0)
        check_range("num_classes", self.num_classes, 1)
        check_range("label_smoothing", self.label_smoothing, 0, 1)

    def __call__(self, pixels: Tensor, labels: Tensor, step: int, rank: int = 0) -> tuple[Tensor, Tensor]:
        """Mix a batch.

        Args:
            pixels: (B, 3, H, W), normalised.
            labels: (B,) class numbers.
            step: number of the batch in the run.
            rank: of the process; processes mix differently.

        Returns:
            Mixed pixels (B, 3, H, W), and targets (B, C) float32.
        """
        mix = self.draw(step, pixels.shape[-2], pixels.shape[-1], rank)
        return mix_pixels(pixels, mix), self.targets(labels, mix.share)

    def draw(self, step: int, height: int, width: int, rank: int = 0) -> Mix:
        """Draw the mix of this step for images of `height` x `width` pixels."""
        if not self.mixup_alpha and not self.cutmix_alpha:
            return Mix(1.0)
        rng = np.random.default_rng((self.seed, step, rank))
        rng.random()  # timm draws here whether to mix at all, always yes; kept so that the numbers stay the same
        both = bool(self.mixup_alpha and self.cutmix_alpha)
        use_cutmix = rng.random() < CUTMIX_PROBABILITY if both else not self.mixup_alpha
        alpha = self.cutmix_alpha if use_cutmix else self.mixup_alpha
        share = float(rng.beta(alpha, alpha))
        if not use_cutmix:
            return Mix(share)
        return cutmix_box(height, width, share, (int(rng.integers(height)), int(rng.integers(width))))

    def targets(self, labels: Tensor, share: float = 1.0) -> Tensor:
        """Return smoothed targets (B, C) float32 of labels (B,): `share` of the class, the rest the partner's."""
        off = self.label_smoothing / self.num_classes
        own = torch.full((len(labels), self.num_classes), off, device=labels.device)
        own.scatter_(1, labels.long()[:, None], 1 - self.label_smoothing + off)
        return own if share == 1 else own * share + own.flip(0) * (1 - share)


def cutmix_box(height: int, width: int, share: float, centre: tuple[int, int]) -> Mix:
    """Return the box of (1 - share) of the area around `centre` (row, column), clipped, with its true share."""
    ratio = math.sqrt(1 - share)
    (top, bottom), (left, right) = (
        (max(0, middle - int(side * ratio) // 2), min(side, middle + (int(side * ratio) + 1) // 2))
        for middle, side in zip(centre, (height, width), strict=True)
    )
    return Mix(1 - (bottom - top) * (right - left) / (height * width), (top, bottom, left, right))


def mix_pixels(pixels: Tensor, mix: Mix) -> Tensor:
    """Mix a float batch (B, C, H, W) with itself in reverse order. Does not change `pixels`."""
    if mix.box is None:
        return pixels if mix.share == 1 else pixels * mix.share + pixels.flip(0) * (1 - mix.share)
    top, bottom, left, right = mix.box
    mixed = pixels.clone()
    mixed[:, :, top:bottom, left:right] = pixels.flip(0)[:, :, top:bottom, left:right]
    return mixed
