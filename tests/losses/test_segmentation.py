"""Losses of masks: against loops over pixels, transformers, and of matched queries alone."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from regard.losses import SetCriterion
from regard.losses.segmentation import mask_losses
from regard.structures.outputs import DetectionOutput


def test_the_formulas():
    """Each pixel by hand in double precision; logits are enlarged first."""
    g = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2, 3, 4, generator=g, dtype=torch.float64)
    targets = torch.rand(2, 6, 8, generator=g) < 0.4
    large = F.interpolate(logits[None], size=(6, 8), mode="bilinear", align_corners=False)[0]
    focal, dice = 0.0, 0.0
    for mask, truth in zip(large.tolist(), targets.tolist(), strict=True):
        pixels = [
            (1 / (1 + math.exp(-x)), t)
            for row, line in zip(mask, truth, strict=True)
            for x, t in zip(row, line, strict=True)
        ]
        of_pixel = [-0.25 * (1 - p) ** 2 * math.log(p) if t else -0.75 * p**2 * math.log(1 - p) for p, t in pixels]
        focal += sum(of_pixel) / len(of_pixel)
        both = sum(p for p, t in pixels if t)
        dice += 1 - (2 * both + 1) / (sum(p for p, _ in pixels) + sum(t for _, t in pixels) + 1)
    losses = mask_losses(logits, targets, 3.0)
    assert losses["loss_mask"].item() == pytest.approx(focal / 3, rel=1e-10)
    assert losses["loss_dice"].item() == pytest.approx(dice / 3, rel=1e-10)


def case(groups: int = 1) -> tuple[DetectionOutput, list[dict[str, torch.Tensor]]]:
    """Two images of different sizes, 6 queries in each group; the first image has three objects, the second one."""
    g = torch.Generator().manual_seed(1)
    q = 6 * groups
    boxes = 0.2 + 0.5 * torch.rand(2, q, 4, generator=g)
    output = DetectionOutput(
        torch.randn(2, q, 5, generator=g),
        boxes,
        [DetectionOutput(torch.randn(2, q, 5, generator=g), boxes.roll(1, 1))],
        masks=torch.randn(2, q, 5, 6, generator=g, requires_grad=True),
        num_groups=groups,
    )
    targets = [
        {
            "labels": torch.randint(4, (count,), generator=g),
            "boxes": 0.2 + 0.5 * torch.rand(count, 4, generator=g),
            "masks": torch.rand(count, *size, generator=g) < 0.5,
        }
        for count, size in ((3, (20, 16)), (1, (12, 24)))
    ]
    return output, targets


def test_as_transformers():
    theirs = pytest.importorskip("transformers.loss.loss_for_object_detection")
    output, targets = case()
    ours = SetCriterion(4)(output, targets)
    matcher = theirs.HungarianMatcher(class_cost=1, bbox_cost=5, giou_cost=2)
    criterion = theirs.ImageLoss(matcher, 4, eos_coef=0.1, losses=["masks"])
    predicted = {"logits": output.logits, "pred_boxes": output.boxes, "pred_masks": output.masks}
    renamed = [{"class_labels": t["labels"], "boxes": t["boxes"], "masks": t["masks"].float()} for t in targets]
    expected = criterion(predicted, renamed)
    for name in ("loss_mask", "loss_dice"):
        torch.testing.assert_close(ours[name], expected[name], rtol=1e-5, atol=1e-7)
    (mine,) = torch.autograd.grad(ours["loss_mask"] + ours["loss_dice"], output.masks)
    (other,) = torch.autograd.grad(expected["loss_mask"] + expected["loss_dice"], output.masks)
    torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("groups", [1, 2])
def test_matched_queries_alone_have_the_loss_of_all(groups):
    """Also with groups, of which the first counts."""
    output, targets = case(groups)
    asked = []

    def of(image, query):
        asked.append((image, query))
        return output.masks[image, query]

    whole = SetCriterion(4)(output, targets)
    some = SetCriterion(4)(output._replace(masks=None), targets, masks=of)
    assert {name: value.item() for name, value in some.items()} == {n: v.item() for n, v in whole.items()}
    ((image, query),) = asked
    assert len(image) == 4 and int(query.max()) < 6
    assert SetCriterion(4).total(some) > SetCriterion(4, mask_weight=0.0, dice_weight=0.0).total(some)


def test_images_without_objects_have_gradients_and_no_loss():
    output, targets = case()
    nothing = [{key: value[:0] for key, value in target.items()} for target in targets]
    losses = SetCriterion(4)(output, nothing)
    assert losses["loss_mask"].item() == losses["loss_dice"].item() == 0.0
    (gradient,) = torch.autograd.grad(losses["loss_mask"], output.masks)
    assert not gradient.any()


def test_without_masks_in_the_targets_there_is_no_loss():
    output, targets = case()
    plain = [{key: value for key, value in target.items() if key != "masks"} for target in targets]
    assert not {"loss_mask", "loss_dice"} & set(SetCriterion(4)(output, plain))
