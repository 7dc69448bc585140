"""Which anchor learns which object, against torchvision's matcher and by hand. Parity: models/test_retinanet."""

from __future__ import annotations

import pytest
import torch
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_iou

from refusals import refused
from regard.errors import DataError
from regard.losses import AnchorCriterion
from regard.losses.anchors import BACKGROUND, IGNORED, assign_anchors
from regard.structures.boxes import cxcywh_to_xyxy
from regard.structures.outputs import DensePredictions, DetectionOutput


@pytest.mark.parametrize("seed", range(5))
def test_assignment_is_torchvisions(seed):
    g = torch.Generator().manual_seed(seed)
    anchors, boxes = (
        torch.cat((torch.rand(n, 2, generator=g), torch.rand(n, 2, generator=g) + 0.2), 1) for n in (400, 7)
    )
    matcher = Matcher(0.5, 0.4, allow_low_quality_matches=True)
    expected = matcher(box_iou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(anchors)))
    assert torch.equal(assign_anchors(boxes, anchors), expected)
    assert {BACKGROUND, IGNORED} <= set(expected.tolist()) and (expected >= 0).any()


def test_every_object_has_an_anchor_but_one_that_meets_none():
    anchors = torch.tensor([[10.0, 10, 10, 10], [30, 10, 10, 10], [50, 10, 10, 10]])
    small = torch.tensor([[30.0, 10, 3, 3]])  # IoU 0.09 with its anchor
    assert assign_anchors(small, anchors).tolist() == [BACKGROUND, 0, BACKGROUND]
    far = torch.tensor([[90.0, 90, 10, 10]])  # the highest of its IoUs is 0: all anchors have it
    assert assign_anchors(far, anchors).tolist() == [BACKGROUND] * 3
    assert assign_anchors(torch.zeros(0, 4), anchors).tolist() == [BACKGROUND] * 3


def output_of(logits, sizes):
    anchors = torch.tensor([[8.0, 8, 8, 8], [24, 8, 8, 8]])
    offsets = torch.zeros(len(logits), 2, 4)
    return DetectionOutput(
        logits, torch.zeros(len(logits), 2, 4), dense=DensePredictions(anchors, offsets, (2,), sizes)
    )


def test_an_image_is_weighed_by_its_own_anchors():
    """The mean of what each image gives alone, whatever the others have; weights apply to the total alone."""
    g = torch.Generator().manual_seed(0)
    logits, sizes = torch.randn(2, 2, 3, generator=g), ((16, 32), (32, 40))
    targets = [
        {"labels": torch.tensor([0, 2]), "boxes": torch.tensor([[0.25, 0.5, 0.2, 0.5], [0.75, 0.5, 0.25, 0.4]])},
        {"labels": torch.tensor([1]), "boxes": torch.tensor([[0.2, 0.25, 0.2, 0.25]])},
    ]
    criterion = AnchorCriterion(3, class_weight=2.0, bbox_weight=0.5)
    together = criterion(output_of(logits, sizes), targets)
    alone = [criterion(output_of(logits[i : i + 1], sizes[i : i + 1]), targets[i : i + 1]) for i in (0, 1)]
    for name, value in together.items():
        torch.testing.assert_close(value, (alone[0][name] + alone[1][name]) / 2)
    torch.testing.assert_close(criterion.total(together), 2 * together["loss_ce"] + 0.5 * together["loss_bbox"])


def test_half_precision_is_computed_in_full():
    logits = torch.randn(1, 2, 3, generator=torch.Generator().manual_seed(0)).bfloat16()
    targets = [{"labels": torch.tensor([0]), "boxes": torch.tensor([[0.25, 0.5, 0.2, 0.5]])}]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = AnchorCriterion(3)(output_of(logits, ((16, 32),)), targets)
    expected = AnchorCriterion(3)(output_of(logits.float(), ((16, 32),)), targets)
    assert all(torch.equal(found[name], expected[name]) and found[name].dtype == torch.float32 for name in expected)


def test_labels_beyond_the_classes():
    targets = [{"labels": torch.tensor([3]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2]])}]
    with refused(DataError, "label 3", "0 to 2", code="A20"):
        AnchorCriterion(3)(output_of(torch.zeros(1, 2, 3), ((16, 32),)), targets)
