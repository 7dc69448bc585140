"""COCO instance annotations: from the text of a file to arrays that the rest can rely on.

What can be repaired is repaired and noted in a report, what cannot be used in training is left out and noted,
and what would make labels or scores wrong in silence is an error that names the place in the file.
"""

from __future__ import annotations

import gc
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regard.data.images import MAX_PIXELS, image_size
from regard.data.object_checks import ObjectTable, check_objects
from regard.data.report import Report
from regard.data.samples import Category
from regard.data.strict_json import read_json
from regard.errors import DataError

_TABLES = ("images", "annotations", "categories")
# Absolute (also with a drive letter), a URL, a step up, a NUL: such names are never opened.
_UNSAFE_NAME = re.compile(r"\A\Z|\A[/\\]|\A[A-Za-z]:|://|\0|(\A|[/\\])\.\.([/\\]|\Z)")


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """An image as the annotations describe it; height, width in pixels, file_name below the image folder."""

    id: int
    file_name: str
    height: int
    width: int


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


def read_annotations(path: str | Path, *, image_folders: Sequence[Path] = ()) -> CocoAnnotations:
    """Read and check a COCO instances file.

    Args:
        image_folders: where its images may be: the first folder that holds the first image is taken, and all
            images must be there. Without folders no image is looked for, and every image needs its size in
            the file.

    Raises DataError with the place in the file as a JSON pointer, `ann.json:/annotations/17/category_id`.
    """
    with _collector_paused():
        return _read(Report(path), image_folders)


def _read(report: Report, image_folders: Sequence[Path]) -> CocoAnnotations:
    images_json, annotations_json, categories_json = _tables(read_json(report.path, report), report)
    category_ids = _integers(annotations_json, "annotations", "category_id", "A22", report)
    categories = _categories(categories_json, set(category_ids.tolist()), report)
    images, folder = _images(images_json, image_folders, report)
    image_of = _image_of(annotations_json, images, report)
    _check_ids(annotations_json, report)
    sizes = np.array([(image.height, image.width) for image in images], dtype=np.int64)[image_of]
    labels = _labels(category_ids, categories, report)
    objects = check_objects(annotations_json, labels, sizes[:, 0], sizes[:, 1], report)
    _note_unused(objects, categories, report)
    order = np.argsort(image_of, kind="stable")
    first_object = np.searchsorted(image_of[order], np.arange(len(images) + 1))
    return CocoAnnotations(report.path, categories, images, objects.take(order), first_object, folder, report)


def to_coco(annotations: CocoAnnotations) -> dict[str, Any]:
    """The ground truth for an evaluator of boxes, as a COCO dictionary without outlines.

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
        rows.append(row)
    images = [
        {"id": image.id, "file_name": image.file_name, "height": image.height, "width": image.width}
        for image in annotations.images
    ]
    categories = [{"id": category.id, "name": category.name} for category in annotations.categories]
    return {"images": images, "annotations": rows, "categories": categories}


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Without Python's cycle collector, which would walk again and again over the lists of the document.

    They have no cycles; a million annotations are read in 7 seconds instead of 12.
    """
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


def _tables(document: Any, report: Report) -> list[list[dict]]:
    """The images, annotations and categories of a document, each a list of objects."""
    if not isinstance(document, dict):
        what = f"the document is a {type(document).__name__}, not an object with {', '.join(_TABLES)}"
        raise report.error("A07", what, remedy="is this a COCO instances file?")
    for name in _TABLES:
        if name not in document:
            what = f"key {name!r} is missing (found: {', '.join(map(repr, list(document)[:8])) or 'nothing'})"
            raise report.error("A07", what, remedy="is this a COCO instances file?")
        rows = document[name]
        if not isinstance(rows, list):
            raise report.error("A07", f"{name} is a {type(rows).__name__}, not a list", name)
        if not set(map(type, rows)) <= {dict}:
            row = next(row for row, value in enumerate(rows) if type(value) is not dict)
            raise report.error("A07", f"an entry of {name} is {rows[row]!r:.40}, not an object", name, row)
    if document["annotations"] and "segments_info" in document["annotations"][0]:
        remedy = "use the instances file of the data set"
        raise report.error("A07", "these are panoptic annotations", "annotations", 0, remedy=remedy)
    if not document["images"]:
        raise report.error("A08", "there are no images", "images", remedy="export the annotations again")
    return [document[name] for name in _TABLES]


