"""Geometry of boxes. Formats are named in the arguments: xyxy are corners, cxcywh centre and size, xywh is COCO's.

All functions take any leading dimensions, do not check finiteness, and work in the dtype that they are given: callers
under mixed precision pass float32 (areas of half-precision boxes overflow and cancel).
"""

from __future__ import annotations

import torch
from torch import Tensor


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """(..., 4) centre x, centre y, width, height -> left, top, right, bottom."""
    cx, cy, w, h = boxes.unbind(-1)
    return torch.stack((cx - 0.5 * w, cy - 0.5 * h, cx + 0.5 * w, cy + 0.5 * h), dim=-1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """(..., 4) left, top, right, bottom -> centre x, centre y, width, height."""
    x0, y0, x1, y1 = boxes.unbind(-1)
    return torch.stack(((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0), dim=-1)


def xywh_to_xyxy(boxes: Tensor) -> Tensor:
    """(..., 4) left, top, width, height -> left, top, right, bottom."""
    x, y, w, h = boxes.unbind(-1)
    return torch.stack((x, y, x + w, y + h), dim=-1)


def xyxy_to_xywh(boxes: Tensor) -> Tensor:
    """(..., 4) left, top, right, bottom -> left, top, width, height."""
    x0, y0, x1, y1 = boxes.unbind(-1)
    return torch.stack((x0, y0, x1 - x0, y1 - y0), dim=-1)


def generalized_iou(boxes1_xyxy: Tensor, boxes2_xyxy: Tensor) -> Tensor:
    """Generalised IoU of boxes one by one, -1..1; the leading dimensions broadcast.

    For every pair of (N, 4) and (M, 4) pass `boxes1[:, None]` and `boxes2[None]`: the result is (N, M). Boxes without
    area have IoU 0 where both are points, never NaN. (Rezatofighi et al. 2019, eq. 4.)
    """
    iou, union = _iou_and_union(boxes1_xyxy, boxes2_xyxy)
    left_top = torch.minimum(boxes1_xyxy[..., :2], boxes2_xyxy[..., :2])
    right_bottom = torch.maximum(boxes1_xyxy[..., 2:], boxes2_xyxy[..., 2:])
    hull = (right_bottom - left_top).clamp(min=0).prod(-1)
    return iou - (hull - union) / hull.clamp(min=_tiny(hull))


def iou(boxes1_xyxy: Tensor, boxes2_xyxy: Tensor) -> Tensor:
    """Intersection over union, 0..1, with the broadcasting of `generalized_iou`."""
    return _iou_and_union(boxes1_xyxy, boxes2_xyxy)[0]


def _iou_and_union(boxes1_xyxy: Tensor, boxes2_xyxy: Tensor) -> tuple[Tensor, Tensor]:
    left_top = torch.maximum(boxes1_xyxy[..., :2], boxes2_xyxy[..., :2])
    right_bottom = torch.minimum(boxes1_xyxy[..., 2:], boxes2_xyxy[..., 2:])
    overlap = (right_bottom - left_top).clamp(min=0).prod(-1)
    union = _area(boxes1_xyxy) + _area(boxes2_xyxy) - overlap
    return overlap / union.clamp(min=_tiny(union)), union


def _area(boxes_xyxy: Tensor) -> Tensor:
    return (boxes_xyxy[..., 2] - boxes_xyxy[..., 0]) * (boxes_xyxy[..., 3] - boxes_xyxy[..., 1])


def _tiny(x: Tensor) -> float:
    return torch.finfo(x.dtype).tiny
