"""A folder with images and annotations as a data set: which layout it has is found out, not asked."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from regard.data.checks import CocoAnnotations, read_annotations
from regard.data.images import image_orientation, read_image
from regard.data.samples import Category, Sample
from regard.errors import DataError

Split = Literal["train", "val"]

MOST_UNUSABLE = 0.01  # of the objects of a training split
# What people call the two splits; where several are there the first is taken.
_SPLIT_NAMES: dict[str, tuple[str, ...]] = {
    "train": ("train",),
    "val": ("val", "valid", "validation", "test"),
}
# COCO as published, COCO as most tools write it, Roboflow, FiftyOne. {} is the name of the split.
_ANNOTATION_FILES = (
    "annotations/instances_{}2017.json",
    "annotations/instances_{}2014.json",
    "annotations/instances_{}.json",
    "annotations/{}.json",
    "{}/_annotations.coco.json",
    "{}/annotations.json",
    "{}/labels.json",
)
_IMAGE_FOLDERS = ("{0}{1}", "images/{0}{1}", "{0}{1}/images", "{0}{1}/data", "images", ".")


class CocoDataset:
    """Images with boxes, in ascending order of the image ids; `dataset[i]` decodes image i into a `Sample`.

    Boxes are xyxy in pixels of the image as displayed, labels index `categories`; crowds and boxes without
    area are left out. Holds no open files and can be sent to the workers of a data loader.
    """

    def __init__(self, annotations: CocoAnnotations, image_folder: Path, split: str) -> None:
        self.annotations = annotations
        self.image_folder = image_folder
        self.split = split

    def __len__(self) -> int:
        return len(self.annotations.images)

    def __getitem__(self, index: int) -> Sample:
        """Raises DataError for an image that cannot be read or has another size than annotated (A33)."""
        record = self.annotations.images[index]
        path = self.image_folder / record.file_name
        image = read_image(path)
        if tuple(image.shape[-2:]) != (record.height, record.width):
            image = self._as_annotated(image, path, record.height, record.width)
        boxes, labels = self.annotations.targets(index)
        return Sample(
            image=image,
            boxes=torch.from_numpy(boxes),
            labels=torch.from_numpy(labels),
            image_id=record.id,
            original_size=(record.height, record.width),
            path=str(path),
        )

    @property
    def categories(self) -> tuple[Category, ...]:
        """What the labels of samples index."""
        return self.annotations.categories

    @property
    def image_ids(self) -> tuple[int, ...]:
        """The data set's own id of each image."""
        return tuple(image.id for image in self.annotations.images)

    @property
    def names(self) -> tuple[str, ...]:
        """The file name of each image, below `image_folder`."""
        return tuple(image.file_name for image in self.annotations.images)

    @property
    def max_objects(self) -> tuple[int, str]:
        """The largest number of objects to learn in one image, and the file name of that image."""
        images = np.repeat(np.arange(len(self)), np.diff(self.annotations.first_object))
        counts = np.bincount(images[self.annotations.objects.is_target], minlength=len(self))
        largest = int(counts.argmax())
        return int(counts[largest]), self.annotations.images[largest].file_name

    def fingerprint(self) -> str:
        """sha256 of the annotation file and of the images' names and sizes in bytes; no image is read."""
        digest = hashlib.sha256(self.annotations.path.read_bytes())
        for name in self.names:
            path = self.image_folder / name
            try:
                size = path.stat().st_size
            except OSError as error:
                raise DataError("image file is gone", where=path, code="A31") from error
            digest.update(f"\0{name}\0{size}".encode("utf-8", "surrogatepass"))
        return digest.hexdigest()

    def _as_annotated(self, image: Tensor, path: Path, height: int, width: int) -> Tensor:
        """Undo the EXIF rotation where the annotations were made without it; anything else is an error.

        Image and boxes must turn together. Leaving both as the annotator saw them keeps scores comparable
        too.
        """
        unturned = _without_rotation(image, path)
        if unturned is None or tuple(unturned.shape[-2:]) != (height, width):
            what = f"the image is {image.shape[-1]}x{image.shape[-2]}, its annotations say {width}x{height}"
            remedy = f"correct width, height and boxes in {self.annotations.path}, or restore the image"
            raise DataError(what, where=path, remedy=remedy, code="A33")
        warnings.warn(
            f"fix[I22]: {self.annotations.path} has sizes from before the EXIF rotation of its images; "
            "such images are used unrotated, as annotated",
            stacklevel=3,
        )
        return unturned


def open_detection(path: str | Path, split: Split, *, categories: Sequence[Category] | None = None) -> CocoDataset:
    """Open one split of a detection data set.

    Args:
        path: a folder in one of the layouts of COCO, Roboflow or FiftyOne (COCO detection).
        split: `val` also finds what is called `valid`, `validation` or `test`, in this order.
        categories: those of the checkpoint or of the training split. Labels then follow their order; the file
            must have the same names, under whatever ids.

    Raises DataError if no layout fits, the split is not there, or the annotations are wrong; in a training split also
    if more than `MOST_UNUSABLE` of the objects cannot be learned.
    """
    root = Path(path)
    found = _find_annotations(root)
    if not found:
        raise _no_layout(root)
    if split not in found:
        names = ", ".join(f"{name} ({file.relative_to(root)})" for name, (file, _) in found.items())
        looked = " or ".join(_SPLIT_NAMES[split])
        raise DataError(f"there is no split {looked}; present: {names}", where=root, remedy="add its annotations")
    file, folders = found[split]
    annotations = read_annotations(file, image_folders=folders)
    if categories is not None:
        annotations = _with_categories(annotations, categories)
    if split == "train":
        _check_trainable(annotations)
    assert annotations.image_folder is not None
    return CocoDataset(annotations, annotations.image_folder, split)


