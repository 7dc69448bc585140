"""Detection data sets: images and their boxes. Format and layout of the folder are recognised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from regard.data.coco.annotated_images import AnnotatedImages, fingerprint
from regard.data.coco.annotations import CocoAnnotations, to_coco
from regard.data.coco.categories import order_of_categories
from regard.data.formats.find import read_split
from regard.data.samples import Sample
from regard.data.splits import Split
from regard.errors import HAS, DataError, counted
from regard.structures.categories import Category

MAX_UNUSABLE = 0.01  # of the objects of a training split


class CocoDataset(AnnotatedImages[CocoAnnotations]):
    """Images with boxes; `dataset[i]` decodes image i into a `Sample`.

    Boxes are xyxy in pixels of the image as displayed. Crowds and boxes without area are left out, and, if `masks`,
    objects without an outline.
    """

    def __getitem__(self, index: int) -> Sample:
        """Decode an image with its targets.

        Raises:
            ImageError: the image cannot be decoded, or has another size than annotated (A33).
        """
        record = self.annotations.images[index]
        boxes, labels = self.annotations.targets(index)
        return Sample(
            image=self.image(index),
            boxes=torch.from_numpy(boxes),
            labels=torch.from_numpy(labels),
            masks=torch.from_numpy(self.annotations.masks(index)) if self.masks else None,
            image_id=record.id,
            original_size=(record.height, record.width),
            path=str(self.image_folder / record.file_name),
        )

    @property
    def max_objects(self) -> tuple[int, str]:
        """The maximum number of objects to learn in one image, and the file name of that image."""
        counts = self.annotations.count_per_image(self.annotations.objects.is_target)
        return int(counts.max()), self.names[int(counts.argmax())]

    def to_coco(self, *, masks: bool = False) -> dict[str, Any]:
        """Return the ground truth for an evaluator, with outlines if `masks`."""
        return to_coco(self.annotations, masks=masks)

    def fingerprint(self) -> str:
        """Return the sha256 of the annotations and of the images' names and sizes in bytes. Reads no image."""
        content = self.annotations.tables_digest or self.annotations.path.read_bytes()
        return fingerprint(content, self.image_folder, self.names)


def open_detection(
    path: str | Path, split: Split, *, categories: Sequence[Category] | None = None, masks: bool = False
) -> CocoDataset:
    """Open one split of a detection data set.

    Args:
        path: a folder in a layout of COCO, YOLO, Pascal VOC or with CSV files of boxes; or COCO's `.json`, YOLO's
            `data.yaml` or a `.csv` itself.
        split: `val` also matches `valid`, `validation` and `test`, in this order. Without any of them, a fifth of the
            images, chosen by their content, is `val`.
        categories: those of the checkpoint or the training split. Labels then follow their order. The file must have
            the same names; ids may differ.
        masks: whether samples have the masks of their objects.

    Raises:
        DataError: no format fits (A64), the split is missing, or annotations are wrong; in a training split also
            if more than `MAX_UNUSABLE` of the objects cannot be learned.
    """
    annotations = read_split(Path(path), split).annotations
    if categories is not None:
        annotations = with_categories(annotations, categories)
    if masks:
        annotations = _with_outlines(annotations)
    if split == "train":
        check_trainable(annotations)
    return CocoDataset(annotations, split, masks=masks)


def with_categories(annotations: CocoAnnotations, categories: Sequence[Category]) -> CocoAnnotations:
    """Return the annotations with labels in the order of `categories`; ids stay the file's."""
    wanted = {category.name for category in categories}
    own = (*annotations.categories, *(group for group in annotations.groups if group.name in wanted))
    order = order_of_categories(own, categories, annotations.report)
    ordered = tuple(own[label] for label in order)
    objects = replace(annotations.objects, labels=np.argsort(np.array(order))[annotations.objects.labels])
    return replace(annotations, categories=ordered, objects=objects)


def _with_outlines(annotations: CocoAnnotations) -> CocoAnnotations:
    """Return the annotations without the targets that have no outline (A37). Any target must be left."""
    objects, report = annotations.objects, annotations.report
    outlined = objects.is_target & objects.has_outline
    lost = int((objects.is_target & ~outlined).sum())
    if lost and not outlined.any():
        remedy = "annotate outlines (`segmentation`), or train with boxes only"
        raise report.error("A37", "masks need a segmentation, no object has one", "annotations", remedy=remedy)
    if lost:
        count = counted(lost, "object", of=int(objects.is_target.sum()), verb=HAS)
        what = f"{count} no segmentation; not trained on with masks"
        report.add("A37", "skip", what, "annotations", count=lost)
    return replace(annotations, objects=replace(objects, is_target=outlined))


def check_trainable(annotations: CocoAnnotations) -> None:
    """Check that at most `MAX_UNUSABLE` of the objects cannot be learned, and that there are objects at all."""
    objects, report = annotations.objects, annotations.report
    unusable = int((~objects.is_target & ~objects.is_crowd).sum())
    total = int((~objects.is_crowd).sum())
    if unusable > MAX_UNUSABLE * total:
        issue = next(issue for issue in report.issues if issue.severity == "skip")
        what = f"{unusable} of {total} boxes cannot be trained on, maximum {MAX_UNUSABLE:.2%}: {issue.what}"
        raise DataError(what, where=issue.where, remedy="correct or remove them", code=issue.code)
    if not objects.is_target.any():
        raise report.error("A09", "no objects to learn", "annotations", remedy="check that this is the right file")
