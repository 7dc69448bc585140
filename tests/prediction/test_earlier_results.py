"""Which files count as results of `regard predict --json`."""

from __future__ import annotations

import json

import pytest

from regard.prediction.earlier_results import DESCRIPTION, is_result, png_names, result_text

DETECTION = {"image_id": 1, "category_id": 2, "bbox": [0, 0, 1, 1], "score": 0.5, "file_name": "a.png"}
CLASSES = {"file_name": "a.png", "classes": [{"label": "cat", "label_id": 0, "score": 0.5}]}
SEGMENTS = {"info": {"description": DESCRIPTION}, "images": [], "annotations": [], "categories": []}


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [DETECTION],
        [DETECTION, DETECTION | {"segmentation": {"size": [1, 1], "counts": "0"}}],
        [DETECTION | {"frame": 0, "seconds": 0.0}],
        [CLASSES, CLASSES | {"frame": 0, "seconds": 0.0}],
    ],
)
def test_results(tmp_path, rows):
    path = tmp_path / "found.json"
    path.write_text(result_text(rows))
    assert is_result(path) and json.loads(path.read_text()) == rows
    path.write_text(json.dumps(rows, indent=2))  # laid out anew by another program; an empty list has no mark then
    assert is_result(path) == bool(rows)


@pytest.mark.parametrize(
    "content",
    [
        [],
        [{"file_name": "a.png"}],
        [{"file_name": "a.png", "width": 3, "height": 4, "id": 1}],
        [DETECTION, {"file_name": "a.png"}],
        [{key: DETECTION[key] for key in DETECTION if key != "file_name"}],  # of another detector
        [DETECTION | {"reviewed_by": "me"}],
        [CLASSES | {"classes": "cat"}],
        {**SEGMENTS, "licenses": []},
        {**SEGMENTS, "annotations": {}},
        {key: SEGMENTS[key] for key in ("info", "images")},
        {**SEGMENTS, "info": {"description": "mine"}},
        None,
        3,
    ],
)
def test_files_of_others(tmp_path, content):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(content))
    assert not is_result(path)


def test_png_names_stay_in_the_folder(tmp_path):
    path = tmp_path / "found.json"
    names = ["a.png", "../b.png", "/c.png", "d.jpg", 3]
    path.write_text(json.dumps({**SEGMENTS, "annotations": [{"file_name": name} for name in names]}))
    assert is_result(path) and png_names(path) == {"a.png"}
    assert png_names(tmp_path / "none.json") == set()
