"""The table of bad inputs: 32 kinds of images and 51 of annotations, each made here, and what `data check` says of it.

OK: nothing is said. NOTE, WARN, FIX and SKIP: an issue with the code, and no error. ERR: an error with the code.
Images are cases of `image_corpus` in class folders; annotations are a sound COCO folder with one change.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from image_corpus import bad_images, good_images
from image_files import encode, exif, scene
from refusals import refused
from regard.data.check import Findings, check_folder
from regard.data.images import to_image
from regard.errors import DataError
from regard.metrics.detection import CocoDetections, evaluate_detections

Document = dict[str, Any]


def outcome(findings: Findings, code: str | None) -> str:
    """What was said with this code; the worst of what was said if it is None."""
    kinds = {issue.severity for issue in findings.issues if code is None or issue.code == code}
    words = (("error", "ERR"), ("skip", "SKIP"), ("fix", "FIX"), ("warn", "WARN"), ("note", "NOTE"))
    return next((word for kind, word in words if kind in kinds), "OK")


def assert_outcome(findings: Findings, expected: str, code: str | None) -> None:
    said = "\n".join(findings)
    assert outcome(findings, code) == expected, said
    assert findings.stops_training == (expected == "ERR"), said
    assert all(line.isprintable() and "remove the folder" not in line for line in findings), said


# ---- images


def classes(root: Path, data: bytes | None = None) -> Path:
    """A sound set of class folders, and an image of its own kind among them."""
    for split, start in (("train", 100), ("val", 110)):
        for k, name in enumerate(("cat", "dog")):
            folder = root / split / name
            folder.mkdir(parents=True)
            (folder / "a.png").write_bytes(encode(scene(start + k), "PNG"))
    if data is not None:
        (root / "train/cat/x.jpg").write_bytes(data)
    return root


def things_that_are_no_files(root: Path) -> Path:
    (classes(root) / "train/cat/gone.jpg").symlink_to(root / "nothing.jpg")
    (root / "train/cat/zero.jpg").symlink_to("/dev/zero")
    os.mkfifo(root / "train/cat/pipe.jpg")
    return root


def odd_names(root: Path) -> Path:
    for number, name in enumerate(("größe.png", "two\nlines.png", "%s.png", "-x.png", "a" * 251 + ".png", "A.PNG")):
        (classes(root) if number == 0 else root).joinpath("train/cat", name).write_bytes(
            encode(scene(120 + number), "PNG")
        )
    return root


def the_same_in_both(root: Path) -> Path:
    (classes(root) / "val/cat/b.png").write_bytes((root / "train/cat/a.png").read_bytes())
    return root


IMAGES: dict[str, tuple[str, str | None]] = {
    "I01": ("ERR", "I01"), "I02": ("ERR", "I02"), "I03": ("ERR", "I03"), "I04": ("ERR", "I04"), "I05": ("ERR", "I05"),
    "I06": ("ERR", "I06"), "I07": ("ERR", "I07"), "I08": ("ERR", "I08"), "I09": ("ERR", "I09"), "I10": ("OK", None),
    "I11": ("OK", None), "I12": ("OK", None), "I13": ("OK", None), "I14": ("OK", None), "I15": ("OK", None),
    "I16": ("ERR", "I16"), "I17": ("ERR", "I17"), "I19": ("ERR", "I19"), "I20": ("ERR", "I20"),
    "I21": ("FIX", "I21"), "I23": ("OK", None), "I24": ("WARN", "I24"), "I25": ("OK", None), "I26": ("OK", None),
    "I32": ("ERR", "I32"),
}  # fmt: skip
# The reference skips broken images in training; here every one is an error, since a training would end at it.


@pytest.mark.parametrize("name", IMAGES)
def test_images(name: str, tmp_path: Path) -> None:
    expected, code = IMAGES[name]
    corpus = bad_images() if expected == "ERR" else good_images()
    cases = [case for case in corpus if case.id.startswith(name) and code in (None, name)]
    cases = [case for case in cases if expected != "ERR" or case.code == name]  # type: ignore[union-attr]
    assert_outcome(check_folder(classes(tmp_path, cases[0].data)), expected, code)


OTHER_IMAGES: dict[str, tuple[Callable[[Path], Path], str, str | None]] = {
    "I22": (lambda root: classes(root, encode(scene(), "JPEG", exif=exif(6))), "OK", None),  # boxes: test_check.py
    # A training takes up to 178 million pixels: the limits of the warning zone are those of a server.
    "I18": (lambda root: classes(root, bad("I17-PNG-400M")), "ERR", "I17"),
    "I27": (things_that_are_no_files, "ERR", "I27"),
    "I28": (odd_names, "OK", None),
    "I30": (the_same_in_both, "WARN", "I30"),
}


def bad(name: str) -> bytes:
    return next(case.data for case in bad_images() if case.id == name)


@pytest.mark.parametrize("name", OTHER_IMAGES)
def test_other_images(name: str, tmp_path: Path) -> None:
    make, expected, code = OTHER_IMAGES[name]
    assert_outcome(check_folder(make(tmp_path)), expected, code)


def test_I29(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that goes between the list and its turn."""
    from regard.data.class_images import dataset

    opened = dataset._dataset

    def and_remove(*arguments: Any) -> Any:
        data = opened(*arguments)
        (tmp_path / "train/cat/a.png").unlink(missing_ok=True)
        return data

    monkeypatch.setattr(dataset, "_dataset", and_remove)
    assert_outcome(check_folder(classes(tmp_path)), "ERR", "I29")


