"""Documents that are read fast: the same as with Python's parser, and all that it would report."""

import json
from pathlib import Path

import numpy as np
import pytest

from regard.data.coco import document
from regard.data.coco.annotations import CocoAnnotations, check_tables, read_annotations
from regard.data.coco.document import Table, column, outlines, read_document
from regard.data.report import Report
from regard.errors import DataError

ROWS = 5000  # more than are parsed at a time


def sample(rows: int = ROWS) -> dict:
    """A document with outlines of both forms, nested values of unknown keys, and rows that lack keys."""
    draw = np.random.default_rng(0)
    images = [
        {"id": 3 * k + 1, "file_name": f"ä {k}.jpg", "height": 40, "width": 60, "flickr_url": f"http://a/{k}"}
        for k in range(50)
    ]
    objects = []
    for k in range(rows):
        x, y, w, h = (float(v) for v in draw.uniform((0, 0, 5, 5), (50, 30, 10, 10)).round(2))
        row = {"id": k + 1, "image_id": int(draw.choice(images)["id"]), "category_id": 2, "bbox": [x, y, w, h]}
        row |= {"area": w * h, "iscrowd": 0, "attributes": {"occluded": False, "marks": [{"id": 1}, {"id": 2}]}}
        if k % 3 == 0:
            row["segmentation"] = [[x, y, x + w, y, x + w, y + h]]
        if k % 5 == 0:
            row |= {"segmentation": {"size": [40, 60], "counts": [0, 40 * 20, 40 * 40]}, "bbox": [0, 0, 20, 40]}
            row["area"] = 800
        objects.append(row)
    categories = [{"id": 2, "name": "cell", "supercategory": "none"}, {"id": 1, "name": "id"}]
    return {"info": {"year": 2026}, "licenses": [], "images": images, "annotations": objects, "categories": categories}


def written(folder: Path, content: dict, **style: object) -> Path:
    path = folder / "instances.json"
    path.write_text(json.dumps(content, **style), encoding="utf-8")
    return path


def same(one: CocoAnnotations, other: CocoAnnotations) -> None:
    for name in ("boxes_xyxy", "boxes_xywh", "labels", "is_crowd", "is_target", "areas"):
        assert np.array_equal(getattr(one.objects, name), getattr(other.objects, name)), name
    assert one.images == other.images
    assert one.categories == other.categories
    assert np.array_equal(one.first_row, other.first_row)
    assert [*map(str, one.report.issues)] == [*map(str, other.report.issues)]
    for row in range(0, len(one.objects.labels), 97):
        assert one.objects.segmentation(row) == other.objects.segmentation(row)


def sticking_out() -> dict:
    content = sample()
    for row in content["annotations"][1:9]:
        row["bbox"] = [-2, 0, 70, 3]
    return content


def without(*keys: str) -> dict:
    content = sample()
    for row in content["annotations"][::2]:
        for key in keys:
            row.pop(key, None)
    return content


@pytest.mark.parametrize(
    ("content", "style"),
    [
        (sample(), {}),
        (sample(), {"separators": (",", ":")}),
        (sample(), {"indent": 1, "ensure_ascii": False}),
        (sample(0), {}),
        (sample(1), {}),
        (without("iscrowd"), {}),
        (without("area", "segmentation"), {}),
        ({**sample(), "annotations": [{**row, "id": 7} for row in sample()["annotations"]]}, {}),
        (sticking_out(), {}),
    ],
)
def test_equals_the_plain_parser(content: dict, style: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, content, **style)
    read = read_document(path, Report(path))
    for name in ("images", "annotations"):  # one without rows is an empty list
        assert isinstance(read[name], Table) or read[name] == content[name] == []
    fast = read_annotations(path)
    monkeypatch.setattr(document, "_tables", lambda data: None)
    assert isinstance(read_document(path, Report(path))["annotations"], list)
    same(fast, read_annotations(path))


