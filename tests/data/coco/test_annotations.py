"""Every way in which we have seen COCO files go wrong: a sound file mutated, and what must come of it."""

from __future__ import annotations

import copy
import gc
import json
import random
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from refusals import refused
from regard.data.coco import json_file as strict_json
from regard.data.coco.annotations import CocoAnnotations, read_annotations, to_coco
from regard.data.coco.outlines import check_segmentations, decode_counts
from regard.data.report import WORDS, Report
from regard.errors import DataError

SIZES = {10: (80, 100), 20: (64, 64), 30: (90, 120)}  # image id -> height, width


def rectangle(x: float, y: float, w: float, h: float) -> list[list[float]]:
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def sound() -> dict[str, Any]:
    """A file with nothing to complain of: three images, two categories with a gap in their ids, a crowd."""
    boxes = [
        (10, 1, [10, 12, 30, 20]),
        (10, 3, [50, 40, 40.5, 30.25]),
        (20, 1, [0, 0, 64, 64]),
        (20, 3, [40, 40, 20, 20]),
        (30, 1, [60, 30, 50, 50]),
    ]
    annotations: list[dict[str, Any]] = [
        {
            "id": 101 + k,
            "image_id": image_id,
            "category_id": category_id,
            "bbox": box,
            "area": box[2] * box[3],
            "iscrowd": 0,
            "segmentation": rectangle(*box),
        }
        for k, (image_id, category_id, box) in enumerate(boxes)
    ]
    # Columns 20..29 of an image of height 90, all rows: 1800 pixels off, 900 on, 8100 off.
    runs = {"size": [90, 120], "counts": [1800, 900, 8100]}
    crowd = {"id": 106, "image_id": 30, "category_id": 3, "bbox": [20, 0, 10, 90], "area": 900, "iscrowd": 1}
    annotations.append({**crowd, "segmentation": runs})
    images = [{"id": i, "file_name": f"{i}.png", "height": h, "width": w} for i, (h, w) in SIZES.items()]
    categories = [{"id": 1, "name": "cat"}, {"id": 3, "name": "dog"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def write_images(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for image_id, (height, width) in {**SIZES, 40: (9, 9)}.items():
        Image.new("RGB", (width, height), (image_id, 0, 0)).save(folder / f"{image_id}.png")
    return folder


def read(tmp_path: Path, document: Any, **arguments: Any) -> CocoAnnotations:
    path = tmp_path / "ann.json"
    path.write_bytes(document if isinstance(document, bytes) else json.dumps(document).encode())
    return read_annotations(path, **arguments)


# ---- the corpus


def put(*place: Any) -> Callable[[dict], dict]:
    """A mutation: `put("annotations", 3, "bbox", value)` writes that, `DELETE` takes the key away."""
    *keys, last, value = place

    def mutate(document: dict) -> dict:
        target: Any = document
        for key in keys:
            target = target[key]
        if value is DELETE:
            del target[last]
        else:
            target[last] = value
        return document

    return mutate


DELETE = object()


def every(table: str, key: str, change: Callable[[dict], Any]) -> Callable[[dict], dict]:
    """A mutation of one key in all rows of a table; the outlines go, they would contradict the boxes."""

    def mutate(document: dict) -> dict:
        for row in document[table]:
            row[key] = change(row)
            row.pop("segmentation", None)
        return document

    return mutate


def text(change: Callable[[str], str]) -> Callable[[dict], bytes]:
    return lambda document: change(json.dumps(document)).encode()


def add(table: str, **row: Any) -> Callable[[dict], dict]:
    def mutate(document: dict) -> dict:
        document[table].append(row)
        return document

    return mutate


def both(*mutations: Callable[[dict], dict]) -> Callable[[dict], dict]:
    def mutate(document: dict) -> dict:
        for mutation in mutations:
            document = mutation(document)
        return document

    return mutate


def box(x: float, y: float, w: float, h: float) -> Callable[[dict], dict]:
    def mutate(document: dict) -> dict:
        document["annotations"][1] |= {
            "bbox": [x, y, w, h],
            "area": w * h,
            "segmentation": rectangle(x, y, w, h),
        }
        return document

    return mutate


def outline(value: Any) -> Callable[[dict], dict]:
    return put("annotations", 0, "segmentation", value)


def runs(value: Any, size: Any = (90, 120)) -> Callable[[dict], dict]:
    return put("annotations", 5, "segmentation", {"size": list(size), "counts": value})


def many_objects(document: dict) -> dict:
    row = document["annotations"][0]
    document["annotations"] += [{**row, "id": 1000 + k} for k in range(10_000)]
    return document


def roboflow_group(document: dict) -> dict:
    """Roboflow's exports have the project as category 0; here it is called as one of its own categories."""
    for category in document["categories"]:
        category["supercategory"] = "cat"
    document["categories"].insert(0, {"id": 0, "name": "cat", "supercategory": "none"})
    return document


BOX = ("annotations", 1, "bbox")
# id, mutation, what must come of it (ok, fix, skip, warn, or error), expression for its one line
CASES: list[tuple[str, Callable[[dict], Any], str, str]] = [
    ("A01", lambda _: b"", "error", r"ann\.json"),
    ("A01", lambda _: b" \n\n", "error", r"ann\.json"),
    ("A02", text(lambda t: t[: len(t) // 2]), "error", r"ann\.json:1:\d+ — "),
    ("A02", lambda _: b'{"images": [],\n "annotations" []}', "error", r"ann\.json:2:16 — "),
    ("A02", lambda _: b"\xff\xfe{\x00}\x00", "error", r"byte 0"),
    ("A02", lambda _: b"version https://git-lfs.github.com/spec/v1\n", "error", r"git lfs pull"),
    ("A03", lambda d: b"\xef\xbb\xbf" + json.dumps(d).encode(), "fix", r"ann\.json"),
    ("A04", put(*BOX, 2, float("nan")), "error", r"NaN .* — \S+ann\.json:/annotations/1/bbox/2"),
    ("A04", put("info", {"a/b": float("-inf")}), "error", r"-Infinity .* — \S+ann\.json:/info/a~1b"),
    ("A36", put("annotations", 2, "area", 10**400), "fix", r"1 of 6 .*/annotations/2/area"),
    ("A04", text(lambda t: t.replace('"area": 600', '"area": 1e400')), "error", r":/annotations/0/area"),
    ("A05", text(lambda t: t[:-1] + ', "x": ' + "[" * 100_000 + "]" * 100_000 + "}"), "error", r"ann\.json"),
    ("A05", text(lambda t: t.replace("600", "9" * 5000)), "error", r"ann\.json"),
    (
        "A06",
        text(lambda t: t.replace('"iscrowd": 0', '"iscrowd": 0, "area": 600', 1)),
        "warn",
        r":/annotations/0/area",
    ),
    ("A07", lambda d: d["annotations"], "error", r"list"),
    ("A07", lambda _: {}, "error", r"'images' \(found: nothing\)"),
    (
        "A07",
        put("images", DELETE),
        "error",
        r"'images' \(found: 'annotations', 'categories'\)",
    ),
    ("A07", put("annotations", DELETE), "error", r"'annotations'"),
    ("A07", put("categories", DELETE), "error", r"'categories'"),
    ("A07", put("categories", {}), "error", r"dict.*:/categories"),
    ("A07", put("categories", []), "error", r":/categories"),
    ("A07", put("annotations", 2, None), "error", r"None.*:/annotations/2"),
    ("A07", put("annotations", [{"segments_info": [], "image_id": 1}]), "error", r"panoptic annotations"),
    ("A08", put("images", []), "error", r":/images"),
    ("A09", put("annotations", []), "warn", r":/annotations"),
    ("A10", add("images", id=40, file_name="40.png", height=9, width=9), "ok", ""),
    ("A11", box(50, 40, 55, 30), "fix", r"1 of 6 .*/annotations/1/bbox"),
    ("A11", box(59.9, 40, 41, 30.25), "ok", ""),
    (
        "A11",
        box(-6, 40, 100, 30),
        "fix",
        r"1 of 6 .*/annotations/1/bbox",
    ),  # A13
    ("A12", box(150, 40, 40.5, 30.25), "skip", r"1 of 6 .*/annotations/1/bbox"),
    ("A12", box(-60, -40, 40.5, 30.25), "skip", r"1 of 6 .*/annotations/1/bbox"),  # A13
    ("A14", put(*BOX, [50, 40, -40.5, 30.25]), "error", r"-40.5.*/annotations/1/bbox.*1 of 6"),
    ("A14", put(*BOX, [50, 40, 40.5, -1e-3]), "error", r"-0.001"),
    ("A15", box(50, 40, 0, 30.25), "skip", r"1 of 6 .*/annotations/1/bbox"),
    ("A15", box(0, 0, 0, 0), "skip", r"1 of 6 .*/annotations/1/bbox"),
    ("A15", box(50, 40, 1e-9, 30.25), "skip", r"1 of 6 .*/annotations/1/bbox"),
    (
        "A16",
        put(*BOX, [50, 40, 1e30, 30]),
        "error",
        r"\[50, 40, 1e\+30, 30\].*/annotations/1/bbox",
    ),
    ("A16", put(*BOX, [50, 40, 10**400, 30]), "error", r"\[50, 40, 1e\+300, 30\]"),
    (
        "A16",
        text(lambda t: t.replace("40.5,", "1e400,")),
        "error",
        r"\[50, 40, inf, 30.25\]",
    ),
    (
        "A17",
        put(*BOX, [50, 40, 40.5]),
        "error",
        r"\[50, 40, 40.5\].*/annotations/1/bbox",
    ),
    ("A17", put(*BOX, [50, 40, "40.5", 30.25]), "error", r"'40.5'"),
    ("A17", put(*BOX, [50, 40, None, 30.25]), "error", r"/annotations/1/bbox"),
    ("A17", put(*BOX, [50, 40, [40], 30.25]), "error", r"/annotations/1/bbox"),
    ("A17", put(*BOX, [50, True, 40, 30.25]), "error", r"/annotations/1/bbox"),
    ("A17", put(*BOX, {"x": 1}), "error", r"/annotations/1/bbox"),
    ("A17", put(*BOX, None), "error", r"/annotations/1/bbox"),
    ("A17", put(*BOX, DELETE), "error", r"/annotations/1/bbox"),
    (
        "A18",
        every("annotations", "bbox", lambda r: [*r["bbox"][:2], *np.add(r["bbox"][:2], r["bbox"][2:]).tolist()]),
        "error",
        r"3 of 6 .*\[left, top, right, bottom\]",
    ),
    (
        "A18",
        every("annotations", "bbox", lambda r: [2 * v for v in r["bbox"]]),
        "error",
        r"5 of 6 .*resized",
    ),
    (
        "A19",
        every("annotations", "bbox", lambda r: [v / 100 for v in r["bbox"]]),
        "error",
        r"/annotations/0/bbox .*width",
    ),
    (
        "A20",
        put("annotations", 3, "category_id", 99),
        "error",
        r"99 .*\(1, 3\) .*/annotations/3/category_id .*1 of 6",
    ),
    ("A20", put("annotations", 3, "category_id", 2), "error", r"/annotations/3/category_id"),
    ("A20", put("annotations", 3, "category_id", -1), "error", r"category_id -1 "),
    ("A21", put("annotations", 3, "category_id", 0), "error", r"1 of 6 .*/annotations/3/category_id"),
    ("A22", put("annotations", 3, "category_id", "3"), "error", r"category_id is '3'"),
    ("A22", put("annotations", 3, "category_id", 3.0), "error", r"category_id is 3.0"),
    ("A22", put("annotations", 3, "category_id", True), "error", r"category_id is True"),
    ("A22", put("annotations", 3, "category_id", 10**4000), "error", r"/annotations/3/category_id"),
    ("A22", put("annotations", 3, "category_id", DELETE), "error", r"category_id .*/annotations/3"),
    ("A22", put("categories", 0, "id", "1"), "error", r"id is '1'.*/categories/0/id"),
    ("A24", put("categories", 1, "id", 1), "error", r"category id 1 — \S+:/categories/1/id"),
    (
        "A25",
        put("categories", 1, "name", "cat"),
        "error",
        r"'cat' — \S+:/categories/1/name",
    ),
    ("A25", put("categories", 1, "name", ""), "error", r"''.*/categories/1/name"),
    ("A25", put("categories", 1, "name", DELETE), "error", r"None.*/categories/1/name"),
    ("A25", roboflow_group, "fix", r"'cat' .*/categories/0"),
    ("A27", put("annotations", 0, "id", 0), "fix", r"annotation id 0, .* — \S+:/annotations/0/id"),
    ("A27", put("annotations", 0, "id", DELETE), "fix", r"id None"),
    ("A27", put("annotations", 0, "id", [1]), "fix", r"id \[1\]"),
    (
        "A28",
        put("annotations", 4, "id", 101),
        "fix",
        r"1 .*/annotations/4/id",
    ),
    ("A29", put("images", 1, "id", 10), "error", r"image id 10 — \S+:/images/1/id"),
    (
        "A30",
        put("annotations", 3, "image_id", 99),
        "error",
        r"99 .*\(10, 20, 30\).*1 of 6",
    ),
    ("A30", put("annotations", 3, "image_id", "20"), "error", r"image_id is '20'"),
    ("A30", put("images", 1, "id", "20"), "error", r"id is '20'.*/images/1/id"),
    (
        "A31",
        put("images", 1, "file_name", "gone.png"),
        "error",
        r"1 of 3 .*'gone.png' — ",
    ),
    ("A31", put("images", 1, "file_name", "10.png/x.png"), "error", r"1 of 3 .*'10.png/x.png'"),
    *[
        (
            "A32",
            put("images", 1, "file_name", name),
            "error",
            r"/images/1/file_name",
        )
        for name in (
            "/etc/passwd",
            "../20.png",
            "a/../../20.png",
            "..",
            "..\\20.png",
            "\\\\host\\20.png",
            "C:\\20.png",
            "https://example.org/20.png",
            "file:///20.png",
            "20.png\0.txt",
            "",
            None,
            20,
            ["20.png"],
        )
    ],
    ("A32", put("images", 1, "file_name", "./20.png"), "ok", ""),
    (
        "A33",
        both(put("images", 1, "height", DELETE), put("images", 1, "width", DELETE)),
        "fix",
        r"1 image has",
    ),
    ("A33", put("images", 1, "height", DELETE), "error", r"/images/1/height"),
    ("A33", put("images", 1, "width", "64"), "error", r"width is '64'"),
    ("A33", put("images", 1, "width", 0), "error", r"width is 0"),
    ("A33", put("images", 1, "width", 10**9), "error", r"1000000000x64"),
    ("A34", put("annotations", 0, "iscrowd", DELETE), "fix", r"1 of 6 .*/annotations/0"),
    ("A34", put("annotations", 0, "iscrowd", False), "ok", ""),
    (
        "A34",
        put("annotations", 0, "iscrowd", 2),
        "error",
        r"iscrowd is 2.*/annotations/0/iscrowd",
    ),
    ("A34", put("annotations", 0, "iscrowd", "0"), "error", r"iscrowd is '0'"),
    ("A36", put("annotations", 0, "area", DELETE), "fix", r"1 of 6 .*/annotations/0/area"),
    ("A36", put("annotations", 0, "area", None), "fix", r"1 of 6 .*/annotations/0/area"),
    (
        "A36",
        put("annotations", 0, "area", 0),
        "fix",
        r"1 of 6 .*/annotations/0/area",
    ),
    ("A36", put("annotations", 0, "area", -600), "fix", r"1 of 6 .*/annotations/0/area"),
    ("A36", put("annotations", 0, "area", 6000), "fix", r"1 of 6 .*/annotations/0/area"),
    (
        "A36",
        put("annotations", 0, "area", "600"),
        "error",
        r"area is '600'.*/annotations/0/area",
    ),
    (
        "A37",
        outline([[10, 12, 40, 12]]),
        "skip",
        r"1 polygon .*/annotations/0/segmentation/0",
    ),
    ("A37", outline([[10, 12, 40, 12, 40, 32, 10]]), "skip", r"1 polygon .*/annotations/0/segmentation/0"),
    ("A37", outline([[10, 12, 40, 12, 40, 32, 10, 32], []]), "skip", r"1 polygon .*/segmentation/1"),
    ("A37", outline([]), "skip", r"1 of 6 .*/annotations/0/segmentation"),
    ("A37", outline(None), "skip", r"1 of 6 .*/annotations/0/segmentation"),
    ("A37", outline([10, 12, 40, 12, 40, 32]), "error", r"10.*/segmentation/0 "),
    ("A37", outline([[10, 12, 40, "12", 40, 32]]), "error", r"'12'.*/segmentation/0"),
    ("A37", outline([[10, 12, 40, None, 40, 32]]), "error", r"None.*/segmentation/0"),
    ("A37", outline([[10, 12, 40, [12], 40, 32]]), "error", r"\[12\].*/segmentation/0"),
    ("A37", outline("0,0,1,1"), "error", r"'0,0,1,1'.*/segmentation "),
    ("A37", outline(7), "error", r"7.*/segmentation "),
    ("A38", outline([[10, 12, 40, 12, 40, 1e8]]), "error", r"y=1e\+08 .*100x80 .*/segmentation/0/5"),
    (
        "A38",
        outline([[10, 12, -401, 12, 40, 32]]),
        "error",
        r"x=-401 .*/annotations/0/segmentation/0/2",
    ),
    ("A38", outline([[10, 12, 10**400, 12, 40, 32]]), "error", r"x=1e\+300 "),
    ("A38", text(lambda t: t.replace("[[10, 12,", "[[1e400, 12,")), "error", r"x=inf "),
    (
        "A39",
        runs([1800, 900, 8000]),
        "error",
        r"10,700 .*10,800 .*/5/segmentation/counts",
    ),
    ("A39", runs([1800, 900, 8200]), "error", r"10,900 .*10,800"),
    ("A39", runs([]), "error", r"whole numbers"),
    ("A39", runs([1800, -900, 9900]), "error", r"a negative run length"),
    ("A39", runs([1800, 900.0, 8100]), "error", r"whole numbers"),
    ("A39", runs([1800, "900", 8100]), "error", r"whole numbers"),
    ("A39", runs([10**400, 900, 8100]), "error", r"whole numbers"),
    ("A39", runs(None), "error", r"whole numbers"),
    ("A39", runs("\u00e9\ud800"), "error", r"/5/segmentation/counts"),
    ("A39", runs("!!"), "error", r"/5/segmentation/counts"),
    ("A39", runs(""), "error", r"/5/segmentation/counts"),
    ("A39", runs("`"), "error", r"cut off"),
    ("A39", runs("o" * 40 + "0"), "error", r"more than 35 bits"),
    ("A39", runs("0O"), "error", r"a negative run length"),
    (
        "A40",
        runs([1800, 900, 8100], size=(120, 90)),
        "error",
        r"\[120, 90\].*\[90, 120\].*/segmentation/size",
    ),
    ("A40", runs([10**12], size=(10**6, 10**6)), "error", r"\[1000000, 1000000\]"),
    ("A40", runs([1800], size=()), "error", r"\[\]"),
    ("A40", put("annotations", 5, "segmentation", {"counts": [10800]}), "error", r"None"),
    ("A41", outline(rectangle(60, 50, 30, 20)), "warn", r"1 of 6 .*/annotations/0/bbox"),
    ("A44", many_objects, "ok", ""),
    ("A45", both(every("annotations", "category_id", lambda _: 1), put("categories", 1, DELETE)), "ok", ""),
    (
        "A46",
        add("categories", id=7, name="<script>é-\n"),
        "warn",
        r"1 of 3 .*<script>é-\\n —",
    ),
]


@pytest.mark.parametrize("case", [pytest.param(case, id=f"{case[0]}-{k}") for k, case in enumerate(CASES)])
def test_corpus(case: tuple, tmp_path: Path) -> None:
    code, mutate, expected, line = case
    folder = write_images(tmp_path / "images")
    document = mutate(sound())
    if expected == "error":
        with pytest.raises(DataError) as raised:
            read(tmp_path, document, image_folders=[folder])
        found = raised.value.line
        assert found.startswith(f"error {code}: ")
        assert "\n" not in found and len(found) < 600
        assert re.search(line, found), found
        return
    annotations = read(tmp_path, document, image_folders=[folder])
    lines = str(annotations.report).splitlines()
    if expected == "ok":
        assert not lines
    else:
        assert len(lines) == 1 and lines[0].startswith(f"{WORDS[expected]} {code}: "), lines
        assert re.search(line, lines[0]), lines
    # Whatever was repaired or left out of training, nothing is lost for the evaluation.
    stated = document if isinstance(document, dict) else sound()
    assert len(to_coco(annotations)["annotations"]) == len(stated["annotations"])


# ---- what comes of sound files


def test_sound_file(tmp_path: Path) -> None:
    annotations = read(tmp_path, sound())
    assert str(annotations.report) == "" and annotations.image_folder is None
    assert [(c.id, c.name) for c in annotations.categories] == [(1, "cat"), (3, "dog")]
    boxes, labels = annotations.targets(0)
    assert boxes.dtype == np.float32 and labels.dtype == np.int64
    assert boxes.tolist() == [[10, 12, 40, 32], [50, 40, 90.5, 70.25]] and labels.tolist() == [0, 1]
    boxes, labels = annotations.targets(2)
    assert boxes.tolist() == [[60, 30, 110, 80]] and labels.tolist() == [0]  # the crowd is not learned (A35)
    assert annotations.objects.is_crowd.tolist() == [False] * 5 + [True]


def test_truth_for_evaluators_is_the_sound_file(tmp_path: Path) -> None:
    truth, stated = to_coco(read(tmp_path, sound())), sound()
    assert truth["images"] == stated["images"] and truth["categories"] == stated["categories"]
    for row in stated["annotations"]:
        row["id"] -= 100
        assert row.pop("segmentation")  # nothing of an evaluation of boxes reads it
    assert truth["annotations"] == stated["annotations"]
    assert all(type(row["iscrowd"]) is int for row in truth["annotations"])
    json.dumps(truth)


def test_order_of_file_does_not_matter(tmp_path: Path) -> None:
    shuffled = sound()
    for table in ("images", "categories"):
        shuffled[table].reverse()
    shuffled["annotations"] = [shuffled["annotations"][k] for k in (5, 2, 0, 3, 1, 4)]
    truth = to_coco(read(tmp_path, shuffled))
    wanted = to_coco(read(tmp_path, sound()))
    key = json.dumps
    strip = [[{**row, "id": 0} for row in t["annotations"]] for t in (truth, wanted)]
    assert truth["images"] == wanted["images"] and truth["categories"] == wanted["categories"]
    assert sorted(map(key, strip[0])) == sorted(map(key, strip[1]))
    assert [row["image_id"] for row in truth["annotations"]] == [10, 10, 20, 20, 30, 30]


@pytest.mark.parametrize("base", [0, 1, 89, 10**12, -7])
def test_any_category_ids_map_to_labels_and_back(base: int, tmp_path: Path) -> None:
    document = sound()  # A23
    for row in document["categories"]:
        row["id"] += base
    for row in document["annotations"]:
        row["category_id"] += base
    annotations = read(tmp_path, document)
    assert annotations.objects.labels.tolist() == [0, 1, 0, 1, 0, 1]
    ids = [row["category_id"] for row in to_coco(annotations)["annotations"]]
    assert ids == [row["category_id"] for row in document["annotations"]]


@pytest.mark.parametrize("first_id", [0, 1, None])
def test_perfect_predictions_score_one(first_id: int | None, tmp_path: Path) -> None:
    """With annotation id 0 (A27) or equal ids (A28) in the ground truth, pycocotools gives less for them."""
    coco, evaluator = pytest.importorskip("pycocotools.coco"), pytest.importorskip("pycocotools.cocoeval")
    document = sound()
    for k, row in enumerate(document["annotations"]):
        row["id"] = 5 if first_id is None else first_id + k
    truth = coco.COCO()
    truth.dataset = to_coco(read(tmp_path, document))
    truth.createIndex()
    keys = ("image_id", "category_id", "bbox")
    things = [row for row in truth.dataset["annotations"] if not row["iscrowd"]]
    found = truth.loadRes([{key: row[key] for key in keys} | {"score": 0.9} for row in things])
    evaluation = evaluator.COCOeval(truth, found, "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == 1.0


def test_boxes_at_the_border(tmp_path: Path) -> None:
    """Boxes that leave by a pixel at most keep their numbers in the truth, others are cut there too."""
    document = sound()
    document["annotations"][0] |= {"bbox": [-0.5, 12, 30, 20], "segmentation": rectangle(0, 12, 30, 20)}
    document["annotations"][1] |= {"bbox": [50, 40, 60, 30.25], "segmentation": rectangle(50, 40, 50, 30.25)}
    annotations = read(tmp_path, document)
    assert annotations.targets(0)[0].tolist() == [[0, 12, 29.5, 32], [50, 40, 100, 70.25]]
    rows = to_coco(annotations)["annotations"]
    assert rows[0]["bbox"] == [-0.5, 12, 30, 20] and rows[1]["bbox"] == [50, 40, 50, 30.25]


def test_unusable_boxes_are_not_learned_but_stay_in_the_truth(tmp_path: Path) -> None:
    document = sound()
    document["annotations"][0] |= {
        "bbox": [10, 12, 0, 20],
        "area": 0,
        "segmentation": rectangle(10, 12, 0, 20),
    }
    annotations = read(tmp_path, document)
    assert annotations.targets(0)[0].tolist() == [[50, 40, 90.5, 70.25]]
    assert to_coco(annotations)["annotations"][0]["bbox"] == [10, 12, 0, 20]


def test_areas_are_computed_from_the_outline_else_from_the_box(tmp_path: Path) -> None:
    document = sound()
    for row in document["annotations"]:
        del row["area"]
    document["annotations"][0]["segmentation"] = [[10, 12, 40, 12, 40, 32]]  # half of its box
    two = [[0, 0, 64, 0, 64, 10, 0, 10], [0, 54, 64, 54, 64, 64, 0, 64]]
    document["annotations"][2]["segmentation"] = two
    del document["annotations"][3]["segmentation"]
    areas = [row["area"] for row in to_coco(read(tmp_path, document))["annotations"]]
    assert areas == pytest.approx([300, 40.5 * 30.25, 1280, 400, 2500, 900])


def test_sizes_are_read_from_the_images(tmp_path: Path) -> None:
    document = sound()
    for row in document["images"]:
        del row["height"], row["width"]
    annotations = read(tmp_path, document, image_folders=[write_images(tmp_path / "images")])
    assert {image.id: (image.height, image.width) for image in annotations.images} == SIZES


def test_missing_images_are_counted_and_the_first_five_named(tmp_path: Path) -> None:
    document = sound()
    document["images"] += [{"id": 100 + k, "file_name": f"x{k}.png", "height": 9, "width": 9} for k in range(20)]
    with refused(DataError, "20 of 23", "'x0.png', ", "'x4.png', ... — ", code="A31"):
        read(tmp_path, document, image_folders=[write_images(tmp_path / "images")])


def test_files_in_subfolders_and_odd_names_are_found(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images")
    for name in ("a b/é%s.png", "-x\n.png"):  # I28
        (folder / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (64, 64)).save(folder / name, format="png")
        document = sound()
        document["images"][1]["file_name"] = name
        assert read(tmp_path, document, image_folders=[folder]).image_folder == folder
    (folder / "a b" / "dangling.png").symlink_to("nothing")
    (folder / "a b" / "folder.png").mkdir()
    for name in (
        "a b/dangling.png",
        "a b/folder.png",
        "b/20.png",
        "\ud800/20.png",
        "x" * 300,
        "x" * 300 + "/20.png",
    ):
        document["images"][1]["file_name"] = name
        with refused(DataError, "1 of 3", code="A31"):
            read(tmp_path, document, image_folders=[folder])


def test_a_too_large_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "ann.json"
    with path.open("wb") as file:  # a hole: takes no space
        file.truncate(strict_json.MAX_BYTES + 1)
    with refused(DataError, "2,147,483,648", path, code="A50"):
        read_annotations(path)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with refused(DataError, tmp_path / "ann.json"):
        read_annotations(tmp_path / "ann.json")
    with refused(DataError, tmp_path):
        read_annotations(tmp_path)


def test_reading_leaves_the_cycle_collector_as_it_was(tmp_path: Path) -> None:
    read(tmp_path, sound())
    assert gc.isenabled()
    with pytest.raises(DataError):
        read(tmp_path, b"")
    assert gc.isenabled()


# ---- run lengths


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_compressed_run_lengths_equal_pycocotools(height: int, width: int, density: float, seed: int) -> None:
    mask_api = pytest.importorskip("pycocotools.mask")
    rng = np.random.default_rng(seed)
    mask = rng.random((height, width)) < density
    mask[:, : rng.integers(0, width + 1)] = rng.random() < 0.5  # long runs too
    counts = decode_counts(mask_api.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode())
    flat = np.repeat(np.arange(len(counts)) % 2, counts)
    assert np.array_equal(flat.reshape(width, height).T, mask)


def test_large_run_lengths_equal_pycocotools() -> None:
    mask_api = pytest.importorskip("pycocotools.mask")
    counts = [0, 3, 10**7, 1, 5 * 10**6, 10**6, 0, 31, 32, 15, 16, 10**8]
    text = mask_api.frPyObjects({"size": [sum(counts), 1], "counts": counts}, sum(counts), 1)["counts"].decode()
    assert decode_counts(text).tolist() == counts


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.floats(0, 0.3), st.integers(0, 2**32 - 1))
def test_boxes_and_areas_of_run_lengths(height: int, width: int, density: float, seed: int) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < density
    edges = np.flatnonzero(np.diff(mask.T.ravel(), prepend=False)) if mask.any() else np.zeros(0, int)
    counts = np.diff(np.concatenate(([0], edges, [mask.size]))).tolist()
    runs = {"size": [height, width], "counts": counts}
    found = check_segmentations([runs], np.array([height]), np.array([width]), Report("ann.json"))
    rows, columns = np.nonzero(mask)
    box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] if mask.any() else [0, 0, 0, 0]
    assert found.boxes_xyxy[0].tolist() == box and found.areas[0] == mask.sum()
    assert found[0] == runs


def test_polygons_come_back_as_written(tmp_path: Path) -> None:
    values: list[Any] = [
        None,
        rectangle(1, 2, 3, 4) * 2,
        [],
        [[0.1, 0.2, 5, 0.5, 7, 9]],
        [[1, 2]],
        rectangle(0, 0, 9, 9),
    ]
    sizes = np.full(len(values), 50)
    found = check_segmentations(values, sizes, sizes, Report("ann.json"))
    assert [found[k] for k in range(len(values))] == [None, values[1], None, values[3], None, values[5]]
    assert found.boxes_xyxy[3].tolist() == [0.1, 0.2, 7, 9]
    assert np.isnan(found.areas).tolist() == [True, False, True, False, True, False]


def test_empty_runs_do_not_widen_the_box() -> None:
    runs = {"size": [10, 10], "counts": [25, 0, 10, 2, 55, 0, 8]}
    found = check_segmentations([runs], np.array([10]), np.array([10]), Report("ann.json"))
    assert found.boxes_xyxy[0].tolist() == [3, 5, 4, 7] and found.areas[0] == 2


@pytest.mark.parametrize("sides", [3, 5, 40])
def test_polygon_areas_are_those_of_their_masks(sides: int) -> None:
    mask_api = pytest.importorskip("pycocotools.mask")
    angles = np.sort(np.random.default_rng(sides).uniform(0, 2 * np.pi, sides))
    polygon = (150 + 120 * np.stack((np.cos(angles), np.sin(angles)), axis=1)).ravel().tolist()
    found = check_segmentations([[polygon]], np.array([300]), np.array([300]), Report("ann.json"))
    mask = mask_api.decode(mask_api.frPyObjects([polygon], 300, 300))
    assert found.areas[0] == pytest.approx(mask.sum(), rel=0.02)


# ---- random damage

JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 200),
    st.sampled_from([10**400, -(10**30), 1e30, -1e-300, 0.5, float("nan"), float("inf")]),
    st.text(max_size=3),
    st.sampled_from([[], {}, [[]], [0, 0, 5, 5], [-5, -5, 500, 3], {"size": [64, 64], "counts": "0"}]),
)


def places(value: Any, place: tuple = ()) -> list[tuple]:
    """All places in a document."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return [place] * bool(place) + [found for key, child in items for found in places(child, (*place, key))]
    return [place]


@st.composite
def damaged(draw: st.DrawFn) -> dict[str, Any]:
    document = sound()
    for _ in range(draw(st.integers(1, 3))):
        found = places(document)
        if not found:
            break
        *keys, last = draw(st.sampled_from(found))
        target: Any = document
        for key in keys:
            target = target[key]
        action = draw(st.sampled_from(["replace", "replace", "delete", "repeat"]))
        if action == "replace":
            target[last] = copy.deepcopy(draw(JUNK))
        elif action == "delete":
            del target[last]
        elif isinstance(target, list):
            target.append(copy.deepcopy(target[last]))
    return document


def with_outlines(annotations: CocoAnnotations, rows: list[dict]) -> list[dict]:
    """Rows of `to_coco` with what it leaves out."""
    outlines = [annotations.objects.segmentation(k) for k in range(len(rows))]
    return [r if o is None else {**r, "segmentation": o} for r, o in zip(rows, outlines, strict=True)]


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(document=damaged())
def test_invariants_under_random_damage(document: dict[str, Any], tmp_path: Path) -> None:
    try:
        annotations = read(tmp_path, document)
    except DataError as error:
        assert error.code and str(tmp_path) in str(error)
        return
    objects, ids = annotations.objects, [category.id for category in annotations.categories]
    for index, image in enumerate(annotations.images):
        boxes, labels = annotations.targets(index)
        assert np.isfinite(boxes).all() and (boxes >= 0).all() and (boxes[:, :2] < boxes[:, 2:]).all()
        assert (boxes[:, 2:] <= [image.width, image.height]).all()
        assert ((labels >= 0) & (labels < len(ids))).all()
    truth = to_coco(annotations)
    stated = document["annotations"]
    # No object is lost, and each keeps its category: damage never raises a score in silence.
    assert sorted(ids[label] for label in objects.labels) == sorted(row["category_id"] for row in stated)
    assert sorted(row["image_id"] for row in truth["annotations"]) == sorted(row["image_id"] for row in stated)
    assert all(np.isfinite(row["area"]) and row["area"] >= 0 for row in truth["annotations"])
    again = read(tmp_path, {**truth, "annotations": with_outlines(annotations, truth["annotations"])})
    assert to_coco(again) == truth
    repairs = {issue.code for issue in again.report.issues if issue.severity == "fix"}
    assert not repairs, again.report


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(0, 3000), flips=st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 255)), max_size=3))
def test_no_bytes_end_in_another_exception(cut: int, flips: list[tuple[int, int]], tmp_path: Path) -> None:
    data = bytearray(json.dumps(sound()).encode())
    for place, byte in flips:
        data[place % len(data)] = byte
    try:
        read(tmp_path, bytes(data[: max(cut, 1)] if cut % 2 else data))
    except DataError as error:
        assert "\n" not in error.line


def test_a_million_boxes_take_seconds(tmp_path: Path) -> None:
    """20 000 here. Time grows with their number; Python's JSON parser takes a good part of it."""
    document = sound()
    rng = random.Random(0)
    count = 20_000
    document["annotations"] = [
        {
            "id": k + 1,
            "image_id": rng.choice([10, 20, 30]),
            "category_id": rng.choice([1, 3]),
            "bbox": [rng.randrange(40), rng.randrange(40), 20.5, 20.25],
            "area": 415.125,
            "iscrowd": 0,
        }
        for k in range(count)
    ]
    path = tmp_path / "ann.json"
    path.write_text(json.dumps(document))
    start = time.process_time()
    json.loads(path.read_bytes())
    parsed = time.process_time()
    assert len(read_annotations(path).objects.labels) == count
    assert time.process_time() - parsed < 10 * (parsed - start)
