"""Geometry of boxes against torchvision, the formulas in plain numbers, and boxes without area."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision import ops
from torchvision.models.detection._utils import BoxCoder

from regard.structures.boxes import (
    cxcywh_to_xyxy,
    decode_boxes,
    encode_boxes,
    generalized_iou,
    iou,
    xyxy_to_cxcywh,
    xyxy_to_xywh,
)

UNIT = [0.0, 0.0, 1.0, 1.0]


def random_boxes(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Boxes with area, xyxy, sides up to 1."""
    g = torch.Generator().manual_seed(seed)
    corner = torch.rand(*shape, 2, generator=g, dtype=dtype)
    return torch.cat((corner, corner + 0.01 + torch.rand(*shape, 2, generator=g, dtype=dtype)), dim=-1)


def plain_giou(a: list[float], b: list[float]) -> tuple[float, float]:
    """IoU and generalised IoU of two boxes, Rezatofighi et al. 2019, algorithm 1; a quotient by 0 is 0."""

    def area(box: list[float]) -> float:
        return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])

    overlap = area([max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])])
    hull = area([min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])])
    union = area(a) + area(b) - overlap
    ratio = overlap / union if union else 0.0
    return ratio, ratio - ((hull - union) / hull if hull else 0.0)


class TestFormats:
    @pytest.mark.parametrize(
        ("ours", "source", "target"),
        [
            (cxcywh_to_xyxy, "cxcywh", "xyxy"),
            (xyxy_to_cxcywh, "xyxy", "cxcywh"),
            (xyxy_to_xywh, "xyxy", "xywh"),
        ],
    )
    def test_equal_torchvision(self, ours, source: str, target: str) -> None:
        boxes = ops.box_convert(100 * random_boxes(50), "xyxy", source)
        expected = ops.box_convert(boxes, source, target)
        torch.testing.assert_close(ours(boxes), expected)
        torch.testing.assert_close(ours(boxes.view(5, 2, 5, 4)), expected.view(5, 2, 5, 4))

    def test_there_and_back(self) -> None:
        boxes = random_boxes(3, 4, dtype=torch.float64)
        torch.testing.assert_close(cxcywh_to_xyxy(xyxy_to_cxcywh(boxes)), boxes)

    def test_no_boxes(self) -> None:
        for convert in (cxcywh_to_xyxy, xyxy_to_cxcywh, xyxy_to_xywh):
            assert convert(torch.zeros(2, 0, 4)).shape == (2, 0, 4)


