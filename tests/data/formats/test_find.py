"""The same data in every format give the same samples; folders of detection data are never class folders."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from command_line import digest, run
from detection_files import Picture, copy_images, draw_pictures, pictures_of_coco, write_csv, write_voc, write_yolo
from refusals import refused
from regard.data.class_images.dataset import is_classification, open_classification
from regard.data.coco.dataset import CocoDataset, open_detection
from regard.data.formats.find import detection_format, detection_splits, has_detection
from regard.errors import DataError

DATA = Path(__file__).parents[4] / "shared/data"
NAMES = ["cat", "dog"]


def ultralytics(root: Path, splits: dict[str, list[Picture]], names: list[str]) -> None:
    for split, pictures in splits.items():
        write_yolo(pictures, root / "images" / split, root / "labels" / split, names)
    (root / "data.yaml").write_text(
        f"path: .\ntrain: images/train\nval: images/val\nnames: {dict(enumerate(names))!r}\n"
    )


def roboflow(root: Path, splits: dict[str, list[Picture]], names: list[str]) -> None:
    for split, pictures in splits.items():
        name = "valid" if split == "val" else split
        write_yolo(pictures, root / name / "images", root / name / "labels", names)
    text = f"train: ../train/images\nval: ../valid/images\nnc: {len(names)}\nnames: {names!r}\n"
    (root / "data.yaml").write_text(text)


def without_settings(root: Path, splits: dict[str, list[Picture]], names: list[str]) -> None:
    ultralytics(root, splits, names)
    (root / "data.yaml").unlink()
    (root / "classes.txt").write_text("\n".join(names))


def darknet(root: Path, splits: dict[str, list[Picture]], names: list[str]) -> None:
    for split, pictures in splits.items():
        folder = root / f"obj_{split}_data"
        write_yolo(pictures, folder, folder, names)
        listed = "\n".join(f"data/obj_{split}_data/{picture.file.name}" for picture in pictures)
        (root / ("valid.txt" if split == "val" else "train.txt")).write_text(listed)
    (root / "obj.names").write_text("\n".join(names))
    (root / "obj.data").write_text(f"classes = {len(names)}\ntrain = data/train.txt\nnames = data/obj.names\n")


def challenge(root: Path, splits: dict[str, list[Picture]], names: list[str]) -> None:
    base = root / "VOCdevkit" / "VOC2012"
    for split, pictures in splits.items():
        write_voc(pictures, base / "JPEGImages", base / "Annotations")
        lists = base / "ImageSets" / "Main"
        lists.mkdir(parents=True, exist_ok=True)
        (lists / f"{split}.txt").write_text("\n".join(picture.file.stem for picture in pictures))


def voc_beside(root: Path, splits: dict[str, list[Picture]], names: list[str]) -> None:
    for split, pictures in splits.items():
        folder = root / ("valid" if split == "val" else split)
        write_voc(pictures, folder, folder, sizes=False)


def csv_corners(root: Path, splits: dict[str, list[Picture]], names: list[str]) -> None:
    for split, pictures in splits.items():
        write_csv(pictures, root / "images", root / "data" / f"{split}_labels.csv")


def csv_sizes(root: Path, splits: dict[str, list[Picture]], names: list[str]) -> None:
    for split, pictures in splits.items():
        write_csv(pictures, root / split, root / f"{split}.csv", corners=False)


FORMATS = {
    "YOLO": ultralytics, "YOLO of Roboflow": roboflow, "YOLO without settings": without_settings,
    "YOLO of Darknet": darknet, "Pascal VOC": challenge, "Pascal VOC beside": voc_beside, "CSV": csv_corners,
    "CSV of sizes": csv_sizes,
}  # fmt: skip


def samples(data: CocoDataset) -> dict[str, tuple]:
    """File name -> pixels, and names and boxes of the objects."""
    found = {}
    for index in range(len(data)):
        sample = data[index]
        names = [data.categories[label].name for label in sample.labels.tolist()]
        objects = sorted(zip(names, np.round(sample.boxes.numpy(), 3).tolist(), strict=True))
        found[Path(sample.path).name] = (sample.image.shape, int(sample.image.sum(dtype=int) % 9973), objects)
    return found


def wanted(pictures: list[Picture]) -> dict[str, list]:
    return {
        picture.file.name: sorted(
            (name, np.round(np.float32([x, y, x + w, y + h]), 3).tolist()) for name, (x, y, w, h) in picture.objects
        )
        for picture in pictures
    }


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_samples(name: str, tmp_path: Path) -> None:
    splits = {"train": draw_pictures(tmp_path / "a", 6), "val": draw_pictures(tmp_path / "b", 4, seed=1)}
    root = tmp_path / "data"
    FORMATS[name](root, splits, NAMES)
    before = digest(root)
    assert detection_format(root) == name.partition(" of")[0].partition(" without")[0].partition(" beside")[0]
    assert not is_classification(root) and detection_splits(root) == ("train", "val")
    for split, pictures in splits.items():
        data = open_detection(root, split)
        assert [category.name for category in data.categories] == NAMES
        assert {file: found[2] for file, found in samples(data).items()} == wanted(pictures)
        assert not data.annotations.report.issues and len(data.fingerprint()) == 64
    assert digest(root) == before


@pytest.mark.parametrize("data", ["raccoon", "nuclei", "coco_sample"])
@pytest.mark.parametrize("name", ["YOLO", "YOLO of Roboflow", "Pascal VOC", "CSV"])
def test_real_data_give_the_same_samples(data: str, name: str, tmp_path: Path) -> None:
    if not (DATA / data).is_dir():
        pytest.skip("the shared data are not here")
    splits = {split: pictures_of_coco(DATA / data, split) for split in ("train", "val")}
    truth = [open_detection(DATA / data, split) for split in ("train", "val")]
    FORMATS[name](tmp_path, splits, [category.name for category in truth[0].categories])
    for coco in truth:
        own = open_detection(tmp_path, coco.split)
        expected, found = wanted(splits[coco.split]), {}
        for index in range(len(own)):
            boxes, labels = own.annotations.targets(index)
            objects = sorted(
                (own.categories[label].name, np.round(box, 3).tolist())
                for label, box in zip(labels.tolist(), boxes, strict=True)
            )
            found[Path(own.names[index]).name] = objects
        assert found.keys() == expected.keys() == {Path(name).name for name in coco.names}
        for file, objects in expected.items():
            assert [row[0] for row in found[file]] == [row[0] for row in objects]
            apart = [np.abs(np.subtract(a[1], b[1])).max() for a, b in zip(found[file], objects, strict=True)]
            assert max(apart, default=0) <= 0.002
        index = own.names.index(next(n for n in own.names if Path(n).name == Path(coco.names[0]).name))
        assert own[index].image.equal(coco[0].image)


def test_a_classifier_does_not_take_them(tmp_path: Path) -> None:
    roboflow(tmp_path, {"train": draw_pictures(tmp_path / "a", 3)}, NAMES)
    with refused(DataError, "YOLO", "detection", code="A48"):
        open_classification(tmp_path)


def test_class_folders_stay_class_folders(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for name in NAMES:
            copy_images(draw_pictures(tmp_path / "a", 2), tmp_path / "data" / split / name)
    root = tmp_path / "data"
    (root / "classes.txt").write_text("cat\ndog\n")
    (root / "README.txt").write_text("photographs")
    (root / "labels.json").write_text('{"classes": ["cat"], "labels": {"a": 0}}')
    (root / "train.csv").write_text("path,label\ntrain/cat/photo.0-0.png,cat\n")
    (root / "config.yaml").write_text("lr: 0.1\n")
    assert is_classification(root) and not has_detection(root)


@pytest.mark.parametrize("folder", ["thumbs", "masks"])
def test_folders_beside_the_images_are_no_classes(folder: str, capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    """FiftyOne's layout with another folder of images."""
    import json

    pictures = draw_pictures(tmp_path / "a", 3)
    for split in ("train", "val"):
        copy_images(pictures, tmp_path / "data" / split / "data")
        copy_images(pictures, tmp_path / "data" / split / folder)
        rows = [{"id": k, "file_name": p.file.name, "width": p.size[0], "height": p.size[1]} for k, p in
                enumerate(pictures)]  # fmt: skip
        box = {"id": 1, "image_id": 0, "category_id": 1, "bbox": [1, 1, 9, 9], "area": 81, "iscrowd": 0}
        document = {"images": rows, "annotations": [box], "categories": [{"id": 1, "name": "x"}]}
        (tmp_path / "data" / split / "labels.json").write_text(json.dumps(document))
    text = run(capsys, "data", "check", tmp_path / "data").worked()
    assert "train: 3 images, 1 object, 1 class" in text


