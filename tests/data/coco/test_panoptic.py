"""Panoptic annotations: read as in the files, errors name their place, written segments are read back exactly."""

from __future__ import annotations

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from command_line import run
from panoptic_files import write_panoptic
from refusals import refused
from regard.data.coco.dataset import open_detection
from regard.data.coco.panoptic import open_panoptic
from regard.data.coco.panoptic_annotations import read_category_file, read_panoptic
from regard.data.coco.panoptic_png import boxes_of, ids_of, rgb_of, segments_of
from regard.data.coco.tables import ImageRecord
from regard.data.generated.shapes import SHAPES, STUFF, ShapesConfig, write_shapes
from regard.errors import ConfigError, DataError
from regard.structures.categories import Category
from regard.structures.segments import PanopticSegments

SHAPES_CONFIG = ShapesConfig(size=48, train=6, val=3, classes=4, max_objects=4, seed=5)
CLASSES = (Category(1, "cat"), Category(7, "dog"), Category(200, "grass", is_thing=False))
CATEGORIES = [{"id": c.id, "name": c.name, "isthing": int(c.is_thing)} for c in CLASSES]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("panoptic") / "shapes"
    write_shapes(SHAPES_CONFIG, folder)
    return folder


def decoded(path: Path) -> np.ndarray:
    """(H, W) from R + 256 G + 65536 B, pixel by pixel."""
    image = Image.open(path)
    data = image.tobytes()
    values = [r + 256 * g + 65536 * b for r, g, b in zip(data[::3], data[1::3], data[2::3], strict=True)]
    return np.array(values).reshape(image.height, image.width)


def save_ids(ids: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)).save(path)


def two_images(root: Path, name: str = "{}", png_folder: str = "annotations/panoptic_{}") -> Path:
    """Images 9 and 4, in this order in the file: a cat of three separate pixels and a crowd of dogs on grass; void."""
    for split in ("train", "val"):
        big = np.zeros((6, 8), int)
        big[0, :3], big[2:4, 2:7], big[5] = 70_000, 300, 5
        big[5, 3] = big[1, 7] = 70_000
        small = np.full((5, 4), 1)
        for ids, stem in ((big, "b"), (small, "a")):
            save_ids(ids, root / png_folder.format(name.format(split)) / f"{stem}.png")
            (root / name.format(split)).mkdir(exist_ok=True)
            Image.new("RGB", ids.shape[::-1], (9, 8, 7)).save(root / name.format(split) / f"{stem}.jpg")
        document = {
            "images": [
                {"id": 9, "file_name": "b.jpg", "height": 6, "width": 8},
                {"id": 4, "file_name": "a.jpg", "height": 5, "width": 4},
            ],
            "annotations": [
                {
                    "image_id": 9,
                    "file_name": "b.png",
                    "segments_info": [
                        {"id": 5, "category_id": 200, "iscrowd": 0, "area": 7},
                        {"id": 300, "category_id": 7, "iscrowd": 1, "area": 10},
                        {"id": 70_000, "category_id": 1, "iscrowd": 0, "area": 5},
                    ],
                },
                {"image_id": 4, "file_name": "a.png", "segments_info": [{"id": 1, "category_id": 7, "area": 20}]},
            ],
            "categories": CATEGORIES[::-1],
        }
        file = root / "annotations" / f"panoptic_{name.format(split)}.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(document))
    return root


# ---- reading


@pytest.mark.parametrize(
    ("name", "png_folder"),
    [("{}", "annotations/panoptic_{}"), ("{}2017", "annotations/panoptic_{}"), ("{}2017", "panoptic_{}")],
)
def test_by_hand(name: str, png_folder: str, tmp_path: Path) -> None:
    data = open_panoptic(two_images(tmp_path, name, png_folder), "train")
    assert (len(data), data.image_ids, data.names, data.max_objects) == (2, (4, 9), ("a.jpg", "b.jpg"), (2, "b.jpg"))
    assert data.categories == CLASSES and not data.annotations.report.issues
    sample = data[1]
    assert (sample.image_id, sample.original_size, sample.image.shape) == (9, (6, 8), (3, 6, 8))
    assert sample.labels.tolist() == [2, 0]  # the crowd is left out
    assert sample.boxes.tolist() == [[0, 5, 8, 6], [0, 0, 8, 6]]
    assert sample.masks.sum((1, 2)).tolist() == [7, 5] and sample.masks[1, 5].nonzero().tolist() == [[3]]
    truth = data.segments(1)
    assert truth.is_crowd.tolist() == [False, True, False] and truth.labels.tolist() == [2, 1, 0]
    assert truth.areas.tolist() == [7, 10, 5] and truth.ids[4].tolist() == [0] * 8
    assert data[0].boxes.tolist() == [[0, 0, 4, 5]]
    without = open_panoptic(tmp_path, "train", masks=False)[1]
    assert without.masks is None and torch.equal(without.boxes, sample.boxes)
    assert torch.equal(pickle.loads(pickle.dumps(data))[1].masks, sample.masks)


