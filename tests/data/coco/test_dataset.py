"""Layouts of detection folders: each is found, and errors are one line."""

from __future__ import annotations

import json
import pickle
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from refusals import refused
from regard.data.check_images import look_at
from regard.data.coco.dataset import CocoDataset, open_detection
from regard.errors import DataError, ImageError
from regard.structures.categories import Category


def document(prefix: str = "", ids: tuple[int, int] = (1, 3), names: tuple[str, str] = ("cat", "dog")) -> dict:
    """Images 7 (40x30) and 5 (24x32), in this order; two objects and a crowd in image 7, one in image 5."""

    def row(number: int, image: int, category: int, box: list[float], crowd: int = 0) -> dict[str, Any]:
        area = box[2] * box[3]
        ids = {"id": number, "image_id": image, "category_id": category}
        return {**ids, "bbox": box, "area": area, "iscrowd": crowd}

    return {
        "images": [
            {"id": 7, "file_name": f"{prefix}b.png", "height": 30, "width": 40},
            {"id": 5, "file_name": f"{prefix}a.png", "height": 32, "width": 24},
        ],
        "annotations": [
            row(1, 7, ids[1], [1, 2, 20, 10]),
            row(2, 5, ids[0], [3, 4, 10.5, 20]),
            row(3, 7, ids[0], [0, 0, 40, 30], crowd=1),
            row(4, 7, ids[0], [12, 2, 8, 25]),
        ],
        "categories": [{"id": k, "name": name} for k, name in zip(ids, names, strict=True)],
    }


def write(annotations: Path, images: Path, content: dict | None = None) -> None:
    annotations.parent.mkdir(parents=True, exist_ok=True)
    annotations.write_text(json.dumps(content or document()))
    images.mkdir(parents=True, exist_ok=True)
    for k, (name, size) in enumerate((("a.png", (24, 32)), ("b.png", (40, 30)))):
        ramp = np.arange(size[0] * size[1] * 3, dtype=np.int64).reshape(size[1], size[0], 3)
        Image.fromarray(((ramp * 7 + k) % 251).astype(np.uint8)).save(images / name)


def standard(root: Path, **splits: dict) -> Path:
    """Both splits, or a validation split alone. Without one, the training images would be split."""
    for split in splits if list(splits) == ["val"] else ("train", "val"):
        write(root / f"annotations/instances_{split}.json", root / split, splits.get(split))
    return root


# ---- layouts

LAYOUTS = {
    "official 2017": ("annotations/instances_{}2017.json", "{}2017", ""),
    "official 2014": ("annotations/instances_{}2014.json", "{}2014", ""),
    "official in images": ("annotations/instances_{}2017.json", "images/{}2017", ""),
    "plain": ("annotations/instances_{}.json", "{}", ""),
    "images by split": ("annotations/instances_{}.json", "images/{}", ""),
    "images together": ("annotations/{}.json", "images", ""),
    "names from the root": ("annotations/instances_{}.json", "images/{}", "images/{}/"),
    "names from images": ("annotations/instances_{}.json", "images/{}", "{}/"),
    "roboflow": ("{}/_annotations.coco.json", "{}", ""),
    "fiftyone": ("{}/labels.json", "{}/data", ""),
    "instances beside the images": ("{0}/instances_{0}.json", "{}", ""),
    "split beside the images": ("{0}/{0}.json", "{}", ""),
    "instances in the root": ("instances_{}.json", "images/{}", ""),
    "splits in the root": ("{}.json", "images", ""),
    "next to each other": ("{}/annotations.json", "{}/images", ""),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("split", "name"), [("train", "train"), ("val", "val"), ("val", "valid"), ("val", "test")])
def test_layouts(layout: str, split: Any, name: str, tmp_path: Path) -> None:
    annotations, images, prefix = (part.format(name) for part in LAYOUTS[layout])
    write(tmp_path / annotations, tmp_path / images, document(prefix))
    if split == "val":
        with refused(DataError, "split", name):
            open_detection(tmp_path, "train")
    else:  # without a validation split, a part of the images is one
        parts = [open_detection(tmp_path, part) for part in ("train", "val")]
        assert [len(part) for part in parts] == [1, 1] and {*parts[0].names, *parts[1].names} == {
            f"{prefix}a.png",
            f"{prefix}b.png",
        }
        annotations, images, prefix = (part.format("val") for part in LAYOUTS[layout])
        write(tmp_path / annotations, tmp_path / images, document(prefix))
    dataset = open_detection(tmp_path, split)
    assert dataset.split == split and len(dataset) == 2
    assert dataset[1].path == str(tmp_path / LAYOUTS[layout][1].format(name) / "b.png")


