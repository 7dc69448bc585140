"""Test of maps: remove the pixels that a map calls important and measure how fast the score falls.

Petsiuk et al. 2018 (RISE), section 4.2; for detections Petsiuk et al. 2021 (D-RISE), section 3.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur

from regard.errors import ConfigError
from regard.structures.boxes import cxcywh_to_xyxy, iou
from regard.structures.outputs import DetectionOutput

BLUR = 0.15  # of the shorter side: standard deviation of what insertion starts from


class Curve(NamedTuple):
    """fractions: (S+1,) share of the pixels that were changed, 0..1. scores: (S+1,) the score then."""

    fractions: Tensor
    scores: Tensor

    @property
    def area(self) -> float:
        """Return the area under the curve (trapezoids), 0..1 for scores 0..1."""
        return torch.trapezoid(self.scores, self.fractions).item()


def deletion_curve(score: Callable[[Tensor], Tensor], image: Tensor, weights: Tensor, *, steps: int = 16) -> Curve:
    """Set pixels to 0 (the mean colour), the most important first. A small area is good.

    Args:
        score: normalised images (B, 3, H, W) -> (B,).
        image: (3, H, W), normalised.
        weights: (H, W), larger is more important; equal ones follow row by row.
        steps: number of steps until all pixels are changed.

    Raises:
        ConfigError: weights of another size than the image's.
    """
    return _curve(score, image, torch.zeros_like(image), weights, steps)


def insertion_curve(score: Callable[[Tensor], Tensor], image: Tensor, weights: Tensor, *, steps: int = 16) -> Curve:
    """Restore the pixels of a blurred image, the most important first. A large area is good. Else as deletion."""
    sigma = BLUR * min(image.shape[-2:])
    kernel = 2 * int(2 * sigma) + 1
    return _curve(score, gaussian_blur(image, [kernel, kernel], [sigma, sigma]), image, weights, steps)


def detection_score(output: DetectionOutput, label: int, box: Tensor, *, softmax: bool) -> Tensor:
    """Return (B,) how well the best query of each image finds an object: probability of its class times IoU.

    Args:
        box: (4,) cxcywh in 0..1 of the object.
    """
    logits = output.logits.float()
    probability = (logits.softmax(-1) if softmax else logits.sigmoid())[..., label]
    overlap = iou(cxcywh_to_xyxy(output.boxes.float()), cxcywh_to_xyxy(box.float()).expand_as(output.boxes))
    return (probability * overlap).amax(1)


@torch.no_grad()
def _curve(score: Callable[[Tensor], Tensor], start: Tensor, end: Tensor, weights: Tensor, steps: int) -> Curve:
    if weights.shape != start.shape[-2:]:
        what = f"weights {tuple(weights.shape)} for an image of {tuple(start.shape[-2:])} pixels"
        raise ConfigError(what, remedy="bring them to its size with SaliencyMap.on_pixels")
    order = weights.flatten().argsort(descending=True, stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device)
    fractions = torch.linspace(0, 1, steps + 1)
    changed = rank.view_as(weights) < (fractions * len(order)).round()[:, None, None].to(rank.device)
    changed = changed[:, None].to(start.device)
    scores = score(torch.where(changed, end, start))
    return Curve(fractions, scores.float().cpu())
