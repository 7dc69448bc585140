"""COCO instance annotations: read a file, check it, and return arrays.

Mistakes that can be repaired are repaired and reported. Objects that cannot be trained on are left out of training and
reported. Anything that would silently give wrong labels or scores is an error that names the place in the file.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regard.data.coco.categories import note_unused
from regard.data.coco.columns import OutlineColumns
from regard.data.coco.document import Rows, array_of, column, outline_columns, outlines, read_document
from regard.data.coco.objects import MAX_COORDINATE, ObjectTable, check_objects
from regard.data.coco.outlines import draw_outline
from regard.data.coco.tables import (
    NO_ID,
    Annotations,
    ImageRecord,
    collector_paused,
    first_repeat,
    image_rows,
    in_table,
    index_of,
    read_categories,
    read_images,
    read_tables,
    shorten,
    whole_numbers,
)
from regard.data.report import Report
from regard.errors import counted
from regard.structures.categories import Category

_ROWS = in_table("annotations")


@dataclass(frozen=True, kw_only=True)
class CocoAnnotations(Annotations):
    """Checked instance annotations. objects: of all images, image after image."""

    objects: ObjectTable
    tables_digest: bytes | None = None  # sha256 of tables that were made from another format than COCO

    def targets(self, index: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return the targets of image `index`: boxes (T, 4) xyxy in pixels inside the image, and labels (T,).

        Leaves out crowds and boxes without area, as the DETR authors' code does.
        """
        rows = self.rows_of(index)
        kept = self.objects.is_target[rows]
        return self.objects.boxes_xyxy[rows][kept], self.objects.labels[rows][kept]

    def masks(self, index: int) -> NDArray[np.bool_]:
        """Return the masks (T, H, W) bool of the targets of image `index`. All of them must have an outline."""
        image, rows = self.images[index], self.rows_of(index)
        targets = rows.start + np.flatnonzero(self.objects.is_target[rows])
        masks = np.zeros((len(targets), image.height, image.width), dtype=np.bool_)
        for mask, row in zip(masks, targets.tolist(), strict=True):
            mask[:] = draw_outline(self.objects.segmentation(row), image.height, image.width)
        return masks


def read_annotations(path: str | Path, *, image_folders: Sequence[Path] = ()) -> CocoAnnotations:
    """Read and check a COCO instances file.

    Args:
        image_folders: folders that may hold the images. The first one with the first image must have all images.
            Without folders no image is looked for, and every image needs its size in the file.

    Raises:
        DataError: the file is wrong; the place is a JSON pointer, `ann.json:/annotations/17/category_id`.
    """
    report = Report(path)
    with collector_paused():
        return check_tables(read_document(report.path, report), image_folders, report)


def check_tables(
    document: Any, image_folders: Sequence[Path], report: Report, used_elsewhere: Container[str] = ()
) -> CocoAnnotations:
    """Check a COCO document. Issues go to `report`.

    Args:
        image_folders: as for `read_annotations`.
        used_elsewhere: names of categories that have objects in another file of the data set.

    Raises:
        DataError: the document is wrong; the place is that of `report`.
    """
    images_json, annotations_json, categories_json = read_tables(document, report, kind="instances")
    category_ids = whole_numbers(annotations_json, _ROWS, "category_id", "A22", report)
    before = report.errors
    used = set(category_ids.tolist())
    categories, groups = read_categories(categories_json, used, report, used_elsewhere)
    has_classes = report.errors == before
    images, folder = read_images(images_json, image_folders, report)
    image_of = _image_of(annotations_json, images, report)
    _check_ids(annotations_json, report)
    if has_classes:
        labels = _labels(category_ids, categories, report)
    else:
        labels = np.zeros_like(category_ids)
        report.add("A25", "note", "not checked: which categories the objects have", "categories")
    sizes = np.array([(image.height, image.width) for image in images], dtype=np.int64)[image_of]
    lost = (image_of < 0) | (labels < 0) | (sizes[:, 0] <= 0)
    forms: OutlineColumns | Iterable[Any] | None = outline_columns(annotations_json)
    if forms is None:
        forms = outlines(annotations_json)
    if lost.any():  # faults are gathered: check what does not depend on image and category
        sizes[lost] = MAX_COORDINATE
        forms = (
            None if is_lost else form for is_lost, form in zip(lost.tolist(), outlines(annotations_json), strict=True)
        )
        image_of, labels = image_of.clip(min=0), labels.clip(min=0)
    objects = check_objects(annotations_json, forms, labels, sizes[:, 0], sizes[:, 1], report)
    objects = replace(objects, is_target=objects.is_target & ~lost)
    if has_classes:
        note_unused(objects.labels[objects.is_target], categories, "object", report)
    count = max(len(image_of), 1)
    order = np.sort(image_of * count + np.arange(len(image_of))) % count  # stable, and faster than a stable argsort
    return CocoAnnotations(
        path=report.path,
        categories=categories,
        images=images,
        first_row=np.searchsorted(image_of[order], np.arange(len(images) + 1)),
        image_folder=folder,
        report=report,
        groups=groups,
        objects=objects.take(order),
    )


