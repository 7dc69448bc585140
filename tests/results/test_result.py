"""What the three kinds of results promise together."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import regard
from refusals import refused
from regard.errors import ConfigError, MachineError
from regard.results.result import Rejected, Result
from regard.structures.categories import Category
from regard.structures.segments import PanopticSegments

CATEGORIES = (Category(7, "cat"), Category(3, "grass", is_thing=False), Category(90, "Waschbär"))
PIXELS = torch.full((3, 8, 10), 200, dtype=torch.uint8)
IDS = torch.zeros(8, 10, dtype=torch.int64)
IDS[:4], IDS[4:, :5] = 1, 2


def results() -> dict[str, Result]:
    scores, labels = torch.tensor([0.75, 0.5]), torch.tensor([2, 0])
    boxes = torch.tensor([[1.0, 2, 3, 4], [0, 0, 5, 5]])
    return {
        "Detections": regard.Detections(scores, labels, boxes, CATEGORIES, (8, 10), path="a.png", image=PIXELS),
        "Segmentation": regard.Segmentation(
            PanopticSegments(IDS, labels, scores, CATEGORIES), path="a.png", image=PIXELS
        ),
        "Classification": regard.Classification(
            torch.tensor([0.25, 0.0, 0.75]), CATEGORIES, (8, 10), path="a.png", image=PIXELS
        ),
    }


@pytest.mark.parametrize("name", ["Detections", "Segmentation", "Classification"])
def test_results_agree(name, tmp_path):
    result = results()[name]
    rows = result.to_dicts()
    assert len(result) == len(rows) >= 2 and list(result) == rows == [result[i] for i in range(len(result))]
    assert result[-1] == rows[-1] and json.loads(result.to_json()) == rows
    with pytest.raises(IndexError):
        result[len(result)]
    first = result[0]
    assert (first["label"], first["label_id"], first["score"]) == ("Waschbär", 2, 0.75)
    assert all(CATEGORIES[row["label_id"]].name == row["label"] and 0 <= row["score"] <= 1 for row in rows)
    pytest.importorskip("pandas")
    table = result.to_pandas()
    assert table.columns[0] == "path" and table["path"].tolist() == ["a.png"] * len(rows)
    assert table["label"].tolist() == [row["label"] for row in rows]
    assert table["label_id"].tolist() == [row["label_id"] for row in rows] and "score" in table
    result.save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as saved:
        assert saved.size == result.plot().size
    assert repr(result).startswith(f"{name}(") and "8x10" in repr(result)


PHOTO = torch.arange(3 * 8 * 10, dtype=torch.uint8).reshape(3, 8, 10)


def test_crops_are_the_pixels_of_the_boxes():
    boxes = torch.tensor([[1.2, 2.5, 3.1, 4.0], [-5, -5, 2, 3], [20, 20, 30, 30], [4, 4, 4, 4]])
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6])
    found = regard.Detections(scores, torch.zeros(4), boxes, CATEGORIES, (8, 10), image=PHOTO)
    crops = [np.asarray(crop) for crop in found.crops()]
    pixels = PHOTO.permute(1, 2, 0).numpy()
    places = ((1, 2, 4, 4), (0, 0, 2, 3), (9, 7, 10, 8), (4, 4, 5, 5))  # beyond the image: its nearest pixel
    for crop, (x0, y0, x1, y1) in zip(crops, places, strict=True):
        assert crop.dtype == np.uint8 and np.array_equal(crop, pixels[y0:y1, x0:x1])
    assert found[:0].crops() == []


def test_crops_of_segments():
    segments = PanopticSegments(IDS, torch.tensor([2, 0]), torch.tensor([0.75, 0.5]), CATEGORIES)
    sizes = [crop.size for crop in regard.Segmentation(segments, image=PHOTO).crops()]
    assert sizes == [(10, 4), (5, 4)]


@pytest.mark.parametrize("name", ["Detections", "Segmentation"])
def test_filter(name):
    result = results()[name]
    assert [row["label"] for row in result.filter("cat")] == ["cat"]
    assert [row["label"] for row in result.filter(["cat", "Waschbär"], above=0.6)] == ["Waschbär"]
    assert len(result.filter()) == 2 and len(result.filter("grass")) == 0 and len(result.filter([])) == 0
    assert result.filter("grass").summary() == "nothing"
    with refused(ConfigError, "'cta'", "did you mean 'cat'?", code="C01"):
        result.filter(["cta"])
    if name == "Segmentation":
        kept = result.filter("cat")
        assert torch.equal(kept.ids, (IDS == 2).long()) and kept.size == (8, 10)


def test_yolo_lines_of_results():
    found = results()
    assert found["Detections"].to_yolo() == "2 0.2 0.375 0.2 0.25\n0 0.25 0.3125 0.5 0.625\n"
    assert found["Segmentation"].to_yolo() == "2 0 0 1 0 1 0.5 0 0.5\n0 0 0.5 0.5 0.5 0.5 1 0 1\n"
    masks = torch.zeros(2, 8, 10, dtype=torch.bool)
    masks[0, 2:4, 5:10] = True
    with_masks = replace(found["Detections"], masks=masks)
    assert with_masks.to_yolo() == "2 0.5 0.25 1 0.25 1 0.5 0.5 0.5\n"


def test_show(monkeypatch):
    shown = []
    monkeypatch.setattr("PIL.ImageShow.show", lambda picture: shown.append(picture.size) or True)
    for result in results().values():
        result.show()
    assert shown == [result.plot().size for result in results().values()]
    monkeypatch.setattr("PIL.ImageShow.show", lambda picture: False)
    with refused(MachineError, "result.save('out.png')"):
        results()["Detections"].show()


def test_show_in_a_notebook(monkeypatch):
    shown = []
    shell = SimpleNamespace(kernel=object())
    notebook = SimpleNamespace(get_ipython=lambda: shell, display=SimpleNamespace(display=shown.append))
    monkeypatch.setitem(sys.modules, "IPython", notebook)
    results()["Detections"].show()
    assert shown[0].size == results()["Detections"].plot().size


def test_nothing_tells_the_best():
    best = Rejected(0.44, "raccoon", 0.5)
    empty = regard.Detections(torch.zeros(0), torch.zeros(0), torch.zeros(0, 4), CATEGORIES, (8, 10), rejected=best)
    assert empty.summary() == "nothing above 0.50; best score 0.44 raccoon"
    assert empty.filter("cat").summary() == "nothing"


def test_the_face_of_the_package():
    assert regard.RegardError.__module__ == "regard.errors"
    assert {"Detections", "Segmentation", "Classification", "RegardError"} <= set(dir(regard))


@pytest.mark.parametrize("name", list(results()))
def test_an_index_is_the_number_of_a_row(name):
    result = results()[name]
    assert result[0] == result.to_dicts()[0]
    for index in ("label", 1.0, None):
        with refused(ConfigError, repr(index), 'result[0]["label"]', code="C02"):
            result[index]
