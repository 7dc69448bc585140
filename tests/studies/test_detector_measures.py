"""Measures of runs of detectors: evaluate's AP, boxes and attention counted by hand, copies found by one who sees."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace

import pytest
import torch
from PIL import Image

import regard
from charts import without_charts
from refusals import refused
from regard.data.coco.dataset import open_detection
from regard.data.generated.shapes import data_folder, parse_shapes, shapes_folder
from regard.errors import ConfigError
from regard.explanations.query_places import query_places
from regard.models.configs.detr import DETRConfig
from regard.models.detr import DETR
from regard.structures.boxes import xyxy_to_cxcywh
from regard.structures.categories import ModelCard
from regard.structures.image_batch import ImageBatch
from regard.structures.outputs import DetectionOutput
from regard.studies import detector_measures
from regard.studies.detector_measures import attention, copies, decoder_layers, draw_training, explained, query_slots

pytestmark = pytest.mark.usefixtures("blank_charts")
DATA = "shapes:size=64,train=64,val=6,max_objects=2"


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REGARD_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(scope="module")
def run(home, tmp_path_factory):
    small = {
        "batch_size": 16, "workers": 0, "evaluate_every": 1, "device": "cpu", "augmentation": "flip", "ema": 0,
        "warmup_steps": 0, "model.embed_dim": 32, "model.num_heads": 2, "model.feedforward_dim": 32,
    }  # fmt: skip
    folder = tmp_path_factory.mktemp("runs") / "run"
    with without_charts():
        return regard.train("detr_tiny", DATA, epochs=2, output=folder, overrides=small, quiet=True).folder


def test_the_last_layer_has_the_ap_of_evaluate(run):
    found = decoder_layers(run, DATA, None)
    assert set(found) == {"AP_1", "AP_1_suppressed", "AP_2", "AP_2_suppressed"}
    stats = regard.evaluate(run, DATA, workers=0, quiet=True).stats
    assert found["AP_2"] == pytest.approx(stats["AP"], abs=1e-6)
    # The same number as in the table of the run.
    assert found["AP_2"] == pytest.approx(json.loads((run / "metrics.json").read_text())["stats"]["AP"], abs=1e-6)
    assert all(0 <= value <= 1 for value in found.values())


def test_centres_explained_by_their_query():
    def boxes(*places):
        return torch.tensor([[[x, y, 0.1, 0.1] for x, y in image] for image in places])

    assert explained(boxes([(0, 0), (1, 1)], [(0, 0), (1, 1)])) == 1
    assert explained(boxes([(0, 0), (1, 1)], [(1, 1), (0, 0)])) == pytest.approx(0)
    # Around the mean of 0.5: 0.25 + 0.09 + 0.09 + 0.25; around 0.1 and 0.9: four times 0.01.
    assert explained(boxes([(0, 0), (0.8, 0)], [(0.2, 0), (1, 0)])) == pytest.approx(1 - 0.04 / 0.68)
    assert math.isnan(explained(boxes([(0.5, 0.5)], [(0.5, 0.5)])))


def test_slots_are_counted(run):
    found = query_slots(run, DATA, None)
    dataset = open_detection(data_folder(DATA), "val")
    boxes = query_places(regard.load(run), [dataset.image(i) for i in range(len(dataset))]).boxes
    counts = dict.fromkeys(("small", "wide", "high"), 0)
    for _, _, width, height in boxes.flatten(0, 1).tolist():
        counts["small" if width * height < 0.02 else "wide" if width >= height else "high"] += 1
    assert {name: found[name] * 60 for name in counts} == pytest.approx(counts) and sum(counts.values()) == 60
    assert found["explained"] == pytest.approx(explained(boxes), abs=1e-6) and 0 <= found["explained"] <= 1
    assert (run / "pictures" / "query_places.png").is_file()


def test_attention_in_the_box_is_counted_cell_by_cell(run):
    found = attention(run, DATA, None)
    net, dataset = regard.load(run), open_detection(data_folder(DATA), "val")
    inside, cells = [], []
    for index in range(len(dataset)):
        maps = net.eval().attention(ImageBatch.from_images([dataset.image(index)]).normalized())
        query = int(maps.output.logits[0].amax(-1).argmax())
        cx, cy, width, height = maps.output.boxes[0, query].tolist()
        h, w = maps.feature_size
        weights = maps.decoder_cross[-1][0, :, query].mean(0).tolist()
        hit = [
            row * w + column
            for row, column in itertools.product(range(h), range(w))
            if cx - width / 2 <= (column + 0.5) / w <= cx + width / 2
            and cy - height / 2 <= (row + 0.5) / h <= cy + height / 2
        ]
        inside.append(sum(weights[cell] for cell in hit))
        cells.append(len(hit) / (h * w))
    assert found["inside"] == pytest.approx(sum(inside) / 6, abs=1e-5) and 0 < found["inside"] <= 1
    assert found["area"] == pytest.approx(sum(cells) / 6) and 0 < found["area"] < 1


def test_attention_pictures_one_below_the_other(run, tmp_path):
    steps = sorted(int(path.stem.split("_")[-1]) for path in (run / "pictures").glob("attention_step_*.jpg"))
    assert steps == [4, 8]
    draw_training(run / "pictures")
    heights = [Image.open(run / "pictures" / f"attention_step_{step}.jpg").height for step in steps]
    assert Image.open(run / "pictures" / "attention_over_training.jpg").height > sum(heights)
    # By number, not by name: red, green, blue from top to bottom.
    for step, color in ((1000, "blue"), (200, "lime"), (30, "red")):
        Image.new("RGB", (60, 40), color).save(tmp_path / f"attention_step_{step}.jpg")
    draw_training(tmp_path)
    sheet = Image.open(tmp_path / "attention_over_training.jpg")
    column = [sheet.getpixel((sheet.width // 2, y)) for y in range(sheet.height)]
    strong = [pixel.index(max(pixel)) for pixel in column if max(pixel) > 200 and min(pixel) < 60]
    assert [channel for channel, _ in itertools.groupby(strong)] == [0, 1, 2]
    (tmp_path / "none").mkdir()
    draw_training(tmp_path / "none")
    assert not list((tmp_path / "none").iterdir())


class FindsFour(DETR):
    """Finds at most four objects of an image, and one that is not there."""

    def __init__(self, datasets):
        self.samples = itertools.chain.from_iterable(datasets)
        categories = datasets[0].categories
        super().__init__(DETRConfig(backbone="small", num_queries=10, num_classes=len(categories)))
        self.card = ModelCard("four", categories, short_side=96, max_size=96)

    def forward(self, images, targets=None, *, masks=None):
        logits = torch.zeros(len(images.sizes), 10, self.config.num_classes + 1)
        logits[..., -1] = 9.0
        boxes = torch.full((len(images.sizes), 10, 4), 0.01)
        for row in range(len(images.sizes)):
            sample = next(self.samples)
            for query, (label, box) in enumerate(zip(sample.labels[:4].tolist(), sample.boxes, strict=False)):
                logits[row, query, label] = 20.0
                boxes[row, query] = xyxy_to_cxcywh(box) / 96
            logits[row, 9, 0] = 20.0
        return DetectionOutput(logits, boxes)


def test_copies_of_one_who_counts_to_four(monkeypatch, tmp_path):
    data = "shapes:size=96,min_scale=0.06,max_scale=0.08,classes=2"
    monkeypatch.setattr(detector_measures, "COPIES_IMAGES", 5)
    drawn, sets = parse_shapes(data), []
    for count in detector_measures.COPIES:
        config = replace(drawn, one_class=True, min_objects=count, max_objects=count, train=1, val=5, seed=1)
        sets.append(open_detection(shapes_folder(config), "val"))
        assert all(len(sample.labels) == count and len(set(sample.labels.tolist())) == 1 for sample in sets[-1])
    monkeypatch.setattr(detector_measures, "_load_detr", lambda _: (FindsFour(sets), torch.device("cpu")))
    found = copies(tmp_path, data, None)
    assert found == pytest.approx({"found_1": 1, "found_4": 1, "found_8": 4 / 8, "found_20": 4 / 20})


def test_what_cannot_be_measured(run, tmp_path):
    refused(ConfigError, lambda: copies(run, str(tmp_path), None), "C09", str(tmp_path))
    refused(ConfigError, lambda: copies(run, "digits", None), "C09", "digits")
