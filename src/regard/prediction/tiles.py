"""Boxes of one image from several views of it: the whole, tiles that overlap, and mirror images.

The rule by which boxes of views become one list, class by class:

1. A box that ends at a border between tiles is cut. It is dropped if most of it lies in a box of another view that is
   not cut.
2. Cut boxes that face each other across a border, and are level with each other, are joined to one.
3. Of boxes of different views that overlap, the one with the highest score stays; cut ones come last. Boxes of one view
   never drop each other: as always with DETR, its queries have agreed on them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from regard.structures.boxes import iou

COVERED = 0.6  # part of a cut box inside another one from which on it shows the same object
SAME = 0.5  # IoU from which on boxes of two views show the same object
LEVEL = 0.5  # IoU of the sides along a border from which on two cut boxes belong together
MARGIN = 0.02  # of a tile's side: a box that ends so near to a border is cut by it


class View(NamedTuple):
    """A part of an image, in pixels, right and bottom exclusive; `mirrored` left to right."""

    left: int
    top: int
    right: int
    bottom: int
    mirrored: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.bottom - self.top, self.right - self.left

    def cut_out(self, image: Tensor) -> Tensor:
        """Return the pixels (3, h, w) of the view of an image (3, H, W)."""
        part = image[:, self.top : self.bottom, self.left : self.right]
        return part.flip(-1) if self.mirrored else part

    def in_image(self, boxes_xyxy: Tensor) -> Tensor:
        """Return boxes (N, 4) in pixels of the view as boxes of the image, clipped to the view."""
        height, width = self.size
        x0, y0, x1, y1 = boxes_xyxy.unbind(-1)
        x0, x1 = (width - x1, width - x0) if self.mirrored else (x0, x1)
        x0, x1 = (x.clamp(0, width) + self.left for x in (x0, x1))
        y0, y1 = (y.clamp(0, height) + self.top for y in (y0, y1))
        return torch.stack((x0, y0, x1, y1), -1)


class ViewedBoxes(NamedTuple):
    """N boxes from all views of an image. boxes: (N, 4) xyxy in its pixels. view: (N,) int64, position of the view."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    view: Tensor

    def where(self, kept: Tensor) -> ViewedBoxes:
        """Return the rows for which `kept` (N,) is True, or whose positions it holds."""
        return ViewedBoxes(*(column[kept] for column in self))


def views_of(size: tuple[int, int], tile_size: int | None, overlap: float, *, flip: bool) -> list[View]:
    """Return the views of an image of `size` (height, width): the whole first, then tiles if it is larger than one.

    Tiles are spread evenly and share at least `overlap` of their side. With `flip` the mirror image of each follows.
    """
    height, width = size
    views = [View(0, 0, width, height)]
    if tile_size is not None and max(size) > tile_size:
        for top, bottom in _spans(height, tile_size, overlap):
            views += [View(left, top, right, bottom) for left, right in _spans(width, tile_size, overlap)]
    return [view._replace(mirrored=mirrored) for view in views for mirrored in ((False, True) if flip else (False,))]


def _spans(length: int, side: int, overlap: float) -> list[tuple[int, int]]:
    if length <= side:
        return [(0, length)]
    count = math.ceil((length - side) / max(1.0, side * (1 - overlap))) + 1
    starts = [round(number * (length - side) / (count - 1)) for number in range(count)]
    return [(start, start + side) for start in starts]


def merge(found: ViewedBoxes, views: Sequence[View], size: tuple[int, int]) -> ViewedBoxes:
    """Return one box for each object; the rule is at the top of this file. Boxes are best first.

    Args:
        found: boxes above the threshold.
        views: what `found.view` points to.
        size: (height, width) of the image in pixels.
    """
    cut = _cut_sides(found, views, size)
    is_cut = cut.any(1)
    same_class = found.labels[:, None] == found.labels
    other_view = found.view[:, None] != found.view
    covered = _shared(found.boxes) >= COVERED  # of row i by box j
    dropped = is_cut & (covered & same_class & other_view & ~is_cut).any(1)
    found, cut = found.where(~dropped), cut[~dropped]
    found, is_cut = _joined(found, cut)
    return _best(found, is_cut)