def select_images(annotations: CocoAnnotations, chosen: Sequence[int], report: Report) -> CocoAnnotations:
    """Return the annotations of some images. chosen: their indices, ascending. report: that of the result."""
    rows = [np.arange(annotations.rows_of(index).start, annotations.rows_of(index).stop) for index in chosen]
    return replace(
        annotations,
        images=tuple(annotations.images[index] for index in chosen),
        first_row=np.concatenate(([0], np.cumsum([len(of_image) for of_image in rows]))).astype(np.int64),
        objects=annotations.objects.take(np.concatenate(rows)),
        report=report,
    )


def to_coco(annotations: CocoAnnotations, *, masks: bool = False) -> dict[str, Any]:
    """Return the ground truth for an evaluator as a COCO dictionary, with outlines if `masks`.

    Image and category ids are the file's. Annotations are numbered from 1: evaluators read id 0 as "no match" and lose
    one of two equal ids. Objects that are not trained on are included, since leaving them out would raise the score.
    """
    objects = annotations.objects
    counts = np.diff(annotations.first_row)
    image_ids = np.repeat(np.array([image.id for image in annotations.images], dtype=np.int64), counts).tolist()
    rows = []
    columns = (objects.labels, objects.boxes_xywh, objects.areas, objects.is_crowd)
    for k, (label, box, area, crowd) in enumerate(zip(*(values.tolist() for values in columns), strict=True)):
        row = {
            "id": k + 1,
            "image_id": image_ids[k],
            "category_id": annotations.categories[label].id,
            "bbox": box,
            "area": area,
            "iscrowd": int(crowd),
        }
        if masks:
            row["segmentation"] = objects.segmentation(k)
        rows.append(row)
    categories = [{"id": category.id, "name": category.name} for category in annotations.categories]
    return {"images": image_rows(annotations.images), "annotations": rows, "categories": categories}


def _image_of(rows: Rows, images: tuple[ImageRecord, ...], report: Report) -> NDArray[np.int64]:
    """Return the index (N,) in `images` of each annotation's image."""
    image_ids = whole_numbers(rows, _ROWS, "image_id", "A30", report)
    return index_of(image_ids, np.array([image.id for image in images]), _ROWS, "image_id", "images", "A30", report)


def _labels(category_ids: NDArray[np.int64], categories: tuple[Category, ...], report: Report) -> NDArray[np.int64]:
    known = np.array([category.id for category in categories])
    strays = category_ids[~np.isin(category_ids, known) & (category_ids != NO_ID)]
    if strays.size and not strays.any() and known.min() == 1:
        row = int(np.flatnonzero(category_ids == 0)[0])
        what = f"category_id is 0 in {strays.size} of {category_ids.size} objects, but categories start at 1"
        remedy = "write ids of categories, not indices"
        report.fail("A21", what, "annotations", row, "category_id", remedy=remedy)
        return np.where(category_ids == 0, -1, np.searchsorted(known, category_ids).clip(max=len(known) - 1))
    return index_of(category_ids, known, _ROWS, "category_id", "categories", "A20", report)


def _check_ids(rows: Rows, report: Report) -> None:
    """Report wrong ids (A27, A28). Only evaluators read them, and `to_coco` renumbers them."""
    numbers = array_of(rows, "id")
    if numbers is not None and numbers.all() and (np.diff(np.sort(numbers)) > 0).all():
        return
    ids = column(rows, "id")
    strays = [k for k, value in enumerate(ids) if type(value) is not int or value == 0]
    if strays:
        what = f"annotation id {shorten(ids[strays[0]])}, which evaluators ignore or refuse; renumbered"
        report.add("A27", "fix", what, "annotations", strays[0], "id", count=len(strays))
    whole = [value if type(value) is int else -1 - k for k, value in enumerate(ids)]
    if (k := first_repeat(whole)) is not None:
        repeats = len(whole) - len(set(whole))
        what = f"{counted(repeats, 'duplicate annotation id')}; renumbered. Are objects listed twice?"
        report.add("A28", "fix", what, "annotations", k, "id", count=repeats)