WHOLE_LAYOUTS = {
    "CVAT": ("annotations/instances_default.json", "images/default"),
    "CVAT, images together": ("annotations/instances_default.json", "images"),
    "Label Studio": ("result.json", "images"),
    "FiftyOne": ("labels.json", "data"),
    "Roboflow without splits": ("_annotations.coco.json", "."),
    "one file of any name": ("annotations/mine.json", "images"),
    "one file beside its images": ("mine.json", "."),
}


@pytest.mark.parametrize("layout", WHOLE_LAYOUTS)
def test_layouts_without_splits(layout: str, tmp_path: Path) -> None:
    annotations, images = WHOLE_LAYOUTS[layout]
    write(tmp_path / annotations, tmp_path / images)
    parts = [open_detection(tmp_path, part) for part in ("train", "val")]
    assert sorted(name for part in parts for name in part.names) == ["a.png", "b.png"]
    assert [issue.code for part in parts for issue in part.annotations.report.issues] == ["A61", "A61"]
    assert [parts[0].categories, sum(len(part[0].labels) for part in parts)] == [parts[1].categories, 3]
    (by_file,) = [len(open_detection(tmp_path / annotations, "val"))]
    assert by_file == 1


def test_the_folder_of_a_split_is_that_split(tmp_path: Path) -> None:
    write(tmp_path / "valid" / "_annotations.coco.json", tmp_path / "valid")
    assert len(open_detection(tmp_path / "valid", "val")) == 2
    with refused(DataError, "train"):
        open_detection(tmp_path / "valid", "train")


def test_several_files_without_splits(tmp_path: Path) -> None:
    for name in ("cats", "dogs"):
        write(tmp_path / f"{name}.json", tmp_path)
    with refused(DataError, "cats.json", "dogs.json", f"--data {tmp_path}/cats.json", code="A64"):
        open_detection(tmp_path, "train")


def test_valid_comes_before_test(tmp_path: Path) -> None:
    for name in ("train", "test", "valid"):
        write(tmp_path / name / "_annotations.coco.json", tmp_path / name)
    assert open_detection(str(tmp_path), "val").image_folder == tmp_path / "valid"


def test_missing_split_names_those_present(tmp_path: Path) -> None:
    standard(tmp_path, val=document())
    with refused(DataError, "no split train; present: val (annotations/instances_val.json)", tmp_path):
        open_detection(tmp_path, "train")


@pytest.mark.parametrize(
    ("files", "hint"),
    [
        (["train/cat/a.jpg", "train/dog/b.jpg"], "images in class folders"),
        (["photo.jpg"], "found photo.jpg"),
        (["train/a.jpg", "val/b.jpg"], "found train/, val/"),
        (["boxes.csv"], "filename,xmin,ymin,xmax,ymax,class"),
        ([], "found nothing"),
    ],
)
def test_other_layouts_get_a_hint(files: list[str], hint: str, tmp_path: Path) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with refused(DataError, hint, "annotations/instances_train.json", tmp_path, code="A64"):
        open_detection(tmp_path, "train")


def test_no_folder(tmp_path: Path) -> None:
    with refused(DataError, tmp_path / "gone"):
        open_detection(tmp_path / "gone", "train")
    (tmp_path / "file").touch()
    with refused(DataError, tmp_path / "file", code="A64"):
        open_detection(tmp_path / "file", "train")


# ---- samples


