"""Explanations of DETR in all its forms, at the right pixels, and whatever stands beside the image in its batch."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

import regard
from detr_cases import SMALL, randomized
from refusals import refused
from regard.attention.augmented_conv import AugmentedConv2d
from regard.data.samples import Sample
from regard.data.transforms.detection import EvaluationResize
from regard.errors import ConfigError
from regard.explanations.detr import covered
from regard.explanations.recording import AttentionRecorder
from regard.structures.categories import Category, ModelCard
from regard.structures.image_batch import ImageBatch


def small(**changes):
    net = randomized(dataclasses.replace(SMALL, **changes))
    with torch.no_grad():
        net.class_embed.bias.fill_(2)
    net.card = ModelCard("detr_small", tuple(Category(i, f"class{i}") for i in range(4)), short_side=64, max_size=128)
    return net


def photo(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    "changes",
    [
        {"anchors": True, "query_groups": 3, "denoising_groups": 2, "sigmoid": True},
        {"encoder_layers": 0, "query_groups": 2},
        {"position_encoding": "learned", "norm_first": True},
        {"masks": True, "backbone": "resnet18"},
    ],
)
def test_every_kind_of_every_form(changes):
    net = small(**changes)
    cells = (2, 4) if net.config.backbone == "resnet18" else (8, 14)
    for what in ("decoder", "heads", "encoder", "layers", "relevance"):
        if what == "encoder" and net.config.encoder_layers == 0:
            continue
        found = regard.explain(net, photo(48, 80), what, threshold=0.0)
        assert len(found) > 0
        for saliency in found.maps:
            assert saliency.weights.shape == cells and (saliency.weights >= 0).all()
            if what == "relevance":
                assert saliency.weights.max() > 0
            else:
                assert abs(saliency.weights.sum().item() - 1) < 1e-5


def test_attention_of_the_backbone_is_not_the_transformers():
    """Maps of 16 x 24 cells take fused attention, which is recorded; written out by `broadcast` it is not."""
    net = small(backbone="aa_resnet20")
    layers = [module for module in net.modules() if isinstance(module, AugmentedConv2d)]
    found = []
    for method in ("fused", "broadcast"):
        for layer in layers:
            layer.method = method
        with AttentionRecorder() as recorder, torch.no_grad():
            net([torch.zeros(3, 64, 96)])
        assert len(recorder.calls) == 2 + 2 * 3 + (len(layers) if method == "fused" else 0)
        found.append(regard.explain(net, photo(64, 96), "relevance", threshold=0.0))
    for fused, plain in zip(found[0].maps, found[1].maps, strict=True):
        scale = plain.weights.max()
        torch.testing.assert_close(fused.weights / scale, plain.weights / scale, atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_neighbours_and_padding_do_not_matter():
    """The weights of an image are the same beside any other of the batch, and none are in its padding."""
    net = small()
    g = torch.Generator().manual_seed(0)
    one, *others = (torch.randn(3, 64, 48, generator=g), *(torch.randn(3, 56, 72, generator=g) for _ in range(2)))
    first, second = (net.attention(ImageBatch.from_images([one, other])) for other in others)
    height, width = first.feature_size
    for a, b in zip((first.encoder, first.decoder_cross), (second.encoder, second.decoder_cross), strict=True):
        assert (a[:, 1] - b[:, 1]).abs().max() > 1e-3
        torch.testing.assert_close(a[:, 0], b[:, 0], atol=1e-6, rtol=1e-5)
        grid = a[:, 0].unflatten(-1, (height, width))
        assert (grid[..., 48 // 8 :] == 0).all()
        torch.testing.assert_close(grid[..., : 48 // 8].sum((-2, -1)), torch.ones(grid.shape[:-2]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [(48, 80), (120, 50), (64, 64)])
def test_a_cell_lies_over_the_pixels_that_change_it(size):
    """A patch of the original is painted over: what changes of the feature map lies there, to within a cell.

    Not closer: strided convolutions begin at the first pixel of a cell, so that cells answer to what is up to half a
    cell above and left of their middle.
    """
    net = small()
    height, width = size
    image = photo(*size)
    before, seen = _features(net, image)
    h, w = before.shape[-2:]
    x0, y0, x1, y1 = covered(net, (h, w), seen, size)
    across, down = (x1 - x0) / w, (y1 - y0) / h
    rows, columns = torch.meshgrid(torch.arange(h) + 0.5, torch.arange(w) + 0.5, indexing="ij")
    for share_y, share_x in ((0.2, 0.8), (0.5, 0.5), (0.8, 0.3)):
        y, x = int(share_y * height), int(share_x * width)
        painted = image.copy()
        painted[y - 2 : y + 3, x - 2 : x + 3] = 255 * (image[y, x] < 128)
        change = (_features(net, painted)[0] - before).square().sum(0)
        share = change / change.sum()
        assert abs(y0 + (share * rows).sum() * down - (y + 0.5)) < down
        assert abs(x0 + (share * columns).sum() * across - (x + 0.5)) < across


def _features(net, pixels):
    """The backbone's last map of an image, and the size at which the model sees it."""
    resized = EvaluationResize(64, 128)(Sample(torch.from_numpy(pixels).permute(2, 0, 1))).image
    batch = ImageBatch.from_images([resized]).normalized()
    with torch.no_grad():
        return net.backbone(batch.pixels)[-1][0], batch.sizes[0]


