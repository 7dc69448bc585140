"""The losses of masks of matched queries: focal and dice. (Carion et al. 2020, section 4.4; models/segmentation.py.)"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from regard.structures.transfer import upload

ALPHA, GAMMA = 0.25, 2.0  # of the focal loss


def mask_losses(logits: Tensor, targets: Tensor, num_boxes: Tensor | float) -> dict[str, Tensor]:
    """`loss_mask` (focal, a mean over pixels) and `loss_dice`, each a sum over masks divided by `num_boxes`.

    Padding counts as background, as in the authors' code.

    Args:
        logits: (M, h, w) of matched queries; enlarged to the targets' size, bilinear.
        targets: (M, H, W), 0 or 1.
    """
    if logits.shape[-2:] != targets.shape[-2:]:
        logits = F.interpolate(logits[:, None], targets.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    logits, truth = logits.flatten(1), targets.flatten(1).to(logits.dtype)
    return {
        "loss_mask": sigmoid_focal_loss(logits, truth).mean(1).sum() / num_boxes,
        "loss_dice": dice_loss(logits, truth).sum() / num_boxes,
    }


def sigmoid_focal_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """`alpha_t (1 - p_t)^gamma CE` of every pixel (Lin et al. 2017, eq. 5), alpha 0.25 and gamma 2."""
    probability = logits.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    of_truth = probability * targets + (1 - probability) * (1 - targets)
    return (ALPHA * targets + (1 - ALPHA) * (1 - targets)) * (1 - of_truth) ** GAMMA * entropy


def dice_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """`1 - (2 sum(p t) + 1) / (sum(p) + sum(t) + 1)` of each mask: (M, N) pixels -> (M,)."""
    probability = logits.sigmoid()
    overlap = 2 * (probability * targets).sum(1)
    return 1 - (overlap + 1) / (probability.sum(1) + targets.sum(1) + 1)


def padded_masks(masks: Sequence[Tensor], size: tuple[int, int], device: torch.device) -> Tensor:
    """Masks (T_i, H_i, W_i) of all images, one after the other, with zeros up to `size`: (sum T, H, W) on `device`."""
    found = torch.zeros(sum(map(len, masks)), *size, dtype=torch.bool, device=device)
    start = 0
    for part in masks:
        found[start : start + len(part), : part.shape[-2], : part.shape[-1]] = upload(part, device)
        start += len(part)
    return found
