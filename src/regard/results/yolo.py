"""Results as lines of YOLO's label format: `class cx cy w h`, or `class x1 y1 x2 y2 ...` for masks.

Coordinates are fractions of the image, 0..1. A polygon follows the edges of the pixels, so that it encloses exactly the
area of its mask. The format has one polygon for an object: its parts and holes are joined by bridges of no width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from torch import Tensor

from regard.structures.boxes import xyxy_to_cxcywh

Point = tuple[int, int]  # x, y of a corner between pixels
# Right of the edge lies the mask: (x, y) steps clockwise on the screen, right, down, left, up.
_STEPS: tuple[Point, ...] = ((1, 0), (0, 1), (-1, 0), (0, -1))


def box_lines(labels: Sequence[int], boxes_xyxy: Tensor, size: tuple[int, int]) -> list[str]:
    """Return a line for each box (N, 4), xyxy in pixels, clipped to the image of `size` (height, width)."""
    height, width = size
    corners = boxes_xyxy.double().clone()
    corners[:, 0::2] = corners[:, 0::2].clamp(0, width) / width
    corners[:, 1::2] = corners[:, 1::2].clamp(0, height) / height
    rows = xyxy_to_cxcywh(corners).tolist()
    return [_line(label, row) for label, row in zip(labels, rows, strict=True)]


def mask_lines(labels: Sequence[int], masks: Tensor) -> list[str]:
    """Return a line for each mask (N, H, W) bool that has a pixel."""
    lines = []
    for label, mask in zip(labels, masks.cpu().numpy(), strict=True):
        points = mask_polygon(mask)
        if points:
            scale = np.array([mask.shape[1], mask.shape[0]], float)
            lines.append(_line(label, (np.array(points) / scale).ravel().tolist()))
    return lines


def mask_polygon(mask: npt.NDArray[np.bool_]) -> list[Point]:
    """Return the corners of a polygon around all pixels of a mask (H, W), holes left out; none for an empty mask.

    Its signed area (shoelace formula) is the number of pixels.
    """
    outlines = mask_outlines(mask)
    joined: list[Point] = []
    for outline in outlines:
        joined += [*outline, outline[0]] if len(outlines) > 1 else outline
    return joined + [outline[0] for outline in reversed(outlines[1:-1])]


def mask_outlines(mask: npt.NDArray[np.bool_]) -> list[list[Point]]:
    """Return the closed outlines of a mask (H, W), corners between pixels: parts clockwise, holes anticlockwise."""
    inside = np.pad(np.asarray(mask, bool), 1)
    # An edge runs with the mask on its right: for each side of a pixel without a neighbour, its start and direction.
    starts = {
        0: inside[1:-1, 1:-1] & ~inside[:-2, 1:-1],  # upper side, to the right
        1: inside[1:-1, 1:-1] & ~inside[1:-1, 2:],  # right side, down
        2: inside[1:-1, 1:-1] & ~inside[2:, 1:-1],  # lower side, to the left
        3: inside[1:-1, 1:-1] & ~inside[1:-1, :-2],  # left side, up
    }
    corner = ((0, 0), (1, 0), (1, 1), (0, 1))  # where the edge of each direction starts, from the pixel's upper left
    left: dict[Point, set[int]] = {}
    for direction, sides in starts.items():
        dx, dy = corner[direction]
        for y, x in np.argwhere(sides).tolist():
            left.setdefault((x + dx, y + dy), set()).add(direction)
    outlines = []
    while left:
        outlines.append(_outline(left))
    return outlines


def _outline(left: dict[Point, set[int]]) -> list[Point]:
    """Take one closed outline out of the edges that are left; keep the corners where it turns."""
    start = place = min(left, key=lambda point: (point[1], point[0]))
    before = None
    corners: list[Point] = []
    while before is None or place != start:
        choices = left[place]
        # Where two pixels touch at a corner, turn right: the parts stay apart.
        turns = range(4) if before is None else [(before + turn) % 4 for turn in (1, 0, 3)]
        direction = next(turn for turn in turns if turn in choices)
        choices.discard(direction)
        if not choices:
            del left[place]
        if direction != before:
            corners.append(place)
        before = direction
        place = (place[0] + _STEPS[direction][0], place[1] + _STEPS[direction][1])
    return corners


def _line(label: int, values: Sequence[float]) -> str:
    return " ".join([str(label), *(f"{value:.6f}".rstrip("0").rstrip(".") for value in values)])