def test_boxes_and_points_are_pixels_of_the_image():
    """Of an image that is no square: boxes are what is predicted, of each layer those of that layer."""
    net, image = small(), photo(40, 120)
    predicted = regard.predict(net, image, threshold=0.0)
    best = predicted.boxes[predicted.scores.argsort(descending=True)]
    found = regard.explain(net, image, threshold=0.0)
    boxes = torch.cat([saliency.boxes for saliency in found.maps])
    assert len(boxes) == 5 and (boxes[:, None] - best).abs().amax(-1).amin(1).max() < 1e-3
    assert boxes[:, [0, 2]].max() > 60  # beyond the height
    batch = ImageBatch.from_images([EvaluationResize(64, 128)(Sample(torch.from_numpy(image).permute(2, 0, 1))).image])
    with torch.no_grad():
        output = net.eval()(batch.normalized())
    layers = regard.explain(net, image, "layers", threshold=0.0).maps
    for layer, saliency in zip([*output.auxiliary, output], layers, strict=True):
        x, y, w, h = (layer.boxes[0].double() * torch.tensor([120, 40, 120, 40])).unbind(-1)
        corners = torch.stack((x - w / 2, y - h / 2, x + w / 2, y + h / 2), dim=-1)
        corners = corners.clamp(min=torch.zeros(4), max=torch.tensor([120, 40, 120, 40]))
        assert (saliency.boxes[:, None].double() - corners).abs().amax(-1).amin(1).max() < 1e-3
    assert not torch.allclose(layers[0].boxes, layers[-1].boxes, atol=0.1)


def test_heads_are_those_of_the_smallest_detection_at_the_point():
    net, image = small(), photo(40, 120)
    boxes = torch.cat([saliency.boxes for saliency in regard.explain(net, image, threshold=0.0).maps])
    x, y = ((boxes[0, :2] + boxes[0, 2:]) / 2).tolist()
    inside = [b for b in boxes if b[0] <= x < b[2] and b[1] <= y < b[3]]
    smallest = min(inside, key=lambda b: float((b[2] - b[0]) * (b[3] - b[1])))
    saliency = regard.explain(net, image, "heads", threshold=0.0, point=(x, y)).maps[0]
    torch.testing.assert_close(saliency.boxes[0], smallest)


def test_places_in_one_cell_have_one_map():
    """Two maps of the same cell would be the same."""
    net, image = small(), photo(40, 120)
    with torch.no_grad():
        net.bbox_embed.last.weight.zero_()
        net.bbox_embed.last.bias.zero_()  # all boxes in the middle
    assert len(regard.explain(net, image, threshold=0.0)) == 5
    assert len(regard.explain(net, image, "encoder", threshold=0.0)) == 1


def test_what_is_explained_is_what_is_predicted():
    net, image = small(sigmoid=True), photo(40, 120)
    with torch.no_grad():
        net.class_embed.bias.fill_(-0.9)
    assert len(regard.explain(net, image, threshold=0.3)) == 5  # all between 0.3 and 0.5
    assert len(regard.explain(net, image)) == len(regard.predict(net, image)) == 0


def test_the_caller_finds_all_as_it_was():
    """Modes of every part, and rows that sum to 1 under the caller's autocast."""
    net, image = small(), photo(40, 120)
    net.train()
    net.backbone.eval()
    modes = [module.training for module in net.modules()]
    with torch.autocast("cpu", torch.bfloat16):
        found = regard.explain(net, image, threshold=0.0)
    regard.predict(net, image)
    assert [module.training for module in net.modules()] == modes and any(modes) and not all(modes)
    assert all(abs(saliency.weights.sum().item() - 1) < 1e-5 for saliency in found.maps)


def test_the_encoder_is_kept_where_it_is_shown():
    net = small()
    batch = ImageBatch.from_images([torch.zeros(3, 64, 96)])
    assert net.attention(batch, encoder=False).encoder is None and net.attention(batch).encoder is not None


def test_a_compiled_model_is_explained_as_it_is():
    net, image = small(), photo(40, 120)
    expected = regard.explain(net, image, threshold=0.0)
    found = regard.explain(torch.compile(net), image, threshold=0.0)
    assert all(torch.equal(a.weights, b.weights) for a, b in zip(found.maps, expected.maps, strict=True))


@pytest.mark.parametrize("point", [(64.0, 3.0), (-1.0, 3.0), (3.0, 48.0)])
def test_a_point_outside_the_image_is_told(point):
    with refused(ConfigError, f"{point[0]:g} {point[1]:g}", "64x48", code="C03"):
        regard.explain(regard.create("detr_tiny"), np.zeros((48, 64, 3), np.uint8), "heads", threshold=0.0, point=point)