def test_shapes_are_panoptic(shapes: Path) -> None:
    """Every object and both kinds of stuff, at the pixels of the PNG files, boxed and masked like the instances."""
    data, instances = open_panoptic(shapes, "train"), open_detection(shapes, "train", masks=True)
    assert [(c.name, c.is_thing) for c in data.categories] == [
        *((name, True) for name in SHAPES[:4]), *((name, False) for name in STUFF),
    ]  # fmt: skip
    assert not [issue for issue in data.annotations.report.issues if issue.code != "A46"]
    document = json.loads((shapes / "annotations/panoptic_train.json").read_text())
    for index, row in enumerate(document["annotations"]):
        sample, things = data[index], instances[index]
        ids = decoded(shapes / "annotations/panoptic_train" / row["file_name"])
        assert torch.equal(sample.image, things.image)
        for k, info in enumerate(row["segments_info"]):
            assert np.array_equal(sample.masks[k].numpy(), ids == info["id"])
            x, y, w, h = info["bbox"]
            assert sample.boxes[k].tolist() == [x, y, x + w, y + h]
            assert data.categories[sample.labels[k]].id == info["category_id"]
        n = len(things.labels)
        assert torch.equal(sample.masks[:n], things.masks) and torch.equal(sample.boxes[:n], things.boxes)
        assert sample.masks.sum(0).eq(1).all()  # every pixel belongs to one segment


def changed(folder: Path, name: str, change: Any) -> None:
    document = json.loads((folder / "annotations" / name).read_text())
    change(document)
    (folder / "annotations" / name).write_text(json.dumps(document))


def test_the_truth_for_ap_is_of_things(shapes: Path, tmp_path: Path) -> None:
    """Instances where they are annotated, under the ids of the panoptic classes; else segments."""
    folder = tmp_path / "shapes"
    shutil.copytree(shapes, folder)

    def number_anew(document: dict) -> None:
        for row in document["categories"]:
            row["id"] += 50
        for row in document["annotations"]:
            row["category_id"] += 50
            row["bbox"][2] += 0.25  # no pixel tells this

    changed(folder, "instances_val.json", number_anew)
    with_instances = open_panoptic(folder, "val").to_coco(masks=True)
    names = ("panoptic_train.json", "panoptic_train", "panoptic_val.json", "panoptic_val")
    alone = tmp_path / "alone"
    shutil.copytree(folder / "val", alone / "val")
    shutil.copytree(folder / "train", alone / "train")
    (alone / "annotations").mkdir()
    for name in names:
        copy = shutil.copytree if (folder / "annotations" / name).is_dir() else shutil.copy
        copy(folder / "annotations" / name, alone / "annotations" / name)
    without = open_panoptic(alone, "val").to_coco(masks=True)
    things = [c.id for c in open_panoptic(shapes, "val").categories if c.is_thing]
    for truth, added in ((with_instances, 0.25), (without, 0.0)):
        assert [c["id"] for c in truth["categories"]] == things
        assert all(row["bbox"][2] % 1 == added and row["segmentation"] for row in truth["annotations"])
    kinds = [sorted((r["image_id"], r["category_id"]) for r in t["annotations"]) for t in (with_instances, without)]
    assert kinds[0] == kinds[1] and len(kinds[0]) > 3
    changed(folder, "instances_val.json", lambda document: document["annotations"][0].pop("segmentation"))
    assert open_panoptic(folder, "val").to_coco(masks=True) == without
    assert open_panoptic(folder, "val", masks=False).to_coco()["annotations"][0]["bbox"][2] % 1 == 0.25
    changed(folder, "instances_val.json", lambda document: document["categories"][0].update(name="other"))
    assert open_panoptic(folder, "val", masks=False).to_coco() == open_panoptic(alone, "val", masks=False).to_coco()


