"""Does a map mean anything? Take the pixels away that it calls important, and see how fast the score falls.

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
    """fractions: (S+1,) share of the pixels that were changed, 0..1. scores: (S+1,) what is left of the score."""

    fractions: Tensor
    scores: Tensor

    @property
    def area(self) -> float:
        """The area under the curve (trapezoids), 0..1 for scores of 0..1."""
        return torch.trapezoid(self.scores, self.fractions).item()


def deletion_curve(score: Callable[[Tensor], Tensor], image: Tensor, weights: Tensor, *, steps: int = 16) -> Curve:
    """Pixels become 0 (the mean colour), the most important first. Small areas are good.

    Args:
        score: normalised images (B, 3, H, W) -> (B,).
        image: (3, H, W), normalised.
        weights: (H, W), greater is more important; equal ones go in the order of the rows.
        steps: in which all pixels go.

    Raises:
        ConfigError: weights of another size than the image's.
    """
    return _curve(score, image, torch.zeros_like(image), weights, steps)


def insertion_curve(score: Callable[[Tensor], Tensor], image: Tensor, weights: Tensor, *, steps: int = 16) -> Curve:
    """Into a blurred image the pixels return, the most important first. Large areas are good. Else as deletion."""
    sigma = BLUR * min(image.shape[-2:])
    kernel = 2 * int(2 * sigma) + 1
    return _curve(score, gaussian_blur(image, [kernel, kernel], [sigma, sigma]), image, weights, steps)


def detection_score(output: DetectionOutput, label: int, box: Tensor, *, softmax: bool) -> Tensor:
    """(B,) how well each image's best query still finds an object: probability of its class times IoU.

    Args:
        box: (4,) cxcywh in 0..1 of the object that was found.
    """
    logits = output.logits.float()
    probability = (logits.softmax(-1) if softmax else logits.sigmoid())[..., label]
    overlap = iou(cxcywh_to_xyxy(output.boxes.float()), cxcywh_to_xyxy(box.float()).expand_as(output.boxes))
    return (probability * overlap).amax(1)


@torch.no_grad()
def _curve(score: Callable[[Tensor], Tensor], start: Tensor, end: Tensor, weights: Tensor, steps: int) -> Curve:
    if weights.shape != start.shape[-2:]:
        what = f"weights {tuple(weights.shape)} for an image of {tuple(start.shape[-2:])} pixels"
        raise ConfigError(what, remedy="bring them to its size with Look.on_pixels")
    order = weights.flatten().argsort(descending=True, stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device)
    fractions = torch.linspace(0, 1, steps + 1)
    changed = rank.view_as(weights) < (fractions * len(order)).round()[:, None, None].to(rank.device)
    changed = changed[:, None].to(start.device)
    scores = score(torch.where(changed, end, start))
    return Curve(fractions, scores.float().cpu())
