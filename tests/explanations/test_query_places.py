"""Places of queries: the model's own boxes, in the order of the images, and dots where they belong."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor

from detr_cases import SMALL, randomized
from refusals import refused
from regard.data.samples import Sample
from regard.data.transforms.detection import EvaluationResize
from regard.errors import ConfigError, DataError
from regard.explanations.explain import QueryPlaces, explain_queries
from regard.explanations.query_places import query_places
from regard.metrics.charts.style import BLUE, GREEN, ORANGE
from regard.models.build import create
from regard.structures.categories import Category, ModelCard
from regard.structures.image_batch import ImageBatch


@pytest.fixture(scope="module")
def net():
    net = randomized(dataclasses.replace(SMALL, query_groups=2))
    net.card = ModelCard("detr_small", (Category(0, "thing"),), short_side=64, max_size=128)
    return net


def photos():
    return [np.random.default_rng(i).integers(0, 255, (*size, 3), dtype=np.uint8) for i, size in enumerate(SIZES)]


SIZES = ((48, 80), (100, 40), (64, 64))


def test_boxes_are_those_of_the_model(net, tmp_path):
    for number, pixels in enumerate(photos()):
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    net.train()
    found = query_places(net, photos())
    assert net.training
    net.eval()
    assert found.boxes.shape == (len(SIZES), SMALL.num_queries, 4)  # the first group alone
    for pixels, boxes in zip(photos(), found.boxes, strict=True):
        resized = EvaluationResize(64, 128)(Sample(torch.from_numpy(pixels).permute(2, 0, 1))).image
        with torch.no_grad():
            expected = net(ImageBatch.from_images([resized]).normalized()).boxes[0]
        torch.testing.assert_close(boxes, expected)
    assert (found.boxes[0] - found.boxes[1]).abs().max() > 1e-3  # the order can be told
    torch.testing.assert_close(explain_queries(net, tmp_path).boxes, found.boxes)


def test_what_cannot_be_shown(net, tmp_path):
    net.train()
    with refused(DataError, tmp_path / "missing.png", code="I29"):
        query_places(net, [*photos(), tmp_path / "missing.png"])
    assert net.training
    net.eval()
    with refused(ConfigError, "images", code="C09"):
        query_places(net, [])
    with refused(ConfigError, "resnet20", "queries", code="C09"):
        explain_queries(create("resnet20", num_classes=3), tmp_path)


@pytest.mark.parametrize(
    ("box", "color"),
    [((0.1, 0.1), GREEN), ((0.19, 0.1), GREEN), ((0.4, 0.2), ORANGE), ((0.2, 0.4), BLUE)],
)
def test_a_dot_has_the_color_of_its_size_and_its_place(tmp_path, box, color):
    """The centre of the dot moves right and down with that of the box."""
    seen = []
    for number, (x, y) in enumerate(((0.25, 0.25), (0.75, 0.25), (0.25, 0.75))):
        path = QueryPlaces(torch.tensor([[[x, y, *box]]])).save(tmp_path / f"{number}.png")
        pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
        colored = pixels.max(-1) - pixels.min(-1) > 60
        assert colored.any()
        strongest = pixels[colored][np.ptp(pixels[colored], axis=-1).argmax()]
        assert _hue(strongest) @ _hue(ImageColor.getrgb(color)) > 0.99  # of blue and green: 0.97
        seen.append(np.argwhere(colored).mean(0))
    (y0, x0), (y1, x1), (y2, x2) = seen
    assert x1 - x0 > 50 and abs(y1 - y0) < 1 and y2 - y0 > 50 and abs(x2 - x0) < 1


def _hue(color):
    """The direction from white to a colour: the same however transparent."""
    away = 255.0 - np.array(color)
    return away / np.linalg.norm(away)


def test_at_most_twenty_squares(tmp_path):
    sizes = [Image.open(QueryPlaces(torch.rand(3, q, 4)).save(tmp_path / f"{q}.png")).size for q in (5, 20, 100)]
    assert sizes[0][1] < sizes[1][1] and sizes[1] == sizes[2]
