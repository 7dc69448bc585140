"""Explanations of DETR in all its forms, at the right pixels, and whatever stands beside the image in its batch."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

import regard
from detr_cases import SMALL, randomized
from regard.attention.augmented_conv import AugmentedConv2d
from regard.batches import ImageBatch
from regard.categories import Category, ModelCard
from regard.data.samples import Sample
from regard.data.transforms import EvaluationResize
from regard.explanations.detr import covered
from regard.explanations.recording import AttentionRecorder


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
        for look in found.looks:
            assert look.weights.shape == cells and (look.weights >= 0).all()
            if what == "relevance":
                assert look.weights.max() > 0
            else:
                assert abs(look.weights.sum().item() - 1) < 1e-5


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
    for fused, plain in zip(found[0].looks, found[1].looks, strict=True):
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