def _cut_sides(found: ViewedBoxes, views: Sequence[View], size: tuple[int, int]) -> Tensor:
    """Return (N, 4) bool: whether the left, top, right and bottom side lies at an inner border of its view."""
    places = torch.tensor([view[:4] for view in views], dtype=found.boxes.dtype)[found.view]
    edges = torch.tensor([0, 0, size[1], size[0]], dtype=found.boxes.dtype)
    sides = (places[:, 2:] - places[:, :2]).repeat(1, 2)
    return ((found.boxes - places).abs() <= (MARGIN * sides).clamp(min=1)) & (places != edges)


def _shared(boxes: Tensor) -> Tensor:
    """Return (N, N): the part of box i, 0..1, that lies in box j."""
    corner0 = torch.maximum(boxes[:, None, :2], boxes[None, :, :2])
    corner1 = torch.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1).clamp(min=1e-6)
    return (corner1 - corner0).clamp(min=0).prod(-1) / area[:, None]


def _joined(found: ViewedBoxes, cut: Tensor) -> tuple[ViewedBoxes, Tensor]:
    """Join cut boxes across borders. Returns the boxes, and which of them are still cut."""
    x0, y0, x1, y1 = found.boxes.unbind(1)
    beside = cut[:, 2, None] & cut[None, :, 0] & _meet(x0, x1) & (_level(y0, y1) >= LEVEL)  # i left of j
    above = cut[:, 3, None] & cut[None, :, 1] & _meet(y0, y1) & (_level(x0, x1) >= LEVEL)
    same = (found.labels[:, None] == found.labels) & (found.view[:, None] != found.view)
    pairs = (beside | above) & same
    group = torch.arange(len(found.labels))
    linked = pairs | pairs.T | torch.eye(len(group), dtype=torch.bool)
    while True:  # the lowest number spreads through each group
        lowest = torch.where(linked, group, len(group)).amin(1) if len(group) else group
        if torch.equal(lowest, group):
            break
        group = lowest
    rows, is_cut = [], []
    boxes, scores = found.boxes.clone(), found.scores.clone()
    for first in group.unique().tolist():
        members = group == first
        boxes[first] = torch.cat((found.boxes[members, :2].amin(0), found.boxes[members, 2:].amax(0)))
        scores[first] = found.scores[members].max()
        rows.append(first)
        is_cut.append(bool(cut[first].any()) and int(members.sum()) == 1)
    view = torch.where(torch.bincount(group, minlength=len(group)) > 1, -1, found.view)  # a joined box is of no view
    merged = ViewedBoxes(boxes, scores, found.labels, view).where(torch.tensor(rows, dtype=torch.int64))
    return merged, torch.tensor(is_cut, dtype=torch.bool)


def _meet(low: Tensor, high: Tensor) -> Tensor:
    """Return (N, N) bool: interval i starts and ends before j, and reaches it."""
    return (low[:, None] <= low) & (high[:, None] <= high) & (high[:, None] >= low - 1)


def _level(low: Tensor, high: Tensor) -> Tensor:
    """Return (N, N): the intersection over union of intervals, 0..1."""
    shared = (torch.minimum(high[:, None], high) - torch.maximum(low[:, None], low)).clamp(min=0)
    whole = torch.maximum(high[:, None], high) - torch.minimum(low[:, None], low)
    return shared / whole.clamp(min=1e-6)


def _best(found: ViewedBoxes, is_cut: Tensor) -> ViewedBoxes:
    """Keep the best of the boxes of different views that show the same object; cut boxes come last."""
    order = torch.tensor(
        sorted(range(len(is_cut)), key=lambda row: (bool(is_cut[row]), -float(found.scores[row]))), dtype=torch.int64
    )
    found, is_cut = found.where(order), is_cut[order]
    same = iou(found.boxes[:, None], found.boxes[None]) >= SAME
    same |= is_cut[None, :] & (_shared(found.boxes).T >= COVERED)  # most of the cut box j lies in i
    same &= (found.labels[:, None] == found.labels) & ((found.view[:, None] != found.view) | (found.view == -1))
    kept = torch.ones(len(order), dtype=torch.bool)
    for row in range(len(order)):
        if kept[row]:
            kept[row + 1 :] &= ~same[row, row + 1 :]
    best = found.where(kept)
    return best.where(best.scores.argsort(descending=True, stable=True))
