"""Mixup and CutMix: two images of a batch in one, and targets that say how much of each there is."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from regard.errors import ConfigError


@dataclass(frozen=True)
class Mix:
    """How a batch is mixed with itself in reverse order.

    share: 0..1, of each image that stays.
    box: (top, bottom, left, right) in pixels of the part that CutMix replaces; None where Mixup blends all pixels.
    """

    share: float
    box: tuple[int, int, int, int] | None = None


@dataclass(frozen=True, kw_only=True)
class Mixing:
    """Mixup (Zhang et al., 2018) and CutMix (Yun et al., 2019) as DeiT trains with them: one draw for a batch.

    Image i is mixed with image B - 1 - i. The share λ comes from Beta(alpha, alpha); CutMix replaces a box of
    (1 - λ) of the area, cut off at the border, and corrects λ by the box's true area. Targets are λ of one smoothed
    one-hot vector and 1 - λ of the other: 1 - ε + ε / C for the class and ε / C for the others. Formulas and defaults
    as in timm's `Mixup` in mode `batch`, which DeiT uses; there draws come from numpy's global generator, here they
    are a function of (seed, step, rank) alone, so that a resumed run mixes as one left alone.

    num_classes: C.
    mixup_alpha, cutmix_alpha: 0 turns that one off.
    probability: of mixing a batch at all.
    switch_probability: of CutMix, where both are on.
    label_smoothing: ε, also of batches that are not mixed.
    """

    num_classes: int
    mixup_alpha: float = 0.8
    cutmix_alpha: float = 1.0
    probability: float = 1.0
    switch_probability: float = 0.5
    label_smoothing: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        limits = (
            ("num_classes", 1, math.inf), ("mixup_alpha", 0, math.inf), ("cutmix_alpha", 0, math.inf),
            ("probability", 0, 1), ("switch_probability", 0, 1), ("label_smoothing", 0, 1), ("seed", 0, math.inf),
        )  # fmt: skip
        for name, low, high in limits:
            if not low <= getattr(self, name) <= high:  # also catches NaN
                what = f"{name} is {getattr(self, name)}, expected {low} to {high}"
                raise ConfigError(what.replace("to inf", "or more"), where="mixing", code="C03")

    def __call__(self, pixels: Tensor, labels: Tensor, step: int, rank: int = 0) -> tuple[Tensor, Tensor]:
        """Mix a batch of normalised pixels (B, 3, H, W) with labels (B,): mixed pixels, and targets (B, C) float32.

        Args:
            step: number of the batch in the run. rank: of the process, so that each mixes in its own way.
        """
        mix = self.draw(step, pixels.shape[-2], pixels.shape[-1], rank)
        return mix_pixels(pixels, mix), self.targets(labels, mix.share)

    def draw(self, step: int, height: int, width: int, rank: int = 0) -> Mix:
        """What happens to the batch of this step, for images of `height` x `width` pixels."""
        if not self.mixup_alpha and not self.cutmix_alpha:
            return Mix(1.0)
        rng = np.random.default_rng((self.seed, step, rank))
        if rng.random() >= self.probability:
            return Mix(1.0)
        both = bool(self.mixup_alpha and self.cutmix_alpha)
        use_cutmix = rng.random() < self.switch_probability if both else not self.mixup_alpha
        alpha = self.cutmix_alpha if use_cutmix else self.mixup_alpha
        share = float(rng.beta(alpha, alpha))
        if not use_cutmix:
            return Mix(share)
        return cutmix_box(height, width, share, (int(rng.integers(height)), int(rng.integers(width))))

    def targets(self, labels: Tensor, share: float = 1.0) -> Tensor:
        """Smoothed targets (B, C) float32 of labels (B,), `share` of the own class and the rest of the partner's."""
        off = self.label_smoothing / self.num_classes
        own = torch.full((len(labels), self.num_classes), off, device=labels.device)
        own.scatter_(1, labels.long()[:, None], 1 - self.label_smoothing + off)
        return own if share == 1 else own * share + own.flip(0) * (1 - share)


def cutmix_box(height: int, width: int, share: float, centre: tuple[int, int]) -> Mix:
    """The box of (1 - share) of the area around `centre` (row, column), cut off at the border, and what then stays."""
    ratio = math.sqrt(1 - share)
    (top, bottom), (left, right) = (
        (max(0, middle - int(side * ratio) // 2), min(side, middle + (int(side * ratio) + 1) // 2))
        for middle, side in zip(centre, (height, width), strict=True)
    )
    return Mix(1 - (bottom - top) * (right - left) / (height * width), (top, bottom, left, right))


def mix_pixels(pixels: Tensor, mix: Mix) -> Tensor:
    """The batch (B, C, H, W), floats, mixed with itself in reverse order; the one given is left as it was."""
    if mix.box is None:
        return pixels if mix.share == 1 else pixels * mix.share + pixels.flip(0) * (1 - mix.share)
    top, bottom, left, right = mix.box
    mixed = pixels.clone()
    mixed[:, :, top:bottom, left:right] = pixels.flip(0)[:, :, top:bottom, left:right]
    return mixed