def test_categories_follow_the_model(shapes: Path) -> None:
    own = open_panoptic(shapes, "train")
    wanted = tuple(replace(category, id=category.id + 40) for category in own.categories[::-1])
    data = open_panoptic(shapes, "train", categories=wanted)
    assert [c.name for c in data.categories] == [c.name for c in wanted]
    assert [issue.code for issue in data.annotations.report.issues if issue.code == "A26"] == ["A26"]
    for mine, theirs in zip(own[0].labels, data[0].labels, strict=True):
        assert own.categories[mine].name == data.categories[theirs].name
    with refused(DataError, wanted[0].name, code="A26"):
        open_panoptic(shapes, "train", categories=wanted[1:])
    with refused(DataError, STUFF[1], "thing", "stuff", code="A42"):
        open_panoptic(shapes, "train", categories=[replace(c, is_thing=True) for c in wanted])


def test_missing_data(tmp_path: Path) -> None:
    with refused(DataError, "annotations/panoptic_train2017.json", tmp_path):
        open_panoptic(tmp_path, "train")
    (two_images(tmp_path) / "annotations/panoptic_train.json").unlink()
    with refused(DataError, "train", "panoptic_val.json"):
        open_panoptic(tmp_path, "train")


def test_fingerprint_changes_with_a_png(tmp_path: Path) -> None:
    data = open_panoptic(two_images(tmp_path), "val")
    before = data.fingerprint()
    assert before == open_panoptic(tmp_path, "val").fingerprint()
    save_ids(np.arange(20).reshape(5, 4), tmp_path / "annotations/panoptic_val/a.png")
    assert data.fingerprint() != before


def test_things_without_flags_from_the_official_list(tmp_path: Path) -> None:
    file = two_images(tmp_path) / "annotations/panoptic_train.json"
    document = json.loads(file.read_text())
    for row in document["categories"]:
        del row["isthing"]
    file.write_text(json.dumps(document))
    with refused(DataError, "isthing", f"{file}:/categories/0", code="A42"):
        read_panoptic(file)
    (tmp_path / "panoptic_coco_categories.json").write_text(json.dumps(CATEGORIES))
    assert read_panoptic(file).categories == CLASSES == read_category_file(tmp_path / "panoptic_coco_categories.json")


# ---- what does not fit


def _row(document: dict, index: int = 0) -> dict:
    return document["annotations"][index]


def _info(document: dict, segment: int = 0) -> dict:
    return document["annotations"][0]["segments_info"][segment]