def test_I31() -> None:
    """Arrays are no data set: whoever passes one gets the error."""
    for source in (np.full((8, 8, 3), np.nan), np.zeros((8, 8, 2), np.uint8), torch.zeros(2, 3, 8, 8)):
        with refused(DataError, code="I31"):
            to_image(source)


# ---- annotations


def sound() -> Document:
    """Three images with 40 objects of two classes each; each object has an outline, and there is a crowd of runs."""
    images = [{"id": k, "file_name": f"{k}.png", "width": 64, "height": 64} for k in (1, 2, 3)]
    rows: list[dict] = []
    for image in (1, 2, 3):
        for k in range(40):
            x, y = 6 * (k % 8) + image, 10 * (k // 8) + image
            rows.append(
                {
                    "id": len(rows) + 1,
                    "image_id": image,
                    "category_id": 1 + 2 * (k % 2),
                    "bbox": [x, y, 5, 7],
                    "area": 35,
                    "iscrowd": 0,
                    "segmentation": [[x, y, x + 5, y, x + 5, y + 7, x, y + 7]],
                }
            )
    runs = {"size": [64, 64], "counts": [64, 128, 64 * 61]}
    crowd = {"id": 121, "image_id": 3, "category_id": 3, "bbox": [1, 0, 2, 64], "area": 128, "iscrowd": 1}
    rows.append({**crowd, "segmentation": runs})
    return {"images": images, "annotations": rows, "categories": [{"id": 1, "name": "cat"}, {"id": 3, "name": "dog"}]}


def write_coco(root: Path, train: Document | bytes, val: Document | None = None) -> Path:
    """Different images of noise in both splits."""
    (root / "annotations").mkdir(parents=True)
    for number, (split, document) in enumerate((("train", train), ("val", sound() if val is None else val))):
        (root / split).mkdir()
        for k in (1, 2, 3):
            pixels = np.random.default_rng(10 * number + k).integers(0, 255, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / split / f"{k}.png")
        data = document if isinstance(document, bytes) else json.dumps(document).encode()
        (root / f"annotations/instances_{split}.json").write_bytes(data)
    return root


def put(table: str, row: int, /, **values: Any) -> Callable[[Document], Any]:
    """Change keys of a row; `...` takes the key away."""

    def change(document: Document) -> None:
        for key, value in values.items():
            if value is ...:
                del document[table][row][key]
            else:
                document[table][row][key] = value

    return change


def box(x: float, y: float, w: float, h: float) -> Callable[[Document], Any]:
    around = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    return put("annotations", 4, bbox=[x, y, w, h], area=max(w * h, 0), segmentation=around if w * h > 0 else None)


def each(change: Callable[[dict], Any], table: str = "annotations") -> Callable[[Document], Any]:
    def on_all(document: Document) -> None:
        for row in document[table]:
            change(row)

    return on_all


def add(table: str, **row: Any) -> Callable[[Document], Any]:
    return lambda document: document[table].append(row)


def text(change: Callable[[str], str]) -> Callable[[Document], bytes]:
    return lambda document: change(json.dumps(document)).encode()


def corners(row: dict) -> None:
    x, y, w, h = row["bbox"]
    row.update(bbox=[x, y, x + w, y + h], segmentation=None)


def fractions(row: dict) -> None:
    row.update(bbox=[value / 64 for value in row["bbox"]], segmentation=None)


def no_objects(document: Document) -> None:
    document["annotations"] = []


def many(document: Document) -> None:
    rows = [document["annotations"][k % 40] for k in range(10_000)]
    document["annotations"] = [
        {**row, "id": k + 1, "bbox": [row["bbox"][0] + k / 1e5, *row["bbox"][1:]], "segmentation": None}
        for k, row in enumerate(rows)
    ]


def one_of_each_category(document: Document) -> None:
    for row in document["annotations"]:
        row["category_id"] = 1


def from_zero(document: Document) -> None:
    for row in document["annotations"]:
        row["category_id"] = 0
    document["categories"] = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]


