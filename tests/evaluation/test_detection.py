"""A detector over a data set: the score does not depend on how images are batched, and is that of its predictions."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import regard
from regard.evaluation.detection import open_objects
from regard.evaluation.options import DetectionEvaluationOptions
from regard.metrics.detection import CocoDetections, evaluate_detections
from regard.structures.image_batch import of_equal_size
from regard.weights.load import best_threshold_of
from run_files import small_detector

pytestmark = pytest.mark.usefixtures("blank_charts")

SIZES = [(40, 60), (60, 40), (40, 60), (33, 47), (48, 48), (60, 40), (40, 61)]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Images of several sizes, with boxes of three classes."""
    root = tmp_path_factory.mktemp("mixed")
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        (root / split).mkdir()
        images, rows = [], []
        for number, (height, width) in enumerate(SIZES, start=1):
            pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / split / f"{number}.png")
            images.append({"id": number, "file_name": f"{number}.png", "height": height, "width": width})
            for label in (3, 7, 90):
                box = [float(rng.integers(0, width - 20)), float(rng.integers(0, height - 20)), 18.0, 15.0]
                row = {"id": len(rows) + 1, "image_id": number, "category_id": label, "bbox": box, "area": 270.0}
                rows.append({**row, "iscrowd": 0})
        classes = [{"id": c.id, "name": c.name} for c in small_detector().card.categories]
        (root / "annotations").mkdir(exist_ok=True)
        content = {"images": images, "annotations": rows, "categories": classes}
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


def test_batches_of_equal_size_hold_every_image_once():
    batches = of_equal_size(range(10, 17), SIZES, 2)
    assert batches == [[10, 12], [11, 15], [13], [14], [16]]
    assert of_equal_size([], [], 3) == []


@pytest.mark.parametrize("batch_size", [2, 7])
def test_scores_do_not_depend_on_the_batch_size(mixed, batch_size, tmp_path):
    options = DetectionEvaluationOptions(submission=tmp_path / "one.json")
    alone = regard.evaluate(small_detector(), mixed, options=options, workers=0)
    options = DetectionEvaluationOptions(submission=tmp_path / "many.json")
    together = regard.evaluate(small_detector(), mixed, options=options, batch_size=batch_size, workers=0)
    for name, value in alone.stats.items():
        assert together.stats[name] == pytest.approx(value, abs=1e-6, nan_ok=True)
    rows = [sorted(json.loads((tmp_path / f"{name}.json").read_text()), key=str) for name in ("one", "many")]
    assert len(rows[0]) == len(rows[1])
    torch.testing.assert_close(*(torch.tensor(sorted(row["score"] for row in part)) for part in rows))


def test_scores_of_the_predictions_are_those_of_the_evaluation(mixed, tmp_path):
    """`predict` without a threshold gives what `evaluate` scores, on images whose objects are cut by the border."""
    net, root = small_detector(), tmp_path / "data"
    shutil.copytree(mixed, root)
    with torch.no_grad():
        net.bbox_embed.last.bias += 1.5  # boxes that reach beyond the image
    path = root / "annotations" / "instances_val.json"
    content, columns = json.loads(path.read_text()), []
    content["annotations"] = []
    for image in content["images"]:
        found = regard.predict(net, root / "val" / image["file_name"], threshold=0.0)
        boxes = found.boxes.double().numpy()
        boxes = np.concatenate((boxes[:, :2], boxes[:, 2:] - boxes[:, :2]), axis=1)
        ids = np.array([net.card.categories[label].id for label in found.labels.tolist()])
        columns.append((np.full(len(ids), image["id"]), ids, boxes, found.scores.double().numpy()))
        for shift, query in enumerate((0, 2)):
            x, y, w, h = boxes[query].tolist()
            box = [x, y, w * (1 - 0.1 * shift), h]
            row = {"image_id": image["id"], "category_id": int(ids[query]), "bbox": box, "area": w * h, "iscrowd": 0}
            content["annotations"].append({"id": 1 + len(content["annotations"]), **row})
    path.write_text(json.dumps(content))
    data = open_objects(root, "val", panoptic=False, masks=False)
    detections = CocoDetections(*(np.concatenate(column) for column in zip(*columns, strict=True)))
    mine = evaluate_detections(data.to_coco(), detections).stats
    assert mine["AP"] > 0.3
    for name, value in regard.evaluate(net, root, workers=0).stats.items():
        assert mine[name] == pytest.approx(value, abs=1e-6, nan_ok=True)


def test_no_threshold_is_best_if_nothing_is_right(mixed, tmp_path):
    """Then a run takes 0.5, as a detector without a run."""
    net = small_detector()
    with torch.no_grad():
        net.bbox_embed.last.weight.zero_()
        net.bbox_embed.last.bias.fill_(-9.0)  # boxes of a thousandth of the image
    regard.evaluate(net, mixed, output=tmp_path, workers=0, quiet=True)
    assert not {"best_threshold", "best_f1"} & json.loads((tmp_path / "metrics.json").read_text()).keys()
    assert best_threshold_of(tmp_path) is None
