"""Places of queries: the model's own boxes, in the order of the images, and dots where they belong."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

import regard
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

THINGS = tuple(Category(number, f"thing {number}") for number in range(SMALL.num_classes))


@pytest.fixture(scope="module")
def net():
    net = randomized(dataclasses.replace(SMALL, query_groups=2))
    net.card = ModelCard("detr_small", THINGS, short_side=64, max_size=128)
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


def test_scores_and_classes_are_those_of_predict(net, tmp_path):
    """Each query with its own; one that was dropped as a duplicate has found nothing."""
    found = query_places(net, photos())
    assert found.threshold == 0.5 and found.names == tuple(thing.name for thing in THINGS)
    for pixels, scores, labels in zip(photos(), found.scores, found.labels, strict=True):
        expected = regard.predict(net, pixels, threshold=0)
        best, order = scores.sort(descending=True, stable=True)
        torch.testing.assert_close(best[: len(expected)], expected.scores)
        assert sorted(labels[order][: len(expected)].tolist()) == sorted(expected.labels.tolist())
    found.save(tmp_path / "places.npz")
    with np.load(tmp_path / "places.npz") as stored:
        assert (stored["boxes"].shape, stored["scores"].shape, stored["labels"].shape) == ((3, 5, 4), (3, 5), (3, 5))


def places(boxes, scores=None, labels=None, names=("cat", "dog", "a name that is long", "$x_"), threshold=0.5):
    shape = boxes.shape[:2]
    scores = torch.ones(shape) if scores is None else torch.tensor(scores)
    labels = torch.zeros(shape, dtype=torch.int64) if labels is None else torch.tensor(labels)
    return QueryPlaces(boxes, scores, labels, names, threshold)


def test_titles_tell_what_each_query_found():
    scores = [[0.9, 0.1, 0.6, 0.6], [0.6, 0.04, 0.2, 0.6], [0.2, 0.1, 0.5, 0.6], [0.7, 0.2, 0.5, 0.6]]
    labels = [[0, 0, 3, 0], [1, 0, 0, 1], [2, 0, 0, 2], [0, 1, 0, 0]]
    found = places(torch.rand(4, 4, 4), scores, labels)
    assert [found.title(query) for query in range(4)] == [
        "query 0: 3 found, best 0.90\n2 cat, 1 dog",
        "query 1: none found\nbest 0.20 dog",
        "query 2: 1 found, best 0.60\n1 \\$x_",  # 0.5 is not above 0.5
        "query 3: 4 found, best 0.60\n2 cat, 1 dog +1",
    ]


@pytest.fixture
def figures(monkeypatch):
    made = []
    monkeypatch.setattr("regard.metrics.charts.style.save", lambda figure, path: made.append(figure) or path)
    return made


def dots(axes):
    """Colour, opacity and places of the dots that are drawn."""
    lines = [(line.get_color(), line.get_alpha(), line.get_xydata().tolist()) for line in axes.lines]
    return [line for line in lines if line[2]]


@pytest.mark.parametrize(
    ("box", "color"),
    [((0.1, 0.1), GREEN), ((0.19, 0.1), GREEN), ((0.4, 0.2), ORANGE), ((0.2, 0.4), BLUE)],
)
def test_a_dot_has_the_color_of_its_size_and_its_place(figures, box, color):
    """Full for an object, pale for another box; the axes run right and down, as those of images."""
    boxes = torch.tensor([[[0.25, 0.75, *box]], [[0.5, 0.125, *box]]], dtype=torch.float64)
    places(boxes, [[0.9], [0.3]]).save("x.png")
    axes = figures[0].axes[0]
    (pale, full) = sorted(dots(axes), key=lambda dot: dot[1])
    assert (pale[0], full[0], pale[2], full[2]) == (color, color, [[0.5, 0.125]], [[0.25, 0.75]])
    assert pale[1] < 0.5 < full[1] and axes.get_xlim() == (0, 1) and axes.get_ylim() == (1, 0)


def test_the_legend_names_the_colors_and_the_threshold(figures):
    places(torch.rand(3, 30, 4), threshold=0.034).save("x.png")
    (legend,) = figures[0].legends
    shown = {
        text.get_text(): handle.get_color() for text, handle in zip(legend.texts, legend.legend_handles, strict=True)
    }
    assert shown == {"less than 2% of the image": GREEN, "larger and wide": ORANGE, "larger and high": BLUE}
    title = figures[0].get_suptitle()
    assert "first 20 of 30 queries in 3 images" in title and "0.034" in title
    assert figures[0].axes[19].get_title().startswith("query 19: 3 found")


def test_at_most_twenty_squares(tmp_path):
    sizes = [Image.open(places(torch.rand(3, q, 4)).save(tmp_path / f"{q}.png")).size for q in (5, 20, 100)]
    assert sizes[0][1] < sizes[1][1] and sizes[1] == sizes[2]