@pytest.mark.parametrize("style", [{}, {"indent": 1}])
def test_pieces_end_where_rows_do(style: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(document, "_PIECE", 300)
    content = sample(200)
    content["images"][3]["flickr_url"] = 'a "}, {"id": 1'  # ends no row, and neither do objects inside rows
    table = read_document(written(tmp_path, content, **style), Report(tmp_path))
    assert list(table["annotations"]) == content["annotations"]
    assert list(table["images"]) == content["images"]


def test_rows_with_many_objects_inside_are_read(tmp_path: Path) -> None:
    content = sample(3)
    content["annotations"][0] = {"id": 1, **content["annotations"][0], "marks": [{"id": k} for k in range(99)]}
    path = written(tmp_path, content)
    assert list(read_document(path, Report(path))["annotations"]) == content["annotations"]


def faulty(outlines: dict[int, object]) -> dict:
    content = sample(300)
    for row, outline in outlines.items():
        content["annotations"][row]["segmentation"] = outline
    return content


WHOLE = [[1, 1, 9, 1, 9, 9, 1, 9]]


@pytest.mark.parametrize(
    "outlines",
    [
        {4: [[1, 2, 3, 4], *WHOLE, [], [1, 2, 3, 4, 5, 6, 7]], 7: [[]], 8: [], 9: None},
        {4: [*WHOLE, [1, 2, 3, 4, 9999, 6]], 7: [[1e300, 1, 1e300, 2, 3, 4]]},
        {4: {"size": [40, 60], "counts": [2400, 1]}, 8: {"size": [60, 40], "counts": [2400]}},
        {4: {"size": [40, 60], "counts": [-1, 2401]}, 8: {"size": [40, 60], "counts": []}},
        {4: {"size": [40, 60], "counts": "0PP2"}, 8: {"size": [40, 60], "counts": "\x01"}},
        {4: {"size": [40, 60]}, 8: {}, 9: 3},
        {4: [["1", 2, 3, 4, 5, 6]], 8: [[True, 2, 3, 4, 5, 6]], 9: [3]},
    ],
)
def test_wrong_outlines_are_told_as_with_the_plain_parser(
    outlines: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, faulty(outlines))
    told = []
    for _ in range(2):
        gathered = Report(path, gathers=True)
        found = check_tables(read_document(path, gathered), [], gathered)
        try:
            raised = str(read_annotations(path).report)
        except DataError as error:
            raised = str(error)
        told.append((str(gathered), raised, found.objects.areas.tolist(), found.objects.has_outline.tolist()))
        monkeypatch.setattr(document, "_tables", lambda data: None)
    assert told[0] == told[1]


def test_rows_are_those_of_the_file(tmp_path: Path) -> None:
    content = sample()
    table = read_document(written(tmp_path, content), Report(tmp_path))["annotations"]
    assert list(table) == content["annotations"]
    assert table[-2:] == content["annotations"][-2:]
    assert column(table, "image_id") == [row["image_id"] for row in content["annotations"]]
    assert column(table, "attributes") == [row["attributes"] for row in content["annotations"]]
    assert list(outlines(table)) == [row.get("segmentation") for row in content["annotations"]]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"bbox": ', '"bbox": [1, 2, 3, 4], "bbox": '),
        ('"occluded": ', '"occluded": 1, "occluded": '),
        ('"year": ', '"year": 1, "year": '),
        ('"info": ', '"info": 1, "info": '),
        ('"counts": ', '"counts": 1, "counts": '),
        ('"flickr_url": ', '"flickr_url":"x" , "flickr_url" :'),
        ('"id": 1, "image_id": ', '"id": 1, "id"  :1, "image_id"\t:'),
        ('"attributes": ', '"attributes": {"a"\n:1, "a"\n:2}, "others": '),
    ],
)
def test_a_key_that_is_there_twice_is_reported(old: str, new: str, tmp_path: Path) -> None:
    path = written(tmp_path, sample())
    path.write_text(path.read_text(encoding="utf-8").replace(old, new, 1), encoding="utf-8")
    assert "A06" in [issue.code for issue in read_annotations(path).report.issues]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"category_id": 2', '"category_id": 2.0'),
        ('"image_id": ', '"image_id": true, "other": '),
        ('"iscrowd": 0', '"iscrowd": null'),
        ('"year": 2026', '"year": NaN'),
        ('"height": 40', '"height": "40"'),
        ("[[", "[[["),
    ],
)
def test_unusual_values_are_left_to_the_plain_parser(old: str, new: str, tmp_path: Path) -> None:
    path = written(tmp_path, sample())
    data = path.read_bytes().replace(old.encode(), new.encode(), 1)
    assert document._tables(data) is None


def test_numbers_beyond_floats_are_seen(tmp_path: Path) -> None:
    content = sample()
    content["annotations"][0]["segmentation"] = [[1, 2, 3, 4, 5, 6]]
    path = written(tmp_path, content)
    path.write_text(path.read_text(encoding="utf-8").replace("[1, 2, 3, 4, 5, 6]", "[1, 2, 3, 4, 5, 1e999]", 1))
    with pytest.raises(DataError) as caught:
        read_annotations(path)
    assert caught.value.code == "A38"