def test_samples(tmp_path: Path) -> None:
    dataset = open_detection(standard(tmp_path), "train")
    assert dataset.image_ids == (5, 7) and dataset.names == ("a.png", "b.png")
    assert [category.name for category in dataset.categories] == ["cat", "dog"]
    first, second = dataset[0], dataset[1]
    assert (first.image_id, first.original_size) == (5, (32, 24))
    assert first.image.shape == (3, 32, 24) and first.image.dtype == torch.uint8
    pixels = np.asarray(Image.open(tmp_path / "train" / "b.png").convert("RGB"))
    assert np.array_equal(second.image.permute(1, 2, 0).numpy(), pixels)
    assert first.boxes.tolist() == [[3, 4, 13.5, 24]] and first.labels.tolist() == [0]
    # The crowd is left out; what remains keeps the order of the file.
    assert second.boxes.tolist() == [[1, 2, 21, 12], [12, 2, 20, 27]] and second.labels.tolist() == [1, 0]
    assert second.boxes.dtype == torch.float32 and second.labels.dtype == torch.int64
    assert dataset.max_objects == (2, "b.png")
    with pytest.raises(IndexError):
        dataset[2]


def test_image_without_objects(tmp_path: Path) -> None:
    content = document()
    content["annotations"] = [row for row in content["annotations"] if row["image_id"] == 7]
    sample = open_detection(standard(tmp_path, train=content), "train")[0]
    assert sample.boxes.shape == (0, 4) and sample.labels.shape == (0,)


def test_targets_do_not_share_memory_with_the_data_set(tmp_path: Path) -> None:
    dataset = open_detection(standard(tmp_path), "train")
    dataset[0].boxes.zero_()
    dataset[0].labels.fill_(9)
    assert dataset[0].boxes.tolist() == [[3, 4, 13.5, 24]] and dataset[0].labels.tolist() == [0]


def test_pickled_data_set_gives_the_same(tmp_path: Path) -> None:
    dataset = open_detection(standard(tmp_path), "train")
    copy: CocoDataset = pickle.loads(pickle.dumps(dataset))
    assert len(copy) == 2 and copy.fingerprint() == dataset.fingerprint()
    assert torch.equal(copy[1].image, dataset[1].image) and torch.equal(copy[1].boxes, dataset[1].boxes)


def test_fingerprint(tmp_path: Path) -> None:
    dataset = open_detection(standard(tmp_path / "one"), "train")
    before = dataset.fingerprint()
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    assert open_detection(tmp_path / "two", "train").fingerprint() == before
    with (tmp_path / "one" / "train" / "a.png").open("ab") as file:
        file.write(b"\0")
    assert dataset.fingerprint() != before
    standard(tmp_path / "three", train=document(names=("cat", "cow")))
    assert open_detection(tmp_path / "three", "train").fingerprint() != before
    (tmp_path / "two" / "train" / "a.png").unlink()
    with pytest.raises(DataError):
        CocoDataset(
            replace(dataset.annotations, image_folder=tmp_path / "two" / "train"), "train", masks=False
        ).fingerprint()


# ---- images that do not fit


def with_size(height: int, width: int) -> dict:
    content = document()
    content["images"][0] |= {"height": height, "width": width}
    content["annotations"] = [row for row in content["annotations"] if row["id"] in (1, 2)]
    return content


def test_image_of_another_size(tmp_path: Path) -> None:
    dataset = open_detection(standard(tmp_path, train=with_size(60, 80)), "train")
    with refused(ImageError, "40x30", "80x60", "b.png", code="A33"):
        dataset[1]
    dataset = open_detection(standard(tmp_path, train=with_size(40, 30)), "train")
    with refused(ImageError, "40x30", "30x40", code="A33"):  # no EXIF explains it
        dataset[1]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("annotated", ["displayed", "raw"])
def test_exif_orientation(orientation: int, annotated: str, tmp_path: Path) -> None:
    """I22: annotations are for the displayed image, or else image and boxes both stay as in the file."""
    on_its_side = orientation >= 5
    size = (40, 30) if on_its_side and annotated == "displayed" else (30, 40)
    dataset = open_detection(standard(tmp_path, train=with_size(*size)), "train")
    path = tmp_path / "train" / "b.png"
    raw = Image.open(path).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = orientation
    raw.save(path, exif=exif)
    untouched = on_its_side and annotated == "raw"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sample = dataset[1]
    assert [warning.message.issue.code for warning in caught] == ["I22"] * untouched
    wanted = np.asarray(raw if untouched else ImageOps.exif_transpose(Image.open(path)))
    assert np.array_equal(sample.image.permute(1, 2, 0).numpy(), wanted)
    assert sample.original_size == size and sample.boxes.tolist() == [[1, 2, 21, 12]]


