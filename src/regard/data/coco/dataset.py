"""A folder with images and annotations as a data set: which layout it has is found out, not asked."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regard.data.coco.annotations import CocoAnnotations, read_annotations, to_coco
from regard.data.coco.tables import ImageRecord
from regard.data.images import image_orientation, read_image
from regard.data.paths import check_folder
from regard.data.report import Report
from regard.data.samples import Sample
from regard.data.splits import SPLIT_NAMES, Split
from regard.errors import DataError, ImageError
from regard.structures.categories import Category

MOST_UNUSABLE = 0.01  # of the objects of a training split
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

    masks: whether samples have them. Objects without an outline are left out then.
    """

    def __init__(self, annotations: CocoAnnotations, image_folder: Path, split: str, *, masks: bool = False) -> None:
        self.annotations = annotations
        self.masks = masks
        self.image_folder = image_folder
        self.split = split

    def __len__(self) -> int:
        return len(self.annotations.images)

    def __getitem__(self, index: int) -> Sample:
        """Raises DataError for an image that cannot be read or has another size than annotated (A33)."""
        record = self.annotations.images[index]
        path = self.image_folder / record.file_name
        boxes, labels = self.annotations.targets(index)
        return Sample(
            image=read_as_annotated(path, record, self.annotations.path),
            boxes=torch.from_numpy(boxes),
            labels=torch.from_numpy(labels),
            masks=torch.from_numpy(self.annotations.masks(index)) if self.masks else None,
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

    def to_coco(self, *, masks: bool = False) -> dict[str, Any]:
        """The ground truth for an evaluator, with outlines if `masks`: `checks.to_coco`."""
        return to_coco(self.annotations, masks=masks)

    def fingerprint(self) -> str:
        """sha256 of the annotation file and of the images' names and sizes in bytes; no image is read."""
        return fingerprint(self.annotations.path, self.image_folder, self.names)


def open_detection(
    path: str | Path, split: Split, *, categories: Sequence[Category] | None = None, masks: bool = False
) -> CocoDataset:
    """Open one split of a detection data set.

    Args:
        path: a folder in one of the layouts of COCO, Roboflow or FiftyOne (COCO detection).
        split: `val` also finds what is called `valid`, `validation` or `test`, in this order.
        categories: those of the checkpoint or of the training split. Labels then follow their order; the file
            must have the same names, under whatever ids.
        masks: whether samples have the masks of their objects.

    Raises DataError if no layout fits, the split is not there, or the annotations are wrong; in a training split also
    if more than `MOST_UNUSABLE` of the objects cannot be learned.
    """
    root = Path(path)
    found = find_annotations(root, _ANNOTATION_FILES)
    if not found:
        raise _no_layout(root)
    file, folders = split_of(found, split, root)
    annotations = read_annotations(file, image_folders=folders)
    if categories is not None:
        annotations = _with_categories(annotations, categories)
    if masks:
        annotations = _with_outlines(annotations)
    if split == "train":
        _check_trainable(annotations)
    assert annotations.image_folder is not None
    return CocoDataset(annotations, annotations.image_folder, split, masks=masks)


def has_detection(path: str | Path, split: Split | None = None) -> bool:
    """Whether a folder has annotations of objects, of one split or of any."""
    found = find_annotations(Path(path), _ANNOTATION_FILES)
    return bool(found) if split is None else split in found


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


def find_annotations(root: Path, patterns: Sequence[str]) -> dict[Split, tuple[Path, list[Path]]]:
    """For each split that is there: its annotation file, and the folders that may hold its images.

    patterns: the files to look for, best first, with {} for the name of the split.
    """
    found: dict[Split, tuple[Path, list[Path]]] = {}
    for split, names in SPLIT_NAMES.items():
        for name in names:
            for pattern in patterns:
                file = root / pattern.format(name)
                if split not in found and file.is_file():
                    year = next((year for year in ("2017", "2014") if file.stem.endswith(year)), "")
                    found[split] = file, [root / folder.format(name, year) for folder in _IMAGE_FOLDERS]
    return found


def split_of(found: dict[Split, tuple[Path, list[Path]]], split: Split, root: Path) -> tuple[Path, list[Path]]:
    """One of the splits that `find_annotations` gave; DataError if it is not there."""
    if split not in found:
        names = ", ".join(f"{name} ({file.relative_to(root)})" for name, (file, _) in found.items())
        looked = " or ".join(SPLIT_NAMES[split])
        raise DataError(f"there is no split {looked}; present: {names}", where=root, remedy="add its annotations")
    return found[split]


def fingerprint(annotations: Path, folder: Path, names: Sequence[str]) -> str:
    """sha256 of a file of annotations and of the names and sizes in bytes of the files that it is about."""
    digest = hashlib.sha256(annotations.read_bytes())
    for name in names:
        path = folder / name
        try:
            size = path.stat().st_size
        except OSError as error:
            raise ImageError("image file is gone", where=path, remedy="restore it", code="A31") from error
        digest.update(f"\0{name}\0{size}".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def read_as_annotated(path: Path, record: ImageRecord, annotations: Path) -> Tensor:
    """The image (3, H, W) uint8 at the size that its annotations state.

    Undoes the EXIF rotation where the annotations were made without it: image and boxes must turn together, and
    leaving both as the annotator saw them keeps scores comparable too. Any other size is an error (A33).
    """
    image = read_image(path)
    height, width = record.height, record.width
    if tuple(image.shape[-2:]) == (height, width):
        return image
    unturned = _without_rotation(image, path)
    if unturned is None or tuple(unturned.shape[-2:]) != (height, width):
        what = f"the image is {image.shape[-1]}x{image.shape[-2]}, its annotations say {width}x{height}"
        remedy = f"correct width, height and boxes in {annotations}, or restore the image"
        raise ImageError(what, where=path, remedy=remedy, code="A33")
    warnings.warn(
        f"fix[I22]: {annotations} has sizes from before the EXIF rotation of its images; "
        "such images are used unrotated, as annotated",
        stacklevel=3,
    )
    return unturned


def _no_layout(root: Path) -> DataError:
    check_folder(root, ["shapes"])
    entries = sorted(entry.name + "/" * entry.is_dir() for entry in root.iterdir())
    looked = ", ".join(pattern.format("train") for pattern in _ANNOTATION_FILES)
    listed = ", ".join(entries[:8]) + (", ..." if len(entries) > 8 else "") or "nothing"
    names = ", ".join(SPLIT_NAMES["val"])
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


def order_of_categories(own: Sequence[Category], wanted: Sequence[Category], report: Report) -> list[int]:
    """The place in `own` of each of `wanted`, matched by name; both must have the same names (A26)."""
    place = {category.name: label for label, category in enumerate(own)}
    names = [category.name for category in wanted]
    missing = [name for name in names if name not in place]
    extra = [name for name in place if name not in names]
    if missing or extra:
        parts = [f"{n!r:.40} is missing" for n in missing[:5]] + [f"{n!r:.40} is new" for n in extra[:5]]
        what = f"other categories than those of the model or the training split: {', '.join(parts)}"
        raise report.error("A26", what, "categories", remedy="give both the same category names")
    order = [place[name] for name in names]
    if [own[label].id for label in order] != [category.id for category in wanted]:
        what = "categories have other ids than in the model or the training split; matched by name"
        report.add("A26", "warn", what, "categories")
    return order


def _with_categories(annotations: CocoAnnotations, categories: Sequence[Category]) -> CocoAnnotations:
    """The annotations with labels in the order of `categories`; ids stay the file's."""
    order = order_of_categories(annotations.categories, categories, annotations.report)
    ordered = tuple(annotations.categories[label] for label in order)
    objects = replace(annotations.objects, labels=np.argsort(np.array(order))[annotations.objects.labels])
    return replace(annotations, categories=ordered, objects=objects)


def _with_outlines(annotations: CocoAnnotations) -> CocoAnnotations:
    """The annotations without the targets that have no outline (A37); not one may be too few."""
    objects, report = annotations.objects, annotations.report
    outlined = objects.is_target & objects.has_outline
    lost = int((objects.is_target & ~outlined).sum())
    if lost and not outlined.any():
        remedy = "annotate outlines (`segmentation`), or train with boxes alone"
        raise report.error("A37", "no object has a segmentation, and masks are asked for", "annotations", remedy=remedy)
    if lost:
        what = f"{lost} of {int(objects.is_target.sum())} objects have no segmentation; not trained on with masks"
        report.add("A37", "skip", what, "annotations", count=lost)
    return replace(annotations, objects=replace(objects, is_target=outlined))


def _check_trainable(annotations: CocoAnnotations) -> None:
    objects, report = annotations.objects, annotations.report
    unusable = int((~objects.is_target & ~objects.is_crowd).sum())
    total = int((~objects.is_crowd).sum())
    if unusable > MOST_UNUSABLE * total:
        issue = next(issue for issue in report.issues if issue.severity == "skip")
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
