"""Outputs of models: all that losses, post-processing and results read of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


class Denoising(NamedTuple):
    """Predictions for the noised ground truth of a training step (DN-DETR), each with a known target.

    logits: (L, B, N, C), boxes: (L, B, N, 4) cxcywh in 0..1, for all L decoder layers.
    target: (B, N) int64 on the CPU, index in its image of the object that the query was made from, -1 for padding.
    """

    logits: Tensor
    boxes: Tensor
    target: Tensor


class MaskInputs(NamedTuple):
    """Inputs of the mask head for a batch.

    hidden: (B, Q, C) queries after the last decoder layer.
    memory: (B, h*w, C) tokens after the encoder.
    projected: (B, C, h, w) projected features before the encoder.
    finer: (B, C_i, h_i, w_i) feature maps of the backbone, from coarse to fine.
    visible: (B, 1, 1, h*w) bool, True inside the image, or None without padding.
    """

    hidden: Tensor
    memory: Tensor
    projected: Tensor
    finer: tuple[Tensor, ...]
    visible: Tensor | None


class DensePredictions(NamedTuple):
    """Where the predictions of a dense detector come from (RetinaNet): anchors, many of which find the same object.

    anchors: (Q, 4) cxcywh in pixels of the padded batch; the same for all images.
    offsets: (B, Q, 4), see `regard.structures.boxes.encode_boxes`.
    levels: number of anchors of each level of the pyramid, from fine to coarse; their sum is Q.
    sizes: (height, width) of each image without padding, in pixels.
    """

    anchors: Tensor
    offsets: Tensor
    levels: tuple[int, ...]
    sizes: tuple[tuple[int, int], ...]


class DetectionOutput(NamedTuple):
    """Predictions of a detector for a batch of B images and Q queries, or Q anchors.

    logits: (B, Q, C+1) with the no-object class last (softmax models), or (B, Q, C) (sigmoid models).
    boxes: (B, Q, 4) cxcywh as fractions 0..1 of the unpadded image.
    auxiliary: outputs of the earlier decoder layers, in their order; empty if the model has none.
    masks: (B, Q, h, w) mask logits, or None.
    num_groups: number of query groups in training (Group DETR), one after the other: Q = num_groups * group size.
    denoising: predictions for noised ground truth, in training only.
    mask_inputs: inputs of `model.masks`, to compute the masks of selected queries later; None for a model without
        masks.
    proposals: predictions of all cells of the feature map, of which the best became queries; in training only.
    duplicate_iou: IoU above which the worse of two detections of a class is a duplicate; 1: each query is a detection.
    dense: of a dense detector only; its duplicates are still to be suppressed. None: each query is one detection.
    """

    logits: Tensor
    boxes: Tensor
    auxiliary: Sequence[DetectionOutput] = ()
    masks: Tensor | None = None
    num_groups: int = 1
    denoising: Denoising | None = None
    mask_inputs: MaskInputs | None = None
    proposals: DetectionOutput | None = None
    duplicate_iou: float = 1.0
    dense: DensePredictions | None = None


class DistilledLogits(NamedTuple):
    """Output of a distilled classifier in training: logits (B, C) of the class token and of the distillation token."""

    class_logits: Tensor
    distillation_logits: Tensor
