"""What models return. Losses, post-processing and results read these; they need to know nothing else of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


class Denoising(NamedTuple):
    """Predictions for the noised ground truth of a training step (DN-DETR): what each one is to restore is known.

    logits: (L, B, N, C), boxes: (L, B, N, 4) cxcywh in 0..1, for all L decoder layers.
    target: (B, N) int64 on the host, index of the object of that image which the query copies, -1 for padding.
    """

    logits: Tensor
    boxes: Tensor
    target: Tensor


class MaskInputs(NamedTuple):
    """What the masks of a batch are made of.

    hidden: (B, Q, C) queries after the last decoder layer. memory: (B, h*w, C) tokens after the encoder.
    projected: (B, C, h, w) the projected features before it.
    finer: maps of the backbone (B, C_i, h_i, w_i), from coarse to fine.
    visible: (B, 1, 1, h*w) bool, True where there is an image, or None without padding.
    """

    hidden: Tensor
    memory: Tensor
    projected: Tensor
    finer: tuple[Tensor, ...]
    visible: Tensor | None


class DetectionOutput(NamedTuple):
    """Predictions of a detector for a batch of B images and Q queries.

    logits: (B, Q, C+1) with the no-object class last (softmax models), or (B, Q, C) (sigmoid models).
    boxes: (B, Q, 4) cxcywh as fractions 0..1 of the unpadded image.
    auxiliary: the same of every earlier decoder layer, first layer first; empty where the model gives none.
    masks: (B, Q, h, w) mask logits, or None.
    mask_inputs: what `model.masks` makes masks of, for queries that are chosen later; None where a model has no masks.
    num_groups: query groups of a training step (Group DETR): Q = num_groups * queries per group, group after group.
    denoising: predictions for noised targets, in training only.
    """

    logits: Tensor
    boxes: Tensor
    auxiliary: Sequence[DetectionOutput] = ()
    masks: Tensor | None = None
    num_groups: int = 1
    denoising: Denoising | None = None
    mask_inputs: MaskInputs | None = None


class DistilledLogits(NamedTuple):
    """What a distilled classifier gives in training: logits (B, C) of the class and of the distillation token."""

    class_logits: Tensor
    distillation_logits: Tensor