def _integers(rows: list[dict], table: str, key: str, code: str, report: Report) -> NDArray[np.int64]:
    """The values of `key`, whole numbers that fit into 64 bits, of all rows."""
    values: list[Any] = [row.get(key) for row in rows]
    if set(map(type, values)) <= {int} and all(-(2**63) <= value < 2**63 for value in values):
        return np.array(values, dtype=np.int64)
    row = next(k for k, value in enumerate(values) if type(value) is not int or not -(2**63) <= value < 2**63)
    if key not in rows[row]:
        raise report.error(code, f"{key} is missing", table, row)
    what = f"{key} is {_shown(values[row])}, not a whole number of 64 bits"
    raise report.error(code, what, table, row, key, remedy="write a whole number, without quotes")


def _categories(rows: list[dict], used: set[int], report: Report) -> tuple[Category, ...]:
    """The categories in ascending order of their ids."""
    if not rows:
        raise report.error("A07", "there are no categories", "categories")
    for place, row in enumerate(rows):
        if not isinstance(row.get("name"), str) or not row["name"].strip():
            what = f"the name of a category is {row.get('name')!r:.40}, not a text"
            raise report.error("A25", what, "categories", place, "name")
    ids = _integers(rows, "categories", "id", "A22", report).tolist()
    if (k := _first_repeat(ids)) is not None:
        what, remedy = f"category id {ids[k]} stands twice", "give each category its own id"
        raise report.error("A24", what, "categories", k, "id", remedy=remedy)
    # Roboflow lists the project as a category: it has no objects, the others name it their group.
    groups = [row["supercategory"] for row in rows if row.get("supercategory") not in (None, "none")]
    is_group = [row.get("supercategory") == "none" and row["name"] in groups for row in rows]
    kept = [k for k in range(len(rows)) if ids[k] in used or not is_group[k]]
    dropped = [k for k in range(len(rows)) if ids[k] not in used and is_group[k]]
    if dropped:
        what = f"category {rows[dropped[0]]['name']!r:.40} only groups others and has no objects; left out"
        report.add("A25", "fix", what, "categories", dropped[0], count=len(dropped))
    names = [rows[k]["name"] for k in kept]
    if (k := _first_repeat(names)) is not None:
        what, remedy = f"category name {names[k]!r:.40} stands twice", "merge or rename the categories"
        raise report.error("A25", what, "categories", kept[k], "name", remedy=remedy)
    found = [Category(ids[k], rows[k]["name"], bool(rows[k].get("isthing", True))) for k in kept]
    return tuple(sorted(found, key=lambda category: category.id))


def _images(rows: list[dict], folders: Sequence[Path], report: Report) -> tuple[tuple[ImageRecord, ...], Path | None]:
    ids = _integers(rows, "images", "id", "A30", report).tolist()
    if (k := _first_repeat(ids)) is not None:
        what, remedy = f"image id {ids[k]} stands twice", "give each image its own id"
        raise report.error("A29", what, "images", k, "id", remedy=remedy)
    names = [_safe_name(row, k, report) for k, row in enumerate(rows)]
    folder = _folder_of(names, folders, report) if folders else None
    measured = []
    images = []
    for k, row in enumerate(rows):
        if folder is not None and row.get("height") is None and row.get("width") is None:
            measured.append(k)
            size = image_size(folder / names[k])
        else:
            size = _stated_size(row, k, report)
        images.append(ImageRecord(ids[k], names[k], *size))
    if measured:
        what = f"{len(measured)} images have no height and width; taken from their files"
        report.add("A33", "fix", what, "images", measured[0], count=len(measured))
    return tuple(sorted(images, key=lambda image: image.id)), folder


def _safe_name(row: dict, k: int, report: Report) -> str:
    name = row.get("file_name")
    if isinstance(name, str) and not _UNSAFE_NAME.search(name):
        return name
    what = f"file_name {_shown(name)} is not the path of a file below the image folder"
    raise report.error("A32", what, "images", k, "file_name", remedy="write paths relative to the image folder")


def _stated_size(row: dict, k: int, report: Report) -> tuple[int, int]:
    for key in ("height", "width"):
        value = row.get(key)
        if type(value) is not int or value <= 0:
            what = f"{key} is {_shown(value)}, not a number of pixels" if key in row else f"{key} is missing"
            raise report.error("A33", what, "images", k, key, remedy="write the size of the image file")
    if row["height"] * row["width"] > MAX_PIXELS:
        what = f"an image of {_shown(row['width'])}x{_shown(row['height'])}, more than {MAX_PIXELS:,} pixels"
        raise report.error("A33", what, "images", k)
    return row["height"], row["width"]


