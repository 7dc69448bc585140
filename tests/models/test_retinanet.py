"""RetinaNet against torchvision's own on the same weights: scores, losses, detections; and what is ours."""

from __future__ import annotations

import math

import pytest
import torch
import torchvision

import regard.results.postprocess
from refusals import refused
from regard.attention import AugmentedConv2d
from regard.errors import ConfigError
from regard.losses import AnchorCriterion
from regard.models.build import build, create
from regard.models.configs.retinanet import RETINANET_PRESETS, RetinaNetConfig
from regard.models.retinanet import RetinaNet
from regard.results.postprocess import CANDIDATES, MAX_DETECTIONS, postprocess, score_queries
from regard.structures.boxes import cxcywh_to_xyxy
from regard.structures.image_batch import IMAGENET_MEAN, IMAGENET_STD

SIZES = [(64, 96), (90, 61)]  # (height, width) as the networks see them


@pytest.fixture(scope="module")
def theirs():
    """torchvision's model, with class scores far from each other, so that boxes suppress one another."""
    torch.manual_seed(0)
    net = torchvision.models.detection.retinanet_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=5, detections_per_img=10_000
    )
    with torch.no_grad():
        net.head.classification_head.cls_logits.bias.uniform_(-4, -2)
        net.head.classification_head.cls_logits.weight.mul_(8)
    # The images of the test come with the sizes that the networks see.
    net.transform.min_size, net.transform.max_size = (1,), 10_000
    net.transform.resize = lambda image, target: (image, target)
    return net.eval()


@pytest.fixture(scope="module")
def ours(theirs):
    net = build(RetinaNetConfig(num_classes=5), "mine").eval()
    net.load_state_dict({name.replace("backbone.fpn.", "fpn."): t for name, t in theirs.state_dict().items()})
    return net


@pytest.fixture
def images():
    g = torch.Generator().manual_seed(1)
    return [torch.rand(3, *size, generator=g) for size in SIZES]


def normalised(images):
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return [(image - mean) / std for image in images]


def targets_of(counts):
    """Random objects, and the same as torchvision takes them."""
    g, mine, others = torch.Generator().manual_seed(2), [], []
    for count, (height, width) in zip(counts, SIZES, strict=True):
        sides = 0.1 + 0.5 * torch.rand(count, 2, generator=g)
        centres = sides / 2 + (1 - sides) * torch.rand(count, 2, generator=g)
        labels = torch.randint(5, (count,), generator=g)
        boxes = torch.cat((centres, sides), 1)
        mine.append({"labels": labels, "boxes": boxes})
        scale = torch.tensor([width, height, width, height])
        others.append({"labels": labels, "boxes": cxcywh_to_xyxy(boxes * scale)})
    return mine, others


@pytest.mark.parametrize("counts", [(3, 6), (0, 4), (0, 0)])
def test_losses_are_torchvisions(ours, theirs, images, counts):
    mine, others = targets_of(counts)
    for net in (ours, theirs):
        net.train()
        for module in net.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval()  # or the statistics would move
    try:
        with torch.no_grad():
            expected = theirs(images, others)
            found = AnchorCriterion(5)(ours(normalised(images), mine), mine)
    finally:
        ours.eval(), theirs.eval()
    assert math.isclose(found["loss_ce"], expected["classification"], rel_tol=1e-6)
    assert math.isclose(found["loss_bbox"], expected["bbox_regression"], rel_tol=2e-6, abs_tol=1e-9)
    assert (found["loss_bbox"] > 0) == (sum(counts) > 0)


