"""Geometry of boxes. Names give the format: xyxy for corners, cxcywh for centre and size, xywh as in COCO.

Functions take any leading dimensions and keep the dtype; NaN stays NaN. Under mixed precision pass float32: areas of
half-precision boxes overflow and lose their digits when subtracted.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Largest logarithm by which a size is decoded, as in torchvision's BoxCoder: 1000 over the coarsest stride of 16.
MAX_LOG_SIZE = math.log(1000 / 16)


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Convert (..., 4) from centre x, centre y, width, height to left, top, right, bottom."""
    cx, cy, w, h = boxes.unbind(-1)
    return torch.stack((cx - 0.5 * w, cy - 0.5 * h, cx + 0.5 * w, cy + 0.5 * h), dim=-1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """Convert (..., 4) from left, top, right, bottom to centre x, centre y, width, height."""
    x0, y0, x1, y1 = boxes.unbind(-1)
    return torch.stack(((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0), dim=-1)


def xyxy_to_xywh(boxes: Tensor) -> Tensor:
    """Convert (..., 4) from left, top, right, bottom to left, top, width, height."""
    x0, y0, x1, y1 = boxes.unbind(-1)
    return torch.stack((x0, y0, x1 - x0, y1 - y0), dim=-1)


def encode_boxes(boxes_cxcywh: Tensor, anchors_cxcywh: Tensor) -> Tensor:
    """Return the offsets (..., 4) that turn anchors (..., 4) into boxes with sizes above 0. (Girshick et al. 2014.)

    dx, dy: distance of the centres over the anchor's width and height; dw, dh: logarithm of the ratio of the sizes.
    """
    x, y, w, h = boxes_cxcywh.unbind(-1)
    ax, ay, aw, ah = anchors_cxcywh.unbind(-1)
    return torch.stack(((x - ax) / aw, (y - ay) / ah, (w / aw).log(), (h / ah).log()), dim=-1)


def decode_boxes(offsets: Tensor, anchors_cxcywh: Tensor) -> Tensor:
    """Return the boxes (..., 4) cxcywh of offsets: the inverse of `encode_boxes`. Sizes grow 62.5 times at most."""
    dx, dy, dw, dh = offsets.unbind(-1)
    ax, ay, aw, ah = anchors_cxcywh.unbind(-1)
    w, h = (d.clamp(max=MAX_LOG_SIZE).exp() for d in (dw, dh))
    return torch.stack((ax + dx * aw, ay + dy * ah, aw * w, ah * h), dim=-1)


def generalized_iou(boxes1_xyxy: Tensor, boxes2_xyxy: Tensor) -> Tensor:
    """Compute the generalised IoU of boxes (Rezatofighi et al. 2019, algorithm 1).

    If an area is 0, the term that divides by it and its gradient are 0, not NaN.

    Args:
        boxes1_xyxy, boxes2_xyxy: (..., 4), whose leading dimensions broadcast. For all pairs of (N, 4) and (M, 4) pass
            `boxes1[:, None]` and `boxes2[None]`.

    Returns:
        (...), -1..1; (N, M) for all pairs.
    """
    iou, union = _iou_and_union(boxes1_xyxy, boxes2_xyxy)
    ax0, ay0, ax1, ay1 = boxes1_xyxy.unbind(-1)
    bx0, by0, bx1, by1 = boxes2_xyxy.unbind(-1)
    width = torch.maximum(ax1, bx1) - torch.minimum(ax0, bx0)
    height = torch.maximum(ay1, by1) - torch.minimum(ay0, by0)
    hull = width.clamp(min=0) * height.clamp(min=0)
    return iou - _ratio(hull - union, hull)


def iou(boxes1_xyxy: Tensor, boxes2_xyxy: Tensor) -> Tensor:
    """Compute the intersection over union of boxes (..., 4), 0..1. Leading dimensions broadcast."""
    return _iou_and_union(boxes1_xyxy, boxes2_xyxy)[0]


def _iou_and_union(boxes1_xyxy: Tensor, boxes2_xyxy: Tensor) -> tuple[Tensor, Tensor]:
    # Separate coordinates are three times as fast as pairs in an innermost dimension of two.
    ax0, ay0, ax1, ay1 = boxes1_xyxy.unbind(-1)
    bx0, by0, bx1, by1 = boxes2_xyxy.unbind(-1)
    width = torch.minimum(ax1, bx1) - torch.maximum(ax0, bx0)
    height = torch.minimum(ay1, by1) - torch.maximum(ay0, by0)
    overlap = width.clamp(min=0) * height.clamp(min=0)
    union = (ax1 - ax0) * (ay1 - ay0) + (bx1 - bx0) * (by1 - by0) - overlap
    return _ratio(overlap, union), union


def _ratio(part: Tensor, area: Tensor) -> Tensor:
    """Return part / area, or 0 if the area is 0. Dividing by a tiny number would give unbounded gradients."""
    empty = area <= torch.finfo(area.dtype).tiny
    return part.masked_fill(empty, 0) / area.masked_fill(empty, 1)
