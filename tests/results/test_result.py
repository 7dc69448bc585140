"""What the three kinds of results promise together."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

import regard
from regard.results.result import Result
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


def test_the_face_of_the_package():
    assert regard.RegardError.__module__ == "regard.errors"
    assert {"Detections", "Segmentation", "Classification", "RegardError"} <= set(dir(regard))