def _folder_of(names: list[str], folders: Sequence[Path], report: Report) -> Path:
    """The folder with all images. Folders are listed: asking for each file takes minutes on a network."""
    files: dict[Path, set[str]] = {}

    def is_file(path: Path) -> bool:
        if path.parent not in files:
            files[path.parent] = _files_in(path.parent)
        return path.name in files[path.parent]

    folder = next((folder for folder in folders if is_file(folder / names[0])), folders[0])
    missing = [name for name in names if not is_file(folder / name)]
    if missing:
        listed = ", ".join(f"{name!r:.60}" for name in missing[:5]) + (", ..." if len(missing) > 5 else "")
        what = f"{len(missing):,} of {len(names):,} image files are missing: {listed}"
        remedy = f"looked in {', '.join(map(str, folders))}"
        raise DataError(what, where=report.path, remedy=remedy, code="A31")
    return folder


def _files_in(folder: Path) -> set[str]:
    """Names of the regular files of a folder, also by link; none if there is no such folder."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_file()}
    except (OSError, ValueError):  # ValueError: a name that the file system cannot have
        return set()


def _image_of(rows: list[dict], images: tuple[ImageRecord, ...], report: Report) -> NDArray[np.int64]:
    """(N,) the index in `images` of each annotation's image."""
    image_ids = _integers(rows, "annotations", "image_id", "A30", report)
    return _index_of(image_ids, np.array([image.id for image in images]), "image_id", "images", "A30", report)


def _labels(category_ids: NDArray[np.int64], categories: tuple[Category, ...], report: Report) -> NDArray[np.int64]:
    known = np.array([category.id for category in categories])
    strays = category_ids[~np.isin(category_ids, known)]
    if strays.size and not strays.any() and known.min() == 1:
        row = int(np.flatnonzero(category_ids == 0)[0])
        what = f"category_id 0, but categories start at 1 ({strays.size} of {category_ids.size} objects)"
        remedy = "category_id is an id of categories, not an index: correct it"
        raise report.error("A21", what, "annotations", row, "category_id", remedy=remedy)
    return _index_of(category_ids, known, "category_id", "categories", "A20", report)


def _index_of(
    ids: NDArray[np.int64], known: NDArray[np.int64], key: str, table: str, code: str, report: Report
) -> NDArray[np.int64]:
    """(N,) the index of each id in `known`, which ascends."""
    index = np.minimum(np.searchsorted(known, ids), len(known) - 1)
    strays = np.flatnonzero(known[index] != ids)
    if strays.size:
        row = int(strays[0])
        listed = ", ".join(map(str, known[:5].tolist())) + (", ..." if len(known) > 5 else "")
        what = f"{key} {ids[row]} is not in {table} ({listed})"
        remedy = f"{strays.size} of {ids.size} boxes affected; dropping them would raise AP: correct the ids"
        raise report.error(code, what, "annotations", row, key, remedy=remedy)
    return index


def _check_ids(rows: list[dict], report: Report) -> None:
    """Note odd ids (A27, A28). They matter to evaluators alone, and `to_coco` numbers them anew."""
    ids = [row.get("id") for row in rows]
    strays = [k for k, value in enumerate(ids) if type(value) is not int or value == 0]
    if strays:
        what = f"annotation id {_shown(ids[strays[0]])}, which evaluators ignore or refuse; numbered anew"
        report.add("A27", "fix", what, "annotations", strays[0], "id", count=len(strays))
    whole = [value if type(value) is int else -1 - k for k, value in enumerate(ids)]
    if (k := _first_repeat(whole)) is not None:
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


def _first_repeat(values: list) -> int | None:
    """The index of the first value that stands earlier in the list; None if all differ."""
    if len(set(values)) == len(values):
        return None
    seen: Counter = Counter()
    for k, value in enumerate(values):
        if seen[value]:
            return k
        seen[value] += 1
    return None


def _shown(value: Any) -> str:
    """A short form for a message; integers of thousands of digits have none of their own."""
    return "a very large number" if isinstance(value, int) and abs(value) >= 10**30 else f"{value!r:.60}"