class TestOverlap:
    def test_pairs_equal_torchvision(self) -> None:
        a, b = random_boxes(40, seed=1), random_boxes(30, seed=2)
        torch.testing.assert_close(iou(a[:, None], b[None]), ops.box_iou(a, b), atol=1e-6, rtol=0)
        expected = ops.generalized_box_iou(a, b)
        torch.testing.assert_close(generalized_iou(a[:, None], b[None]), expected, atol=1e-6, rtol=0)
        torch.testing.assert_close(generalized_iou(a[:30], b), expected[:30].diag(), atol=1e-6, rtol=0)

    def test_leading_dimensions_broadcast(self) -> None:
        a, b = random_boxes(3, 2, 5, 1, seed=1), random_boxes(1, 2, 1, 7, seed=2)
        every = generalized_iou(a, b)
        assert every.shape == (3, 2, 5, 7)
        for layer in range(3):
            for image in range(2):
                expected = ops.generalized_box_iou(a[layer, image, :, 0], b[0, image, 0])
                torch.testing.assert_close(every[layer, image], expected, atol=1e-6, rtol=0)
        assert generalized_iou(a, b[..., :0, :]).shape == (3, 2, 5, 0)

    @pytest.mark.parametrize(
        ("a", "b", "expected_iou", "expected_giou"),
        [
            (UNIT, UNIT, 1, 1),
            (UNIT, [0.25, 0.25, 0.75, 0.75], 0.25, 0.25),  # inside: the hull is the union
            (UNIT, [1, 0, 2, 1], 0, 0),  # side by side: they fill their hull
            (UNIT, [2, 0, 3, 1], 0, -1 / 3),
            (UNIT, [3, 3, 4, 4], 0, -14 / 16),
            (UNIT, [0.5, 0.5, 0.5, 0.5], 0, 0),  # a point inside
            (UNIT, [2, 1, 2, 1], 0, -1 / 2),  # a point outside
            ([0, 0, 0, 1], [1, 0, 1, 1], 0, -1),  # two upright lines: a hull with nothing in it
            ([0, 0, 0, 1], [0, 0, 0, 1], 0, 0),  # twice the same line
            ([0, 0, 0, 1], [0, 3, 0, 4], 0, 0),  # two lines on one line: even the hull is empty
            ([2, 3, 2, 3], [2, 3, 2, 3], 0, 0),  # twice the same point
            ([1, 1, 0, 0], [1, 1, 0, 0], 0, 0),  # corners in the wrong order
        ],
    )
    def test_by_hand(self, a: list[float], b: list[float], expected_iou: float, expected_giou: float) -> None:
        for first, second in ((a, b), (b, a)):
            x, y = torch.tensor(first, dtype=torch.float32), torch.tensor(second, dtype=torch.float32)
            assert iou(x, y).item() == pytest.approx(expected_iou)
            assert generalized_iou(x, y).item() == pytest.approx(expected_giou)
        assert plain_giou(a, b) == pytest.approx((expected_iou, expected_giou))

    @settings(max_examples=200, deadline=None)
    @given(st.lists(st.integers(0, 6), min_size=8, max_size=8))
    def test_equals_the_plain_formula(self, numbers: list[int]) -> None:
        """On a grid of few points boxes touch, coincide, contain each other and have no area all the time."""

        def box(x0: int, x1: int, y0: int, y1: int) -> list[float]:
            return [float(v) for v in (min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))]

        a, b = box(*numbers[:4]), box(*numbers[4:])
        expected_iou, expected_giou = plain_giou(a, b)
        assert iou(torch.tensor(a), torch.tensor(b)).item() == pytest.approx(expected_iou, abs=1e-6)
        found = generalized_iou(torch.tensor(a), torch.tensor(b)).item()
        assert found == pytest.approx(expected_giou, abs=1e-6)
        assert -1 <= found <= 1

    def test_broken_boxes_stay_broken(self) -> None:
        broken = torch.tensor([0.0, 0.0, float("nan"), 1.0])
        assert generalized_iou(broken, torch.tensor(UNIT)).isnan()
        assert iou(torch.tensor(UNIT), broken).isnan()


class TestGradients:
    def test_equal_differences(self) -> None:
        a, b = (random_boxes(6, seed=seed, dtype=torch.float64).requires_grad_() for seed in (1, 2))
        assert torch.autograd.gradcheck(generalized_iou, (a, b))

    @pytest.mark.parametrize("other", [[0.5, 0.5, 0.5, 0.5], [0.5, 0.2, 0.5, 0.8], UNIT, [0.9, 0.9, 0.95, 0.95]])
    @pytest.mark.parametrize("box", [[0.5, 0.5, 0.5, 0.5], [0.5, 0.1, 0.5, 0.9], [0.1, 0.5, 0.9, 0.5]])
    def test_of_boxes_without_area_are_bounded(self, box: list[float], other: list[float]) -> None:
        for scale in (1.0, 1e-6, 1e-20):  # at the last one areas underflow
            a = (torch.tensor(box) * scale).requires_grad_()
            b = torch.tensor(other) * scale
            generalized_iou(a, b).backward()
            assert a.grad is not None and (a.grad * scale).abs().max() <= 10


def test_offsets_are_torchvisions():
    coder = BoxCoder(weights=(1.0, 1.0, 1.0, 1.0))
    boxes, anchors = random_boxes(50), random_boxes(50, seed=1)
    offsets = encode_boxes(xyxy_to_cxcywh(boxes), xyxy_to_cxcywh(anchors))
    torch.testing.assert_close(offsets, coder.encode_single(boxes, anchors), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(cxcywh_to_xyxy(decode_boxes(offsets, xyxy_to_cxcywh(anchors))), boxes)
    huge = 3 * torch.randn(50, 4, generator=torch.Generator().manual_seed(2))  # some sizes reach the limit
    found = cxcywh_to_xyxy(decode_boxes(huge, xyxy_to_cxcywh(anchors)))
    assert (huge[:, 2:] > 4.2).any()
    torch.testing.assert_close(found, coder.decode_single(huge, anchors), atol=1e-4, rtol=1e-5)
