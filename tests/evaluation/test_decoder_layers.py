"""Detections of decoder layers: the AP of `evaluate` for each, and suppression as torchvision and loops have it."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from torchvision.ops import nms

import regard
from regard.data.coco.dataset import open_detection
from regard.data.generated.shapes import ShapesConfig, write_shapes
from regard.evaluation.decoder_layers import layer_detections, suppressed
from regard.metrics.detection import CocoDetections, evaluate_detections
from regard.models.configs.detr import DETRConfig
from regard.models.detr import DETR
from regard.structures.boxes import xyxy_to_cxcywh
from regard.structures.categories import ModelCard
from regard.structures.outputs import DetectionOutput

NOISE = (0.25, 0.08, 0.02)  # of the boxes of three layers


class Seer(DETR):
    """Finds what is there, with boxes that are less wrong from layer to layer; one of its layers, or all."""

    def __init__(self, dataset, sigmoid, only=None):
        config = DETRConfig(backbone="small", num_queries=10, num_classes=len(dataset.categories), sigmoid=sigmoid)
        super().__init__(config)
        self.card = ModelCard("seer", dataset.categories, short_side=32, max_size=64)
        self.samples, self.only = list(dataset), only
        self.seen = 0

    def forward(self, images, targets=None, *, masks=None):
        count = len(images.sizes)
        layers = [self.layer(self.samples[self.seen : self.seen + count], number) for number in range(len(NOISE))]
        self.seen += count
        layers = layers if self.only is None else [layers[self.only]]
        return layers[-1]._replace(auxiliary=layers[:-1])

    def layer(self, samples, number):
        logits = torch.full((len(samples), 10, self.class_embed.out_features), -9.0)
        boxes = torch.full((len(samples), 10, 4), 0.5)
        for row, sample in enumerate(samples):
            generator = torch.Generator().manual_seed(int(sample.image_id))
            found = xyxy_to_cxcywh(sample.boxes) / 32
            noise = torch.randn(10, 4, generator=generator)[: len(found)]
            boxes[row, : len(found)] = (found + NOISE[number] * noise * found[:, 2:].repeat(1, 2)).clamp(0.01, 0.99)
            for query, label in enumerate(sample.labels.tolist()):
                logits[row, query, label] = 3 * torch.rand((), generator=generator)
            if not self.config.sigmoid:
                logits[row, :, -1] = 1.0
        return DetectionOutput(logits, boxes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "shapes"
    write_shapes(ShapesConfig(train=1, val=12, size=32), path)
    return path


@pytest.mark.parametrize("sigmoid", [False, True])
def test_each_layer_has_the_ap_that_evaluate_gives_it(folder, sigmoid):
    dataset = open_detection(folder, "val")
    layers = layer_detections(Seer(dataset, sigmoid), dataset, batch_size=5, device=torch.device("cpu"))
    found = [evaluate_detections(dataset.to_coco(), layer).stats for layer in layers]
    assert len(found) == len(NOISE)
    for number, stats in enumerate(found):
        expected = regard.evaluate(Seer(dataset, sigmoid, only=number), folder, batch_size=4, workers=0, quiet=True)
        assert stats.keys() == expected.stats.keys()
        for name, value in stats.items():
            assert value == pytest.approx(expected.stats[name], abs=1e-6), name
    aps = [stats["AP"] for stats in found]
    assert all(b > a + 0.02 for a, b in pairwise(aps)) and 0 <= aps[0] < aps[-1] <= 1


def detections(count: int, seed: int) -> CocoDetections:
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 20, (count, 2))
    return CocoDetections(
        rng.integers(7, 10, count), rng.integers(1, 3, count), np.hstack((corner, rng.uniform(10, 20, (count, 2)))),
        rng.permutation(count) / count,
    )  # fmt: skip


def plain_suppression(found: CocoDetections, iou: float) -> list[int]:
    """Rows that are kept, by two loops."""
    kept: list[int] = []
    for row in np.argsort(-found.scores, kind="stable").tolist():
        x, y, w, h = found.boxes_xywh[row]
        for other in kept:
            u, v, p, q = found.boxes_xywh[other]
            same = all(ids[row] == ids[other] for ids in (found.image_ids, found.category_ids))
            shared = max(0, min(x + w, u + p) - max(x, u)) * max(0, min(y + h, v + q) - max(y, v))
            if same and shared / (w * h + p * q - shared) > iou:
                break
        else:
            kept.append(row)
    return sorted(kept)


@pytest.mark.parametrize("iou", [0.3, 0.5, 0.7])
def test_suppression_is_that_of_two_loops_and_of_torchvision(iou):
    found = detections(120, seed=1)
    kept = suppressed(found, iou)
    rows = plain_suppression(found, iou)
    assert 0 < len(rows) < 120
    for name in ("image_ids", "category_ids", "boxes_xywh", "scores"):
        assert (getattr(kept, name) == getattr(found, name)[rows]).all()
    theirs = []
    for key in {*zip(found.image_ids.tolist(), found.category_ids.tolist(), strict=True)}:
        of_key = np.flatnonzero((found.image_ids == key[0]) & (found.category_ids == key[1]))
        boxes = found.boxes_xywh[of_key].copy()
        boxes[:, 2:] += boxes[:, :2]
        theirs += of_key[nms(torch.from_numpy(boxes), torch.from_numpy(found.scores[of_key]), iou).numpy()].tolist()
    assert sorted(theirs) == rows


def test_suppression_of_nothing():
    assert len(suppressed(detections(0, seed=0))) == 0