def with_gaps(document: Document) -> None:
    for row in [*document["annotations"], *document["categories"]]:
        key = "category_id" if "category_id" in row else "id"
        row[key] = {1: 0, 3: 90}[row[key]]


Case = tuple[Callable[[Document], Any], str, str | None]
ANNOTATIONS: dict[str, list[Case]] = {
    "A01": [(lambda _: b"", "ERR", "A01")],
    "A02": [(text(lambda t: t[:-9]), "ERR", "A02")],
    "A03": [(text(lambda t: "\ufeff" + t), "FIX", "A03")],
    "A04": [(text(lambda t: t.replace("35", "NaN", 1)), "ERR", "A04"), (box(1, 1, float("inf"), 3), "ERR", "A04")],
    "A05": [(lambda _: b"[" * 100_000, "ERR", "A05"), (text(lambda t: t.replace("35", "9" * 5000, 1)), "ERR", "A05")],
    "A06": [(text(lambda t: t.replace('"area": 35', '"area": 3, "area": 35', 1)), "WARN", "A06")],
    "A07": [(lambda _: b"[]", "ERR", "A07"), (lambda _: b'{"images": []}', "ERR", "A07"),
            (lambda d: d.update(images={}), "ERR", "A07")],
    "A08": [(lambda d: d.update(images=[], annotations=[]), "ERR", "A08")],
    "A09": [(no_objects, "ERR", "A09")],
    "A10": [(lambda d: d.update(annotations=d["annotations"][:80]), "OK", None)],
    "A11": [(box(60, 60, 4.5, 4.5), "OK", None), (box(60, 60, 10, 10), "FIX", "A11")],
    "A12": [(box(70, 70, 5, 5), "SKIP", "A12")],
    "A13": [(box(-5, -5, 15, 15), "FIX", "A11")],  # as A11
    "A14": [(box(30, 30, -5, 5), "ERR", "A14")],
    "A15": [(box(30, 30, 0, 5), "SKIP", "A15")],
    "A16": [(box(1e30, 0, 5, 5), "ERR", "A16")],
    "A17": [(put("annotations", 3, bbox=value), "ERR", "A17") for value in ([1, 2, 3], ["1", 2, 3, 4], None, ...)],
    "A18": [(each(corners), "ERR", "A18")],
    "A19": [(each(fractions), "ERR", "A19")],
    "A20": [(put("annotations", 3, category_id=99), "ERR", "A20")],
    "A21": [(from_zero, "ERR", "A21")],
    "A22": [(put("annotations", 3, category_id="1"), "ERR", "A22")],
    "A23": [(with_gaps, "OK", None)],
    "A24": [(put("categories", 1, id=1), "ERR", "A24")],
    "A25": [(put("categories", 1, name="cat"), "ERR", "A25"), (put("categories", 1, name=""), "ERR", "A25")],
    "A27": [(put("annotations", 0, id=0), "FIX", "A27")],
    "A28": [(put("annotations", 0, id=2), "FIX", "A28")],
    "A29": [(put("images", 1, id=1), "ERR", "A29"), (put("images", 1, file_name="1.png"), "WARN", "A29")],
    "A30": [(put("annotations", 3, image_id=9), "ERR", "A30"), (put("annotations", 3, image_id="1"), "ERR", "A30")],
    "A31": [(put("images", 1, file_name="9.png"), "ERR", "A31")],
    "A32": [(put("images", 1, file_name=name), "ERR", "A32") for name in ("/a", "../a", "http://a/b.png", "a\0.png")],
    "A33": [(put("images", 1, width=..., height=...), "FIX", "A33"), (put("images", 1, width=65), "ERR", "A33")],
    "A34": [(put("annotations", 3, iscrowd=...), "FIX", "A34"), (put("annotations", 3, iscrowd=False), "OK", None),
            (put("annotations", 3, iscrowd=2), "ERR", "A34")],
    "A35": [(put("annotations", 120, id=500), "OK", None)],
    "A36": [(put("annotations", 3, area=...), "FIX", "A36"), (put("annotations", 3, area=4000), "FIX", "A36")],
    "A37": [(put("annotations", 3, segmentation=value), "SKIP", "A37")
            for value in ([], [[1, 2, 3, 4]], [[7, 1, 12, 1, 12, 8, 9]])],
    "A38": [(put("annotations", 3, segmentation=[[1, 1, 1e8, 1, 5, 5]]), "ERR", "A38")],
    "A39": [(put("annotations", 120, segmentation={"size": [64, 64], "counts": counts}), "ERR", "A39")
            for counts in ([5, 5], [-1, 4097], "~~~")],
    "A40": [(put("annotations", 120, segmentation={"size": size, "counts": [64, 128, 3904]}), "ERR", "A40")
            for size in ([32, 128], [10**6, 10**6])],
    "A41": [(put("annotations", 3, bbox=[40, 40, 5, 7]), "WARN", "A41")],
    # How many objects are too many depends on the model: `train` refuses them, `check` tells of more than 100.
    "A43": [(lambda d: each(lambda row: row.update(image_id=1))(d), "NOTE", "A43")],
    "A44": [(many, "NOTE", "A43")],
    # One class is nothing to learn for a classifier (test_class_folders); a detector finds it.
    "A45": [(lambda d: (one_of_each_category(d), d["categories"].pop()), "OK", None)],
    "A46": [(one_of_each_category, "WARN", "A46")],
    "A51": [(lambda d: d["categories"][0].update(name='<script>-"&'), "OK", None)],
}  # fmt: skip
CASES = [(f"{name}-{k}", *case) for name, cases in ANNOTATIONS.items() for k, case in enumerate(cases)]


