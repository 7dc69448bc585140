"""Lines of YOLO's label format: boxes and polygons as fractions, polygons of exactly the pixels of their masks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from regard.results.yolo import box_lines, mask_lines, mask_outlines, mask_polygon


def area(points: list[tuple[int, int]]) -> float:
    """Signed area of a polygon by the shoelace formula."""
    x, y = np.array(points).T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


def test_boxes_are_centre_and_size_as_fractions_of_the_image():
    boxes = torch.tensor([[10.0, 20, 30, 60], [-10, -5, 50, 500]])
    assert box_lines([3, 0], boxes, (100, 200)) == ["3 0.1 0.4 0.1 0.4", "0 0.125 0.5 0.25 1"]


@pytest.mark.parametrize("seed", range(40))
def test_a_polygon_has_the_area_of_its_mask(seed):
    """Any mask: parts, holes, parts in holes, pixels that touch at a corner."""
    rng = np.random.default_rng(seed)
    mask = rng.random(rng.integers(1, 12, 2)) > rng.random()
    points = mask_polygon(mask)
    assert area(points) == mask.sum() if mask.any() else points == []


@pytest.mark.parametrize("holes", [False, True])
def test_a_polygon_fills_the_pixels_of_its_mask(holes):
    """Points in the mask's pixels are inside by the even-odd rule, those of other pixels outside."""
    mask = np.zeros((12, 16), bool)
    mask[1:8, 2:9], mask[9:11, 3:5], mask[2:4, 12:15] = True, True, True
    if holes:
        mask[3:5, 4:6], mask[6, 7] = False, False
    corners = np.array(mask_polygon(mask))
    following = np.roll(corners, -1, axis=0)
    for y, x in np.ndindex(mask.shape):
        px, py = x + 0.37, y + 0.61  # on no line
        crossed = (corners[:, 1] > py) != (following[:, 1] > py)
        (x0, y0), (x1, y1) = corners[crossed].T, following[crossed].T
        assert ((px < x0 + (py - y0) * (x1 - x0) / (y1 - y0)).sum() % 2 == 1) == mask[y, x]


def test_an_outline_keeps_the_corners_only():
    mask = np.zeros((6, 9), bool)
    mask[2:5, 1:8] = True
    assert mask_outlines(mask) == [[(1, 2), (8, 2), (8, 5), (1, 5)]]
    mask[3, 4] = False
    outer, hole = mask_outlines(mask)
    assert area(outer) == 21 and area(hole) == -1


def test_lines_of_masks():
    masks = torch.zeros(2, 4, 8, dtype=torch.bool)
    masks[0, 1:3, 2:4] = True
    assert mask_lines([5, 1], masks) == ["5 0.25 0.25 0.5 0.25 0.5 0.75 0.25 0.75"]