# What is changed; code, part of the message, and place: A for annotations, S for the segments of the first.
WRONG: dict[str, tuple[Any, str, str, str]] = {
    "id 0": (lambda d: _info(d).update(id=0), "A42", "segment id 0, expected 1 to", "S/0/id"),
    "id beyond": (lambda d: _info(d).update(id=2**24), "A42", "segment id 16777216", "S/0/id"),
    "id text": (lambda d: _info(d).update(id="5"), "A42", "id is '5'", "S/0/id"),
    "id twice": (lambda d: _info(d, 2).update(id=5), "A42", "duplicate segment id 5", "S/2/id"),
    "no id": (lambda d: _info(d, 1).pop("id"), "A42", "id is missing", "S/1"),
    "unknown class": (
        lambda d: _info(d, 1).update(category_id=8), "A20", "category_id 8 is not in categories (1, 7, 200)",
        "S/1/category_id",
    ),
    "crowd 2": (lambda d: _info(d).update(iscrowd=2), "A34", "iscrowd is 2", "S/0/iscrowd"),
    "area text": (lambda d: _info(d).update(area="7"), "A36", "area is '7'", "S/0/area"),
    "flag 2": (lambda d: d["categories"][1].update(isthing=2), "A42", "isthing is 2", "/categories/1"),
    "segments none": (lambda d: _row(d).update(segments_info=None), "A42", "segments_info is None", "A/0"),
    "segment text": (
        lambda d: _row(d)["segments_info"].append("x"), "A42", "a segment is 'x'", "S/3",
    ),
    "image twice": (lambda d: _row(d).update(image_id=4), "A42", "image 4", "A/1/image_id"),
    "image unknown": (lambda d: _row(d).update(image_id=5), "A30", "image_id 5 is not in images", "A/0/image_id"),
    "image left": (lambda d: d["annotations"].pop(), "A42", "1 of 2 images has no annotation: image 4", "/images"),
    "names swapped": (
        lambda d: (_row(d).update(file_name="a.png"), _row(d, 1).update(file_name="b.png")), "A42",
        "'b.png' is the name of image 9", "A/1/file_name",
    ),
    "name twice": (lambda d: _row(d, 1).update(file_name="b.png"), "A42", "'b.png'", "A/1/file_name"),
    "name outside": (lambda d: _row(d).update(file_name="../b.png"), "A32", "file_name '../b.png'", "A/0/file_name"),
    "png missing": (lambda d: _row(d).update(file_name="c.png"), "A42", "1 of 2 panoptic PNG files is missing", ""),
    "instances": (lambda d: _row(d).pop("segments_info"), "A07", "these are instances annotations", "A/0"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_json(name: str, tmp_path: Path) -> None:
    change, code, what, place = WRONG[name]
    file = two_images(tmp_path) / "annotations/panoptic_train.json"
    document = json.loads(file.read_text())
    change(document)
    file.write_text(json.dumps(document))
    with pytest.raises(DataError) as caught:
        open_panoptic(tmp_path, "train")
    place = place.replace("S/", "A/0/segments_info/").replace("A/", "/annotations/")
    assert (caught.value.code, caught.value.where) == (code, f"{file}:{place}" if place else str(file))
    assert what in caught.value.what and "\n" not in caught.value.line


def _painted(ids: np.ndarray) -> Any:
    return lambda path: save_ids(ids, path)


WRONG_PNG: dict[str, tuple[Any, str]] = {
    "size": (_painted(np.full((4, 5), 1)), "the PNG is 5x4, expected 4x5"),
    "stray id": (_painted(np.full((5, 4), 1) + np.eye(5, 4, dtype=int) * 65536), "pixels have the id 65537"),
    "no pixel": (_painted(np.zeros((5, 4), int)), "no pixel has the id 1"),
    "grey": (lambda path: Image.new("L", (4, 5), 1).save(path), "8-bit grey"),
    "palette": (lambda path: Image.new("P", (4, 5), 1).save(path), "palette"),
    "alpha": (lambda path: Image.new("RGBA", (4, 5), (1, 0, 0, 255)).save(path), "RGBA"),
    "jpeg": (lambda path: Image.new("RGB", (4, 5)).save(path, "JPEG"), "not a PNG file"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_PNG)
def test_wrong_png(name: str, tmp_path: Path) -> None:
    change, what = WRONG_PNG[name]
    place = "/annotations/1" + ("/segments_info/0/id" if name == "no pixel" else "")
    png = two_images(tmp_path) / "annotations/panoptic_train/a.png"
    change(png)
    data = open_panoptic(tmp_path, "train")
    for look in (data.segments, data.__getitem__):
        with pytest.raises(DataError) as caught:
            look(0)
        assert (
            caught.value.code == "A42" and caught.value.where == f"{tmp_path}/annotations/panoptic_train.json:{place}"
        )
        assert what in caught.value.what and str(png) in caught.value.what
    assert data[1].masks is not None


def test_cut_png_is_a_data_error(tmp_path: Path) -> None:
    png = two_images(tmp_path) / "annotations/panoptic_train/a.png"
    png.write_bytes(png.read_bytes()[:-20])
    with refused(DataError, png, code="I09"):
        open_panoptic(tmp_path, "train").segments(0)


def test_other_names_are_a_warning(tmp_path: Path) -> None:
    """As in Cityscapes, where image and annotation only begin alike."""
    folder = two_images(tmp_path) / "annotations/panoptic_train"
    file = folder.with_suffix(".json")
    (folder / "b.png").rename(folder / "b_panoptic.png")
    file.write_text(file.read_text().replace('"b.png"', '"b_panoptic.png"'))
    data = open_panoptic(tmp_path, "train")
    (issue,) = data.annotations.report.issues
    assert issue.code == "A42" and issue.where == f"{file}:/annotations/0/file_name" and issue.count == 1
    assert len(data[1].labels) == 2


def test_data_check(capsys: pytest.CaptureFixture, shapes: Path, tmp_path: Path) -> None:
    """With instances and without; areas that do not fit; a PNG file that does not fit."""
    both = run(capsys, "data", "check", shapes).worked().splitlines()
    segments = [line for line in both if line.startswith("panoptic ")]
    assert [line.split(",")[0] for line in segments] == ["panoptic train: 6 images", "panoptic val: 3 images"]
    assert segments[0].endswith("4 thing and 2 stuff classes") and both[-1].startswith("every image can be read")
    alone = tmp_path / "alone"
    shutil.copytree(shapes, alone, ignore=shutil.ignore_patterns("instances_*.json"))
    file = alone / "annotations/panoptic_val.json"
    document = json.loads(file.read_text())
    document["annotations"][1]["segments_info"][0]["area"] += 3
    file.write_text(json.dumps(document))
    text = run(capsys, "data", "check", alone).worked()
    assert "warning A42: 1 segment has another area than stated" in text
    assert "/annotations/1/segments_info/0/area" in text
    save_ids(np.zeros((48, 48), int), alone / "annotations/panoptic_val/000003.png")
    finished = run(capsys, "data", "check", alone)
    finished.refused(3, None, "1 kind of fault stops a training")
    assert "no pixel has the id" in finished.out


# ---- writing


def random_segments(rng: np.random.Generator, size: tuple[int, int], count: int) -> PanopticSegments:
    ids = np.zeros(size, int)
    ids.ravel()[: count + 1] = np.arange(count + 1)
    rest = ids.ravel()[count + 1 :]
    rest[:] = rng.integers(0, count + 1, rest.size)
    labels = torch.from_numpy(rng.integers(0, 3, count))
    crowd = torch.from_numpy(rng.random(count) < 0.2)
    return PanopticSegments(torch.from_numpy(ids), labels, torch.ones(count), CLASSES, crowd)


def test_writing_is_read_back_exactly(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = [ImageRecord(9, "x/b.jpg", 30, 25), ImageRecord(3, "a.jpg", 7, 11), ImageRecord(5, "c.jpg", 60, 40)]
    written = [random_segments(rng, (i.height, i.width), n) for i, n in zip(images, (20, 0, 700), strict=True)]
    folder = write_panoptic(tmp_path / "results.json", images, iter(written))
    assert sorted(path.name for path in folder.iterdir()) == ["a.png", "b.png", "c.png"]
    back = read_panoptic(tmp_path / "results.json")
    assert [image.id for image in back.images] == [3, 5, 9] and back.categories == CLASSES
    for image in images:
        mine = written[images.index(image)]
        place = [record.id for record in back.images].index(image.id)
        assert back.images[place] == image
        found = segments_of(back, place)
        assert torch.equal(found.ids, mine.ids) and torch.equal(found.labels, mine.labels)
        assert torch.equal(found.is_crowd, mine.is_crowd)
        stated = back.segments.areas[back.rows_of(place)]
        assert stated.tolist() == mine.areas.tolist()
    assert decoded(folder / "c.png").max() == 700  # needs more than one byte
    document = json.loads((tmp_path / "results.json").read_text())
    info = document["annotations"][0]["segments_info"][4]
    mask = decoded(folder / "b.png") == info["id"]
    rows, columns = mask.nonzero()
    box = [columns.min(), rows.min(), columns.max() - columns.min() + 1, rows.max() - rows.min() + 1]
    assert (info["bbox"], info["area"]) == (box, mask.sum())


def test_ids_in_three_bytes(tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 2**24, (20, 30))
    save_ids(ids, tmp_path / "a.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")), rgb_of(ids))
    assert np.array_equal(ids_of(rgb_of(ids)), ids)


def test_what_cannot_be_written(tmp_path: Path) -> None:
    image = ImageRecord(1, "a.jpg", 2, 2)
    one = PanopticSegments(torch.ones(2, 2), torch.tensor([0]), torch.ones(1), CLASSES)
    empty = PanopticSegments(torch.zeros(2, 2), torch.tensor([0]), torch.ones(1), CLASSES)
    for images, segments, what in (
        ([image], [empty], "segment 1 has no pixels"),
        ([replace(image, width=3)], [one], "segments of 2x2 for an image of 3x2 pixels"),
    ):
        with refused(ConfigError, what, "a.jpg"):
            write_panoptic(tmp_path / "r.json", images, segments)


@pytest.mark.parametrize(
    ("ids", "labels", "crowd", "what"),
    [
        (torch.full((2, 2), 2), [0], None, "a pixel has segment 2, expected 0 (void) to 1"),
        (torch.full((2, 2), -1), [0], None, "a pixel has segment -1"),
        (torch.ones(2, 2), [3], None, "label 3, expected 0 to 2"),
        (torch.ones(2), [0], None, "expected ids"),
        (torch.ones(2, 2), [0], [True, False], "expected is_crowd"),
    ],
)
def test_segments_that_contradict_themselves(ids: torch.Tensor, labels: list, crowd: list | None, what: str) -> None:
    is_crowd = None if crowd is None else torch.tensor(crowd)
    with refused(ConfigError, what):
        PanopticSegments(ids, torch.tensor(labels), torch.ones(len(labels)), CLASSES, is_crowd)


def test_boxes_of_segments() -> None:
    rng = np.random.default_rng(1)
    for _ in range(30):
        ids = rng.integers(0, 6, rng.integers(1, 7, 2))
        for k, box in enumerate(boxes_of(ids, 5).tolist(), start=1):
            rows, columns = (ids == k).nonzero()
            if not len(rows):
                assert box == [0, 0, 0, 0]
                continue
            assert box == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


# ---- without a validation split


def without_validation(shapes: Path, tmp_path: Path, *, instances: bool) -> Path:
    root = tmp_path / "data"
    shutil.copytree(shapes, root)
    for file in (root / "annotations").glob("*_val*"):
        shutil.rmtree(file) if file.is_dir() else file.unlink()
    shutil.rmtree(root / "val")
    if not instances:
        (root / "annotations/instances_train.json").unlink()
    return root


@pytest.mark.parametrize("instances", [True, False])
def test_a_split_by_content(shapes: Path, tmp_path: Path, instances: bool) -> None:
    """Every image is in one split, with its own segments; objects are split in the same way."""
    whole = open_panoptic(shapes, "train")
    root = without_validation(shapes, tmp_path, instances=instances)
    train, val = open_panoptic(root, "train"), open_panoptic(root, "val")
    assert set(train.names) | set(val.names) == set(whole.names) and not set(train.names) & set(val.names)
    assert len(val) and len(train) and train.categories == val.categories == whole.categories
    for part in (train, val):
        (issue,) = part.annotations.report.issues
        assert issue.code == "A61" and f"{len(val)} of 6 images" in issue.what
        for index, name in enumerate(part.names):
            own, other = part[index], whole[whole.names.index(name)]
            assert torch.equal(own.masks, other.masks) and torch.equal(own.labels, other.labels)
            assert own.image_id == other.image_id
    assert (val.instances is not None) == instances
    if instances:
        assert {image.id for image in val.instances.images} == set(val.image_ids)
        assert set(open_detection(root, "val").names) == set(val.names)
    assert {row["image_id"] for row in val.to_coco()["annotations"]} <= set(val.image_ids)


def test_images_are_split_by_their_pixels_not_by_their_names(shapes: Path, tmp_path: Path) -> None:
    root = without_validation(shapes, tmp_path, instances=False)
    before = {(root / "train" / name).read_bytes() for name in open_panoptic(root, "val").names}
    file = root / "annotations/panoptic_train.json"
    document = json.loads(file.read_text())
    for number, row in enumerate(reversed(document["images"])):
        new = f"z{number}.png"
        (root / "train" / row["file_name"]).rename(root / "train" / new)
        row["file_name"] = new
    file.write_text(json.dumps(document))
    val = open_panoptic(root, "val")
    assert {(val.image_folder / name).read_bytes() for name in val.names} == before


def test_a_place_in_a_part_is_that_in_the_file(shapes: Path, tmp_path: Path) -> None:
    root = without_validation(shapes, tmp_path, instances=False)
    document = json.loads((root / "annotations/panoptic_train.json").read_text())
    val = open_panoptic(root, "val")
    for index in range(len(val)):
        row = document["annotations"][int(val.annotations.rows[index])]
        assert row["image_id"] == val.image_ids[index] and row["file_name"] == val.annotations.files[index]
