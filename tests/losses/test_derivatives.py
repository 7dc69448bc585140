"""First and second derivatives of the losses against differences, in float64, every number on its own.

Tolerances are those of `torch.autograd.gradcheck`: 1e-5 and a thousandth, for differences over 1e-6 of float64 numbers
are right to about 1e-9. Matching and assignment jump, but not within 1e-6 of random numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from loss_cases import random_targets
from regard.losses import AnchorCriterion, DistillationLoss, SetCriterion
from regard.losses.segmentation import mask_losses
from regard.structures.boxes import generalized_iou
from regard.structures.outputs import Denoising, DensePredictions, DetectionOutput, DistilledLogits


def numbers(*shapes: tuple[int, ...], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]


def boxes_of(numbers: Tensor) -> Tensor:
    """Boxes inside the image, as the models make them."""
    return numbers.sigmoid()


def check(function: Callable[..., Tensor], inputs: list[Tensor]) -> None:
    assert gradcheck(function, inputs, fast_mode=False)
    assert gradgradcheck(function, inputs, fast_mode=False)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((4,), (4,)),
        ((1, 4), (1, 4)),
        ((5, 4), (5, 4)),
        ((3, 1, 4), (1, 2, 4)),
        ((1, 1, 4), (1, 4, 4)),
        ((0, 4), (0, 4)),
    ],
)
def test_generalized_iou(one, other):
    """Of boxes that overlap, lie inside each other and apart: at random, all three occur."""

    def run(a, b):
        corners = [torch.cat((t[..., :2], t[..., :2] + t[..., 2:].exp()), dim=-1) for t in (a, b)]
        return generalized_iou(*corners)

    check(run, numbers(one, other, seed=3))


@pytest.mark.parametrize("kind", ["softmax", "focal"])
@pytest.mark.parametrize(
    ("counts", "queries", "classes", "groups"),
    [([1], 1, 1, 1), ([0], 1, 2, 1), ([2], 1, 1, 1), ([1, 0], 3, 2, 1), ([0, 0], 2, 1, 1), ([3, 1], 2, 3, 1),
     ([1, 2], 2, 2, 2)],
    ids=str,
)  # fmt: skip
def test_set_criterion(counts, queries, classes, groups, kind):
    """Class, L1 and GIoU loss of two layers: no objects, one query, more objects than queries, groups of queries."""
    targets = random_targets(counts, classes)
    criterion = SetCriterion(classes, classification=kind)
    shape = (len(counts), queries * groups)

    def run(logits, boxes, earlier_logits, earlier_boxes):
        earlier = DetectionOutput(earlier_logits, boxes_of(earlier_boxes))
        output = DetectionOutput(logits, boxes_of(boxes), [earlier], num_groups=groups)
        return criterion.total(criterion(output, targets))

    widths = (classes + (kind == "softmax"), 4)
    check(run, numbers(*[(*shape, width) for width in widths * 2], seed=queries))


@pytest.mark.parametrize("kind", ["softmax", "focal"])
def test_denoising_and_proposals(kind):
    """With padded copies, and an image without objects."""
    targets, classes = random_targets([2, 0], 2), 2 + (kind == "softmax")
    criterion, known = SetCriterion(2, classification=kind), torch.tensor([[0, 1, -1], [-1, -1, -1]])
    fixed = DetectionOutput(*(t.detach() for t in numbers((2, 2, classes), (2, 2, 4))))

    def run(logits, boxes, cells, cell_boxes):
        noised = Denoising(logits, boxes_of(boxes), known)
        output = fixed._replace(
            boxes=boxes_of(fixed.boxes), denoising=noised, proposals=DetectionOutput(cells, boxes_of(cell_boxes))
        )
        return criterion.total(criterion(output, targets))

    check(run, numbers((1, 2, 3, classes), (1, 2, 3, 4), (2, 3, classes), (2, 3, 4), seed=1))


@pytest.mark.parametrize(
    ("objects", "classes"),
    [([0], 1), ([1], 1), ([1], 3), ([2, 0], 2), ([0, 0], 2), ([1, 2], 1)],
    ids=str,
)
def test_anchor_criterion(objects, classes):
    """Focal and L1 loss of anchors that learn, are background or are ignored."""
    anchors = torch.tensor([[10.0, 10, 8, 8], [20, 20, 16, 16], [24, 20, 12, 20], [8, 24, 10, 6], [20, 22, 16, 16]])
    generator, targets = torch.Generator().manual_seed(0), []
    for count in objects:
        boxes = anchors[torch.arange(count)] + torch.randn(count, 4, generator=generator)
        targets.append({"labels": torch.arange(count) % classes, "boxes": boxes / 32})
    criterion = AnchorCriterion(classes)

    def run(logits, offsets):
        dense = DensePredictions(anchors, offsets, (5,), ((32, 32),) * len(objects))
        output = DetectionOutput(logits, torch.zeros(len(objects), 5, 4), dense=dense)
        return criterion.total(criterion(output, targets))

    check(run, numbers((len(objects), 5, classes), (len(objects), 5, 4)))


@pytest.mark.parametrize(
    ("logits", "target"),
    [
        ((1, 1, 1), (1, 1, 1)),
        ((1, 1, 1), (1, 3, 4)),
        ((2, 2, 3), (2, 4, 5)),
        ((1, 3, 1), (1, 3, 2)),
        ((3, 1, 2), (3, 1, 2)),
    ],
)
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_masks(share, logits, target):
    """Focal and dice loss, enlarged and not, of masks that are empty, mixed and full."""
    truth = torch.rand(target, generator=torch.Generator().manual_seed(0)) < share
    check(lambda x: torch.stack(list(mask_losses(x, truth, 2.0).values())), numbers(logits))


@pytest.mark.parametrize("kind", ["none", "soft", "hard"])
@pytest.mark.parametrize("reduction", ["numel", "batchmean"])
@pytest.mark.parametrize(("batch", "classes"), [(1, 1), (1, 2), (3, 1), (2, 5), (4, 3)])
@pytest.mark.parametrize("soft_labels", [False, True])
def test_distillation(soft_labels, batch, classes, reduction, kind):
    """With a teacher that excludes a class of each image, where there are several."""
    teacher, given = (t.detach() for t in numbers((batch, classes), (batch, classes), seed=5))
    labels = given.softmax(1) if soft_labels else given.argmax(1)
    if classes > 1:
        teacher[:, 0] = -math.inf
    loss = DistillationLoss(kind, alpha=0.3, tau=2.5, reduction=reduction, label_smoothing=0.1)
    check(lambda a, b: loss(DistilledLogits(a, b), teacher, labels), numbers((batch, classes), (batch, classes)))