@pytest.mark.parametrize("candidates", [CANDIDATES, 10_000])
def test_detections_are_torchvisions(ours, theirs, images, candidates, monkeypatch):
    """torchvision keeps boxes outside of the image, clipped to nothing, also among the candidates of padded images."""
    images, sizes = (images[:1] * 2, SIZES[:1] * 2) if candidates == CANDIDATES else (images, SIZES)
    monkeypatch.setattr(regard.results.postprocess, "CANDIDATES", candidates)
    monkeypatch.setattr(theirs, "topk_candidates", candidates)
    with torch.no_grad():
        expected = theirs(images)
        output = ours(normalised(images))
    assert max(output.dense.levels) * 5 > CANDIDATES
    for (scores, labels, boxes), other in zip(postprocess(output, sizes, softmax=False), expected, strict=True):
        kept = (other["boxes"][:, 2:] > other["boxes"][:, :2]).all(1).nonzero()[:MAX_DETECTIONS, 0]
        assert 100 < len(kept) <= MAX_DETECTIONS
        torch.testing.assert_close(scores, other["scores"][kept], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(boxes, other["boxes"][kept], atol=1e-3, rtol=1e-5)
        assert torch.equal(labels, other["labels"][kept])


def test_boxes_are_clipped_to_their_own_image(ours, images):
    """Not to the batch: the second image is padded on the right, the first at the bottom."""
    with torch.no_grad():
        output = ours(normalised(images))
    corners = cxcywh_to_xyxy(output.boxes)
    assert corners.min() > -1e-6 and corners.max() < 1 + 1e-6
    assert not output.boxes.requires_grad
    outside = cxcywh_to_xyxy(output.dense.anchors)[:, 2] > SIZES[1][1]
    assert outside.any()


def test_an_object_has_one_label_unless_several_are_asked_for(ours, images):
    with torch.no_grad():
        output = ours(normalised(images))
    single = score_queries(output, softmax=False, multi_label=False)
    several = score_queries(output, softmax=False)
    for image in (0, 1):
        assert len(several.query[several.rows(image)].unique()) < len(several.rows(image))
        rows = single.rows(image)
        boxes = cxcywh_to_xyxy(output.boxes[image, single.query[rows]])
        overlap = torchvision.ops.box_iou(boxes, boxes).fill_diagonal_(0)
        assert overlap.max() <= 0.5 + 1e-6 and len(single.query[rows].unique()) == len(rows)
        assert (single.scores[rows].diff() <= 0).all()


def test_nothing_found_is_no_detection():
    net = create("retinanet_tiny", num_classes=3).eval()  # scores start at 0.01, below the minimum
    with torch.no_grad():
        output = net([torch.rand(3, 40, 30)])
    assert [len(column) for column in postprocess(output, [(40, 30)], softmax=False)[0]] == [0, 0, 0]


@pytest.mark.parametrize("name", ["retinanet_aa_tiny", "retinanet_aa_resnet50"])
def test_every_parameter_learns_from_images_without_objects_too(name):
    """Else processes that train together would wait for each other."""
    torch.manual_seed(0)
    net = create(name, num_classes=3).train()
    layers = [layer for layer in net.modules() if isinstance(layer, AugmentedConv2d)]
    assert len(layers) == (2 if name.endswith("tiny") else 13)
    if name.endswith("resnet50"):  # 640 pixels are 80 cells at stride 8, of which attention sees half; then 40 and 20
        assert [len(layer.relative.width_table) for layer in layers] == [79] * 4 + [79] * 6 + [39] * 3
    nothing = {"labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)}
    batch = [torch.rand(3, 64, 80), torch.rand(3, 50, 64)]
    criterion = AnchorCriterion(3)
    losses = criterion(net(batch), [nothing, nothing])
    criterion.total(losses).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("size", [(33, 64), (64, 64), (100, 37), (8, 8)])
def test_images_of_any_size(size):
    net = create("retinanet_aa_tiny", num_classes=3).eval()
    with torch.no_grad():
        output = net([torch.rand(3, *size)])
    assert sum(output.dense.levels) == output.logits.shape[1] == len(output.dense.anchors)
    assert output.boxes.isfinite().all()


def test_parameters_are_torchvisions(theirs):
    with torch.device("meta"):
        count = sum(p.numel() for p in create("retinanet_resnet50").parameters())
    extra = 9 * 86 * (256 * 9 + 1)  # rows of 86 more classes at nine anchors
    assert count == sum(p.numel() for p in theirs.parameters()) + extra


def test_attention_is_all_that_differs_between_the_tiny_ones():
    plain, augmented = (create(name, num_classes=3) for name in ("retinanet_tiny", "retinanet_aa_tiny"))
    differing = {name.rpartition(".")[0] for name in set(plain.state_dict()) ^ set(augmented.state_dict())}
    assert {name[: len("backbone.body.2.convs.0.0")] for name in differing} == {
        "backbone.body.2.convs.0.0", "backbone.body.4.convs.0.0",
    }  # fmt: skip


def test_settings_that_do_not_go_together():
    with refused(ConfigError, "channels", "44", "8", code="C05"):
        RetinaNetConfig(head_norm=True, channels=44)
    with refused(ConfigError, "anchor_size", "0", code="C08"):
        RetinaNetConfig(anchor_size=0)
    with refused(ConfigError, "feature_maps=4", "small", code="C03"):
        RetinaNet(RetinaNetConfig(backbone="small", feature_maps=4))
    with refused(ConfigError, "'aa_resnet5'"):
        RetinaNet(RetinaNetConfig(backbone="aa_resnet5"))
    assert all(name.startswith("retinanet_") for name in RETINANET_PRESETS)