@pytest.mark.parametrize("name", FORMATS)
def test_commands_agree(name: str, capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    FORMATS[name](tmp_path / "data", {"val": draw_pictures(tmp_path / "a", 3)}, NAMES)
    text = run(capsys, "data", "check", tmp_path / "data").worked()
    assert "val: 3 images" in text and "remove the folder" not in text


WHOLE = {
    "Label Studio": ("images", "labels", "classes.txt"),
    "CVAT": ("obj_train_data", "obj_train_data", "obj.names"),
    "beside each other": (".", ".", "classes.txt"),
    "names beside labels": ("images", "labels", "labels/classes.txt"),
}


@pytest.mark.parametrize("layout", WHOLE)
def test_yolo_without_splits(layout: str, tmp_path: Path) -> None:
    images, labels, names = WHOLE[layout]
    pictures = draw_pictures(tmp_path / "a", 12)
    write_yolo(pictures, tmp_path / "d" / images, tmp_path / "d" / labels, NAMES)
    (tmp_path / "d" / names).write_text("cat\ndog\n")
    (tmp_path / "d" / "notes.json").write_text('{"categories": 3}')
    parts = [open_detection(tmp_path / "d", split) for split in ("train", "val")]
    found = {**samples(parts[0]), **samples(parts[1])}
    assert {file: row[2] for file, row in found.items()} == wanted(pictures)
    assert {issue.code for issue in parts[0].annotations.report.issues} == {"A61"}


def test_samples_can_be_sent_to_workers(tmp_path: Path) -> None:
    voc_beside(tmp_path, {"train": draw_pictures(tmp_path / "a", 3), "val": draw_pictures(tmp_path / "a", 2)}, NAMES)
    data = open_detection(tmp_path, "train")
    assert samples(pickle.loads(pickle.dumps(data))) == samples(data)


def test_annotations_that_are_named_themselves(tmp_path: Path) -> None:
    splits = {"train": draw_pictures(tmp_path / "a", 4), "val": draw_pictures(tmp_path / "b", 2, seed=1)}
    roboflow(tmp_path / "yolo", splits, NAMES)
    write_csv(splits["train"], tmp_path / "csv" / "images", tmp_path / "csv" / "mine.csv")
    assert len(open_detection(tmp_path / "yolo" / "data.yaml", "train")) == 4
    parts = [open_detection(tmp_path / "csv" / "mine.csv", split) for split in ("train", "val")]
    assert sum(map(len, parts)) == 4