@pytest.mark.parametrize(("name", "change", "expected", "code"), CASES, ids=[case[0] for case in CASES])
def test_annotations(name: str, change: Callable, expected: str, code: str | None, tmp_path: Path) -> None:
    document = sound()
    train = change(document)
    val = sound()
    if name.startswith(("A21", "A23", "A45", "A51")):  # both splits have these categories
        val = copy.deepcopy(document) if name[:3] != "A21" else {**sound(), "categories": document["categories"]}
        if name.startswith("A21"):
            each(lambda row: row.update(category_id=1 + row["id"] % 2))(val)
    train = train if isinstance(train, bytes) else document
    assert_outcome(check_folder(write_coco(tmp_path, train, val)), expected, code)


def test_A26(tmp_path: Path) -> None:
    """The same names under other ids are matched; other names are no data to score on."""
    val = sound()
    with_gaps(val)
    assert_outcome(check_folder(write_coco(tmp_path / "ids", sound(), val)), "WARN", "A26")
    val["categories"][1]["name"] = "cow"
    assert_outcome(check_folder(write_coco(tmp_path / "names", sound(), val)), "ERR", "A26")


def test_A42(tmp_path: Path) -> None:
    from regard.data.generated.shapes import ShapesConfig, write_shapes

    write_shapes(ShapesConfig(train=2, val=1, size=48), tmp_path / "s")
    assert not check_folder(tmp_path / "s").stops_training
    png = tmp_path / "s/annotations/panoptic_train/000001.png"
    Image.new("RGB", (48, 48), (9, 9, 9)).save(png)
    assert_outcome(check_folder(tmp_path / "s"), "ERR", "A42")
    png.unlink()
    assert_outcome(check_folder(tmp_path / "s"), "ERR", "A42")


