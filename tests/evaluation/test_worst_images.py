"""The worst images: which they are, against plain loops and formulas."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from color_data import COLORS, write_colors
from regard.data.class_images.dataset import open_classification
from regard.data.coco.dataset import open_detection
from regard.data.coco.panoptic import open_panoptic
from regard.data.generated.shapes import ShapesConfig, write_shapes
from regard.evaluation.worst_images import (
    COUNT,
    WorstSegments,
    worst_predictions,
    worst_segments,
    write_worst_detections,
    write_worst_predictions,
    write_worst_segments,
)
from regard.metrics.detection import CocoDetections


def test_predictions_of_largest_loss():
    logits = 3 * torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(40) % 5
    worst = worst_predictions(logits, labels)
    losses = [-float(row[label].exp().div(row.exp().sum()).log()) for row, label in zip(logits, labels, strict=True)]
    assert [one.index for one in worst] == sorted(range(40), key=lambda i: -losses[i])[:COUNT]
    for one in worst:
        assert (one.truth, one.predicted) == (int(labels[one.index]), int(logits[one.index].argmax()))
        assert one.of_truth == pytest.approx(np.exp(-losses[one.index]), rel=1e-5)
    assert worst_predictions(torch.tensor([[1e4, 0.0]]), torch.tensor([1]))[0].of_truth == 0.0


def test_pictures_of_predictions(tmp_path):
    data = open_classification(write_colors(tmp_path / "c"), "val")
    logits = torch.eye(3)[[0] * len(data)]
    write_worst_predictions(data, worst_predictions(logits, data.labels), COLORS, tmp_path)
    content = json.loads((tmp_path / "worst_images.json").read_text())
    assert len(content["images"]) == min(COUNT, len(data)) == 10
    for row in content["images"]:
        with Image.open(tmp_path / "pictures" / row["picture"]) as picture:
            assert max(picture.size) > 100
        assert (tmp_path / row["file"]).is_file()


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes") / "data"
    write_shapes(ShapesConfig(train=2, val=14, size=32), folder)
    return open_detection(folder, "val")


def detections(truth, wrong):
    """Every object found, but in the images `wrong`, where the first is missed and something else is seen."""
    rows, first = [], set()
    for row in truth["annotations"]:
        image = row["image_id"]
        if image in wrong and image not in first:
            first.add(image)
            rows.append((image, row["category_id"], [0.0, 0.0, 1.0, 1.0], 0.9))
        else:
            rows.append((image, row["category_id"], row["bbox"], 0.8))
        rows.append((image, row["category_id"], [1.0, 1.0, 2.0, 2.0], 0.1))  # below the threshold
    return CocoDetections(*(np.array(column) for column in zip(*rows, strict=True)))


def test_images_with_mistakes_the_worst_first(shapes, tmp_path):
    truth = shapes.to_coco()
    wrong = shapes.image_ids[3:6]
    write_worst_detections(shapes, truth, detections(truth, set(wrong)), 0.5, tmp_path)
    content = json.loads((tmp_path / "worst_images.json").read_text())
    objects = {id: sum(row["image_id"] == id for row in truth["annotations"]) for id in wrong}
    f1 = {id: (objects[id] - 1) / objects[id] for id in wrong}  # one missed, one false
    names = dict(zip(shapes.image_ids, shapes.names, strict=True))
    assert [row["file"].rpartition("/")[2] for row in content["images"]] == [
        names[id].rpartition("/")[2] for id in sorted(wrong, key=lambda id: f1[id])
    ]
    assert [row["caption"].split(":")[0] for row in content["images"]] == [f"F1 {v:.2f}" for v in sorted(f1.values())]
    assert "0.50" in content["measure"] and len(list((tmp_path / "pictures").iterdir())) == 3


def test_nothing_found_at_all(shapes, tmp_path):
    none = CocoDetections(np.zeros(0, int), np.zeros(0, int), np.zeros((0, 4)), np.zeros(0))
    write_worst_detections(shapes, shapes.to_coco(), none, 0.5, tmp_path)
    rows = json.loads((tmp_path / "worst_images.json").read_text())["images"]
    assert len(rows) == COUNT and all(row["caption"].startswith("F1 0.00: 0 found") for row in rows)
    missed = [int(row["caption"].split()[4]) for row in rows]
    assert missed == sorted(missed, reverse=True)


def test_worst_segments_and_their_pictures(tmp_path):
    """Truth as a prediction, with fewer segments from image to image: the emptier, the worse."""
    write_shapes(ShapesConfig(train=2, val=14, size=32), tmp_path / "data")
    data = open_panoptic(tmp_path / "data", "val")
    images = []
    for index in range(len(data)):
        truth = data.segments(index)
        images.append(WorstSegments(index, truth, truth, quality=1 - index / 20, missed=index, false=0))
    worst = worst_segments(images)
    assert [one.index for one in worst] == list(range(13, 3, -1))
    assert worst_segments(images[:1]) == []
    write_worst_segments(data, worst, tmp_path)
    rows = json.loads((tmp_path / "worst_images.json").read_text())["images"]
    assert [row["file"] for row in rows] == [str(data.image_folder / data.names[one.index]) for one in worst]
    assert rows[0]["caption"] == "PQ 0.35: 13 segments missed, 0 false"
    with Image.open(tmp_path / "pictures" / "worst_1.jpg") as picture:
        assert picture.width > 400