def test_damaged_exif_is_ignored(tmp_path: Path) -> None:
    """Reading damaged EXIF data raises other exceptions; the error is about the size."""
    dataset = open_detection(standard(tmp_path, train=with_size(40, 30)), "train")
    path = tmp_path / "train" / "b.png"
    exif = b"Exif\0\0nonsense, not TIFF"
    Image.open(path).convert("RGB").save(path, exif=exif)
    with pytest.raises(SyntaxError), Image.open(path) as image:
        image.getexif()
    with refused(ImageError, "40x30", "30x40", code="A33"):
        dataset[1]


def test_bad_images_are_all_found(tmp_path: Path) -> None:
    dataset = open_detection(standard(tmp_path), "train")
    assert not [look.error for look in look_at(dataset) if look.error]
    path = tmp_path / "train" / "b.png"
    path.write_bytes(path.read_bytes()[:-60])
    (error,) = [look.error for look in look_at(dataset) if look.error]
    assert isinstance(error, ImageError) and str(path) in error.line
    with pytest.raises(DataError):
        dataset[1]
    path.unlink()
    assert [look.error.where for look in look_at(dataset) if look.error] == [str(path)]


def test_missing_image_is_found_on_opening(tmp_path: Path) -> None:
    standard(tmp_path)
    (tmp_path / "val" / "a.png").unlink()
    with refused(DataError, "1 of 2", "'a.png'", tmp_path / "val", code="A31"):
        open_detection(tmp_path, "val")


# ---- categories of a checkpoint or of the training split (A26)


def test_categories_are_matched_by_name(tmp_path: Path) -> None:
    standard(tmp_path, train=document(), val=document(ids=(8, 2)))  # cat is 8, dog is 2: the other order
    train = open_detection(tmp_path, "train")
    val = open_detection(tmp_path, "val", categories=train.categories)
    assert [sample.labels.tolist() for sample in val] == [sample.labels.tolist() for sample in train]
    # Predictions go back to the ids of the val file.
    assert val.categories == (Category(8, "cat"), Category(2, "dog"))
    assert "warning A26: " in str(val.annotations.report)
    assert "A26" not in str(open_detection(tmp_path, "val").annotations.report)


def test_same_categories_are_no_finding(tmp_path: Path) -> None:
    train = open_detection(standard(tmp_path), "train")
    val = open_detection(tmp_path, "val", categories=train.categories)
    assert str(val.annotations.report) == "" and val[1].labels.tolist() == train[1].labels.tolist()


@pytest.mark.parametrize("names", [("cat", "cow"), ("cat", "Dog")])
def test_other_categories(names: tuple[str, str], tmp_path: Path) -> None:
    standard(tmp_path, train=document(), val=document(names=names))
    train = open_detection(tmp_path, "train")
    with refused(DataError, "'dog' is missing", f"'{names[1]}' is new", code="A26"):
        open_detection(tmp_path, "val", categories=train.categories)
    with refused(DataError, "'dog' is new", code="A26"):
        open_detection(tmp_path, "train", categories=train.categories[:1])


# ---- what cannot be trained on


def test_training_needs_objects(tmp_path: Path) -> None:
    empty = {**document(), "annotations": []}
    standard(tmp_path, train=empty, val=empty)
    with refused(DataError, "instances_train.json", code="A09"):
        open_detection(tmp_path, "train")
    val = open_detection(tmp_path, "val")
    assert len(val) == 2 and "warning A09" in str(val.annotations.report) and val.max_objects[0] == 0


def test_share_of_unusable_boxes_is_limited(tmp_path: Path) -> None:
    content = document()
    row = content["annotations"][0]
    content["annotations"] += [{**row, "id": 10 + k} for k in range(196)]  # 199 objects and a crowd
    content["annotations"][0] = {**row, "bbox": [1, 2, 0, 10], "area": 0}
    assert len(open_detection(standard(tmp_path, train=content), "train")[1].boxes) == 197
    for k in (10, 11):
        content["annotations"][k] = {**row, "id": k, "bbox": [100, 2, 5, 10], "area": 50}
    standard(tmp_path, train=content, val=content)
    with refused(DataError, "3 of 199 boxes", "1.00%") as raised:
        open_detection(tmp_path, "train")
    assert raised.value.code in ("A12", "A15")
    assert len(open_detection(tmp_path, "val")) == 2