def test_A47() -> None:
    """Predictions are no data set: scoring them refuses what is wrong, and none are AP 0."""
    truth = sound()
    none = np.zeros(0, np.int64)
    assert evaluate_detections(truth, CocoDetections(none, none, np.zeros((0, 4)), np.zeros(0))).stats["AP"] == 0
    for image, category, score in ((1, 1, np.nan), (9, 1, 0.5), (1, 9, 0.5)):
        found = CocoDetections(np.array([image]), np.array([category]), np.ones((1, 4)), np.array([score]))
        with refused(DataError, code="A47"):
            evaluate_detections(truth, found)


def test_A48_and_A45_of_class_folders(tmp_path: Path) -> None:
    """Strange files are no fault; an empty class, a class of validation alone and a single class are."""
    for name in (".DS_Store", "Thumbs.db", "deeper/b.png"):
        file = (classes(tmp_path / "odd") if name[0] == "." else tmp_path / "odd") / "train/cat" / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(encode(scene(130), "PNG"))
    assert_outcome(check_folder(tmp_path / "odd"), "OK", None)
    (classes(tmp_path / "empty") / "train/cow").mkdir()
    (tmp_path / "empty/train/horse").mkdir()
    (tmp_path / "empty/train/horse/a.xml").touch()
    findings = check_folder(tmp_path / "empty")
    assert_outcome(findings, "ERR", "A48")
    assert all(any(f"train/{name}" in line for line in findings) for name in ("cow", "horse"))
    (classes(tmp_path / "new") / "train/cat").rename(tmp_path / "new/val/cow")
    assert_outcome(check_folder(tmp_path / "new"), "ERR", "A48")
    (classes(tmp_path / "two") / "train/dog/b.png").write_bytes((tmp_path / "two/train/cat/a.png").read_bytes())
    assert_outcome(check_folder(tmp_path / "two"), "WARN", "A48")
    for split in ("train", "val"):
        (classes(tmp_path / "one") if split == "train" else tmp_path / "one").joinpath(split, "dog/a.png").unlink()
        (tmp_path / "one" / split / "dog").rmdir()
    assert_outcome(check_folder(tmp_path / "one"), "ERR", "A45")


def test_A49(tmp_path: Path) -> None:
    """Every wrong row is told, and none keeps the others from being read."""
    classes(tmp_path)
    rows = ["path,label", "train/cat/a.png,cat", "train/dog/a.png,dog"]
    (tmp_path / "val.csv").write_text("\n".join(["path,label", "val/cat/a.png,cat", "val/dog/a.png,dog"]))
    (tmp_path / "train.csv").write_text("\n".join(rows))
    assert_outcome(check_folder(tmp_path), "OK", None)
    (tmp_path / "train.csv").write_text("\n".join([*rows, "gone.png,cat", "a,b,c", "x.png,", ""]))
    findings = check_folder(tmp_path)
    assert_outcome(findings, "ERR", "A49")
    assert all(any(f"train.csv:{line}" in text for text in findings) for line in (4, 5, 6))
    (tmp_path / "train.csv").write_text("\n".join(rows[1:]))
    assert_outcome(check_folder(tmp_path), "ERR", "A49")


def test_A50(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_coco(tmp_path, sound())
    monkeypatch.setattr("regard.data.coco.json_file.MAX_BYTES", 1000)
    assert_outcome(check_folder(tmp_path), "ERR", "A50")


def test_every_case_has_its_row() -> None:
    apart = {"I29", "I31", "A26", "A42", "A47", "A48", "A49", "A50"}
    rows = {*IMAGES, *OTHER_IMAGES, *ANNOTATIONS, *apart}
    assert rows == {f"I{k:02}" for k in range(1, 33)} | {f"A{k:02}" for k in range(1, 52)}