def find_bad_images(dataset: CocoDataset) -> list[tuple[int, DataError]]:
    """Decode every image; give the index of each that cannot be used, and why."""

    def fault(index: int) -> DataError | None:
        try:
            dataset[index]
        except DataError as error:
            return error
        return None

    with ThreadPoolExecutor(2) as pool:
        return [(k, error) for k, error in enumerate(pool.map(fault, range(len(dataset)))) if error]


def _find_annotations(root: Path) -> dict[str, tuple[Path, list[Path]]]:
    """For each split that is there: its annotation file, and the folders that may hold its images."""
    found: dict[str, tuple[Path, list[Path]]] = {}
    for split, names in _SPLIT_NAMES.items():
        for name in names:
            for pattern in _ANNOTATION_FILES:
                file = root / pattern.format(name)
                if split not in found and file.is_file():
                    year = next((year for year in ("2017", "2014") if file.stem.endswith(year)), "")
                    found[split] = file, [root / folder.format(name, year) for folder in _IMAGE_FOLDERS]
    return found


def _no_layout(root: Path) -> DataError:
    if not root.is_dir():
        return DataError("no such folder" if not root.exists() else "a file, not a folder", where=root)
    entries = sorted(entry.name + "/" * entry.is_dir() for entry in root.iterdir())
    looked = ", ".join(pattern.format("train") for pattern in _ANNOTATION_FILES)
    listed = ", ".join(entries[:8]) + (", ..." if len(entries) > 8 else "") or "nothing"
    names = ", ".join(_SPLIT_NAMES["val"])
    what = f"no COCO annotations; looked for {looked}, the same with {names}; found {listed}"
    return DataError(what, where=root, remedy=_conversion_hint(root))


def _conversion_hint(root: Path) -> str | None:
    """How to get COCO annotations from what is there."""
    output = root / "annotations" / "train.json"
    convert = (
        f"convert it to COCO first (pip install 'regard[train]'): coco convert --to coco --output {output} --from "
    )
    if any(root.glob("*.yaml")) or any(root.glob("*.yml")) or (root / "labels").is_dir():
        return "this looks like YOLO: " + convert + f"yolo --input {root}/labels/train --images-dir {root}/images/train"
    for folder in ("Annotations", "annotations", "."):
        if any((root / folder).glob("*.xml")):
            return "this looks like Pascal VOC: " + convert + f"voc --input {root / folder}"
    train = root / "train"
    if train.is_dir() and all(entry.is_dir() for entry in train.iterdir()):
        return "this looks like images in folders by class: that is for classification, detection needs boxes"
    return None


def _with_categories(annotations: CocoAnnotations, categories: Sequence[Category]) -> CocoAnnotations:
    """The annotations with labels in the order of `categories`, matched by name; ids stay the file's."""
    own = {category.name: label for label, category in enumerate(annotations.categories)}
    wanted = [category.name for category in categories]
    missing = [name for name in wanted if name not in own]
    extra = [name for name in own if name not in wanted]
    if missing or extra:
        parts = [f"{n!r:.40} is missing" for n in missing[:5]] + [f"{n!r:.40} is new" for n in extra[:5]]
        what = f"other categories than those of the model or the training split: {', '.join(parts)}"
        remedy = "give both the same category names"
        raise annotations.report.error("A26", what, "categories", remedy=remedy)
    order = [own[name] for name in wanted]
    ordered = tuple(annotations.categories[label] for label in order)
    if [category.id for category in ordered] != [category.id for category in categories]:
        what = "categories have other ids than in the model or the training split; matched by name"
        annotations.report.add("A26", "warn", what, "categories")
    new_label = np.argsort(np.array(order))
    objects = replace(annotations.objects, labels=new_label[annotations.objects.labels])
    return replace(annotations, categories=ordered, objects=objects)


def _check_trainable(annotations: CocoAnnotations) -> None:
    objects, report = annotations.objects, annotations.report
    unusable = int((~objects.is_target & ~objects.is_crowd).sum())
    total = int((~objects.is_crowd).sum())
    if unusable > MOST_UNUSABLE * total:
        issue = next(issue for issue in report.issues if issue.code in ("A12", "A15"))
        what = f"{unusable} of {total} boxes cannot be trained on, more than {MOST_UNUSABLE:.2%}: {issue.what}"
        raise DataError(what, where=issue.where, remedy="correct or remove them", code=issue.code)
    if not objects.is_target.any():
        remedy = "is this the right file?"
        raise report.error("A09", "there are no objects to learn", "annotations", remedy=remedy)


def _without_rotation(image: Tensor, path: Path) -> Tensor | None:
    """The pixels (C, H, W) as they are in the file; None if they are not displayed on their side."""
    orientation = image_orientation(path)
    if orientation == 5:
        return image.transpose(1, 2)
    if orientation == 7:
        return image.rot90(2, (1, 2)).transpose(1, 2)
    if orientation in (6, 8):
        return image.rot90(1 if orientation == 6 else -1, (1, 2))
    return None
