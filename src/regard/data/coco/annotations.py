"""COCO instance annotations: from the text of a file to arrays that the rest can rely on.

What can be repaired is repaired and noted in a report, what cannot be used in training is left out and noted,
and what would make labels or scores wrong in silence is an error that names the place in the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regard.data.coco.json_file import read_json
from regard.data.coco.objects import ObjectTable, check_objects
from regard.data.coco.outlines import draw_outline
from regard.data.coco.tables import (
    ImageRecord,
    collector_paused,
    first_repeat,
    in_table,
    index_of,
    read_categories,
    read_images,
    read_tables,
    shown,
    whole_numbers,
)
from regard.data.report import Report
from regard.structures.categories import Category

_ROWS = in_table("annotations")


@dataclass(frozen=True)
class CocoAnnotations:
    """Checked annotations. Images are in ascending order of their ids.

    categories: in ascending order of their ids; `objects.labels` are indices into it.
    objects: of all images, those of image i in the rows `first_object[i]` to `first_object[i + 1]`.
    image_folder: where the images are, None if that was not asked.
    """

    path: Path
    categories: tuple[Category, ...]
    images: tuple[ImageRecord, ...]
    objects: ObjectTable
    first_object: NDArray[np.int64]
    image_folder: Path | None
    report: Report

    def targets(self, index: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """What a detector learns from image `index`: boxes (T, 4) xyxy, pixels within the image; labels (T,).

        Crowds and boxes without area are left out, as in the DETR authors' code.
        """
        rows = slice(self.first_object[index], self.first_object[index + 1])
        kept = self.objects.is_target[rows]
        return self.objects.boxes_xyxy[rows][kept], self.objects.labels[rows][kept]

    def masks(self, index: int) -> NDArray[np.bool_]:
        """(T, H, W) bool, the pixels of the same objects; all of them must have an outline."""
        image = self.images[index]
        first, last = self.first_object[index], self.first_object[index + 1]
        rows = first + np.flatnonzero(self.objects.is_target[first:last])
        masks = np.zeros((len(rows), image.height, image.width), dtype=np.bool_)
        for mask, row in zip(masks, rows.tolist(), strict=True):
            mask[:] = draw_outline(self.objects.segmentation(row), image.height, image.width)
        return masks


def read_annotations(path: str | Path, *, image_folders: Sequence[Path] = ()) -> CocoAnnotations:
    """Read and check a COCO instances file.

    Args:
        image_folders: where its images may be: the first folder that holds the first image is taken, and all
            images must be there. Without folders no image is looked for, and every image needs its size in
            the file.

    Raises DataError with the place in the file as a JSON pointer, `ann.json:/annotations/17/category_id`.
    """
    with collector_paused():
        return _read(Report(path), image_folders)


def _read(report: Report, image_folders: Sequence[Path]) -> CocoAnnotations:
    images_json, annotations_json, categories_json = read_tables(
        read_json(report.path, report), report, kind="instances"
    )
    category_ids = whole_numbers(annotations_json, _ROWS, "category_id", "A22", report)
    categories = read_categories(categories_json, set(category_ids.tolist()), report)
    images, folder = read_images(images_json, image_folders, report)
    image_of = _image_of(annotations_json, images, report)
    _check_ids(annotations_json, report)
    sizes = np.array([(image.height, image.width) for image in images], dtype=np.int64)[image_of]
    labels = _labels(category_ids, categories, report)
    objects = check_objects(annotations_json, labels, sizes[:, 0], sizes[:, 1], report)
    _note_unused(objects, categories, report)
    order = np.argsort(image_of, kind="stable")
    first_object = np.searchsorted(image_of[order], np.arange(len(images) + 1))
    return CocoAnnotations(report.path, categories, images, objects.take(order), first_object, folder, report)


def to_coco(annotations: CocoAnnotations, *, masks: bool = False) -> dict[str, Any]:
    """The ground truth for an evaluator, as a COCO dictionary; with outlines if `masks`.

    Image and category ids are the file's; annotations are numbered from 1 (evaluators take id 0 for "no
    match", and lose one of two equal ids). Objects that are not trained on stay in: leaving any out would
    raise the score.
    """
    objects = annotations.objects
    counts = np.diff(annotations.first_object)
    image_ids = np.repeat(np.array([image.id for image in annotations.images], dtype=np.int64), counts).tolist()
    rows = []
    columns = (objects.labels, objects.boxes_xywh, objects.areas, objects.is_crowd)
    for k, (label, box, area, crowd) in enumerate(zip(*(column.tolist() for column in columns), strict=True)):
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
    images = [
        {"id": image.id, "file_name": image.file_name, "height": image.height, "width": image.width}
        for image in annotations.images
    ]
    categories = [{"id": category.id, "name": category.name} for category in annotations.categories]
    return {"images": images, "annotations": rows, "categories": categories}


def _image_of(rows: list[dict], images: tuple[ImageRecord, ...], report: Report) -> NDArray[np.int64]:
    """(N,) the index in `images` of each annotation's image."""
    image_ids = whole_numbers(rows, _ROWS, "image_id", "A30", report)
    return index_of(image_ids, np.array([image.id for image in images]), _ROWS, "image_id", "images", "A30", report)


def _labels(category_ids: NDArray[np.int64], categories: tuple[Category, ...], report: Report) -> NDArray[np.int64]:
    known = np.array([category.id for category in categories])
    strays = category_ids[~np.isin(category_ids, known)]
    if strays.size and not strays.any() and known.min() == 1:
        row = int(np.flatnonzero(category_ids == 0)[0])
        what = f"category_id 0, but categories start at 1 ({strays.size} of {category_ids.size} objects)"
        remedy = "category_id is an id of categories, not an index: correct it"
        raise report.error("A21", what, "annotations", row, "category_id", remedy=remedy)
    return index_of(category_ids, known, _ROWS, "category_id", "categories", "A20", report)


def _check_ids(rows: list[dict], report: Report) -> None:
    """Note odd ids (A27, A28). They matter to evaluators alone, and `to_coco` numbers them anew."""
    ids = [row.get("id") for row in rows]
    strays = [k for k, value in enumerate(ids) if type(value) is not int or value == 0]
    if strays:
        what = f"annotation id {shown(ids[strays[0]])}, which evaluators ignore or refuse; numbered anew"
        report.add("A27", "fix", what, "annotations", strays[0], "id", count=len(strays))
    whole = [value if type(value) is int else -1 - k for k, value in enumerate(ids)]
    if (k := first_repeat(whole)) is not None:
        repeats = len(whole) - len(set(whole))
        what = f"{repeats} annotation ids stand more than once; numbered anew, are objects listed twice?"
        report.add("A28", "fix", what, "annotations", k, "id", count=repeats)


def _note_unused(objects: ObjectTable, categories: tuple[Category, ...], report: Report) -> None:
    if not objects.is_target.any():
        report.add("A09", "warn", "there are no objects to learn or to find", "annotations")
        return
    used = set(objects.labels[objects.is_target].tolist())
    names = [category.name for label, category in enumerate(categories) if label not in used]
    if names:
        listed = ", ".join(f"{name:.30}" for name in names[:5]) + (", ..." if len(names) > 5 else "")
        what = f"{len(names)} of {len(categories)} categories have no object: {listed}"
        report.add("A46", "warn", what, "categories")
