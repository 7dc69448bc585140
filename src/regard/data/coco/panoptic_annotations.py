"""COCO's panoptic annotations: the JSON file that tells what the segments of the PNG files are, checked.

A wrong segment would be a wrong label or a wrong score without a word, so whatever does not fit is an error that names
its place. Pixels are looked at when an image is read: see regard.data.coco.panoptic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regard.data.coco.json_file import float_array, read_json
from regard.data.coco.tables import (
    ImageRecord,
    Place,
    collector_paused,
    first_repeat,
    folder_of,
    in_table,
    index_of,
    read_categories,
    read_images,
    read_tables,
    safe_name,
    shown,
    whole_numbers,
)
from regard.data.report import Report
from regard.errors import DataError
from regard.structures.categories import Category

MAX_SEGMENT_ID = 2**24 - 1  # three bytes of a pixel; 0 is void
# COCO's list of its 133 classes with their flags, for files whose categories have none.
CATEGORY_FILE = "panoptic_coco_categories.json"

_ROWS = in_table("annotations")


@dataclass(frozen=True)
class SegmentTable:
    """N segments of all images, one row each.

    ids: (N,) int64, as in the pixels of the PNG file: R + 256 G + 65536 B.
    labels: (N,) int64, index into the categories.
    is_crowd: (N,) bool, a region of many objects: not learned, and predictions on it are neither right nor wrong.
    areas: (N,) float64, pixels as the file states them; NaN where it does not.
    """

    ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    is_crowd: NDArray[np.bool_]
    areas: NDArray[np.float64]


@dataclass(frozen=True)
class PanopticAnnotations:
    """Checked panoptic annotations. Images are in ascending order of their ids.

    categories: in ascending order of their ids, things and stuff; `segments.labels` are indices into it.
    files: the PNG file of each image, below `segment_folder`.
    segments: of all images, those of image i in the rows `first_segment[i]` to `first_segment[i + 1]`.
    rows: (I,) where the annotation of each image stands in the file.
    image_folder: where the images are, None if that was not asked.
    """

    path: Path
    categories: tuple[Category, ...]
    images: tuple[ImageRecord, ...]
    files: tuple[str, ...]
    segments: SegmentTable
    first_segment: NDArray[np.int64]
    rows: NDArray[np.int64]
    segment_folder: Path
    image_folder: Path | None
    report: Report

    def rows_of(self, index: int) -> slice:
        """The rows of the segments of image `index`."""
        return slice(int(self.first_segment[index]), int(self.first_segment[index + 1]))


def read_panoptic(
    path: str | Path, *, segment_folder: Path | None = None, image_folders: Sequence[Path] = ()
) -> PanopticAnnotations:
    """Read and check a COCO panoptic file: ground truth, or predictions as `write_panoptic` writes them.

    Args:
        segment_folder: where its PNG files are; the folder beside it that has its name if None. All must be there.
        image_folders: where its images may be: the first folder that holds the first image is taken, and all images
            must be there. Without folders no image is looked for.

    Raises DataError with the place in the file as a JSON pointer, `ann.json:/annotations/17/segments_info/2/id`.
    """
    path = Path(path)
    with collector_paused():
        return _read(Report(path), segment_folder or path.with_suffix(""), image_folders)


def read_category_file(path: str | Path) -> tuple[Category, ...]:
    """The classes of a list such as COCO's `panoptic_coco_categories.json`, in ascending order of their ids."""
    report = Report(path)
    rows = read_json(report.path, report)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise report.error("A07", "the document is not a list of categories")
    _check_flags(rows, (), report)
    return read_categories(rows, set(), report)


def _read(report: Report, segment_folder: Path, image_folders: Sequence[Path]) -> PanopticAnnotations:
    tables = read_tables(read_json(report.path, report), report, kind="panoptic")
    images_json, annotations_json, categories_json = tables
    image_ids = whole_numbers(annotations_json, _ROWS, "image_id", "A30", report)
    infos, place = _segment_rows(annotations_json, report)
    category_ids = whole_numbers(infos, place, "category_id", "A22", report)
    categories = _categories(categories_json, set(category_ids.tolist()), report)
    images, image_folder = read_images(images_json, image_folders, report)
    order = _annotation_of(image_ids, images, report)
    files = _files(annotations_json, order, images, report)
    folder_of(list(files), [segment_folder], report, kind="panoptic PNG files", code="A42")
    known = np.array([category.id for category in categories])
    affected = "segments affected; dropping them would raise PQ"
    labels = index_of(category_ids, known, place, "category_id", "categories", "A20", report, affected=affected)
    counts = np.array([len(row["segments_info"]) for row in annotations_json], dtype=np.int64)
    first = np.concatenate(([0], np.cumsum(counts)))
    ids = _segment_ids(infos, first, place, report)
    segments = SegmentTable(ids, labels, _crowds(infos, place, report), _areas(infos, place, report))
    taken = np.concatenate([np.arange(first[k], first[k + 1]) for k in order])
    columns = (segments.ids, segments.labels, segments.is_crowd, segments.areas)
    segments = SegmentTable(*(column[taken] for column in columns))
    _note_unused(segments, categories, report)
    first_segment = np.concatenate(([0], np.cumsum(counts[order])))
    return PanopticAnnotations(
        report.path, categories, images, files, segments, first_segment, order, segment_folder, image_folder, report
    )


def _segment_rows(rows: list[dict], report: Report) -> tuple[list[dict], Place]:
    """The segments of all annotations in one list, and where each of them stands."""
    infos: list[dict] = []
    first = [0]
    for k, row in enumerate(rows):
        found = row.get("segments_info")
        if not isinstance(found, list):
            what = f"segments_info is {shown(found)}, not a list" if "segments_info" in row else "no segments_info"
            raise report.error("A42", what, "annotations", k, remedy="is this a COCO panoptic file?")
        if not set(map(type, found)) <= {dict}:
            j = next(j for j, info in enumerate(found) if type(info) is not dict)
            what = f"a segment is {shown(found[j])}, not an object"
            raise report.error("A42", what, "annotations", k, "segments_info", j)
        infos += found
        first.append(len(infos))
    starts = np.array(first)

    def place(segment: int) -> tuple[str | int, ...]:
        row = int(np.searchsorted(starts, segment, side="right")) - 1
        return "annotations", row, "segments_info", segment - first[row]

    return infos, place


def _categories(rows: list[dict], used: set[int], report: Report) -> tuple[Category, ...]:
    """The categories; where the file does not tell things from stuff, COCO's own list beside it may."""
    if any("isthing" not in row for row in rows):
        folders = (report.path.parent, report.path.parent.parent)
        file = next((folder / CATEGORY_FILE for folder in folders if (folder / CATEGORY_FILE).is_file()), None)
        if file is not None:
            flags = {category.id: category.is_thing for category in read_category_file(file)}
            rows = [{"isthing": int(flags[row["id"]]), **row} if row.get("id") in flags else row for row in rows]
    _check_flags(rows, ("categories",), report)
    return read_categories(rows, used, report)


def _check_flags(rows: list[dict], place: tuple[str, ...], report: Report) -> None:
    for k, row in enumerate(rows):
        value = row.get("isthing")
        if type(value) not in (int, bool) or value not in (0, 1):
            what = f"isthing is {shown(value)}, not 0 or 1" if "isthing" in row else "isthing is missing"
            remedy = f"write isthing 1 for things and 0 for stuff, or put COCO's {CATEGORY_FILE} beside the file"
            raise report.error("A42", what, *place, k, remedy=remedy)


def _annotation_of(image_ids: NDArray[np.int64], images: tuple[ImageRecord, ...], report: Report) -> NDArray[np.int64]:
    """(I,) the annotation of each image; every image must have exactly one."""
    if (k := first_repeat(image_ids.tolist())) is not None:
        what = f"image {image_ids[k]} is annotated twice"
        raise report.error("A42", what, "annotations", k, "image_id", remedy="remove one of the annotations")
    known = np.array([image.id for image in images])
    index_of(image_ids, known, _ROWS, "image_id", "images", "A30", report, affected="annotations affected")
    if len(image_ids) < len(known):
        missing = known[~np.isin(known, image_ids)]
        what = f"{len(missing)} of {len(known)} images have no annotation: image {missing[0]}"
        raise report.error("A42", what, "images", remedy="annotate them or remove them from images")
    return np.argsort(image_ids)


def _files(
    rows: list[dict], order: NDArray[np.int64], images: tuple[ImageRecord, ...], report: Report
) -> tuple[str, ...]:
    """The PNG file of each image. Its name must not be that of another image: somebody may pair them by name."""
    names = [safe_name(row, _ROWS(k), report) for k, row in enumerate(rows)]
    if (k := first_repeat(names)) is not None:
        what = f"file_name {shown(names[k])} stands twice"
        raise report.error("A42", what, "annotations", k, "file_name", remedy="give each image its own PNG file")
    files = tuple(names[k] for k in order)
    stems = [PurePosixPath(image.file_name).stem for image in images]
    own = {stem: image for image, stem in enumerate(stems)}
    others = [k for k, file in enumerate(files) if PurePosixPath(file).stem != stems[k]]
    for k in others:
        other = own.get(PurePosixPath(files[k]).stem, k)
        if other != k and first_repeat(stems) is None:
            what = f"file_name {shown(files[k])} is that of image {images[other].id}, image_id is {images[k].id}"
            remedy = "correct image_id or file_name"
            raise report.error("A42", what, "annotations", int(order[k]), "file_name", remedy=remedy)
    if others:
        k = others[0]
        what = f"{len(others)} PNG files have other names than their images, as {files[k]}; matched by image_id"
        report.add("A42", "warn", what, "annotations", int(order[k]), "file_name", count=len(others))
    return files


def _segment_ids(infos: list[dict], first: NDArray[np.int64], place: Place, report: Report) -> NDArray[np.int64]:
    ids = whole_numbers(infos, place, "id", "A42", report)
    wrong = np.flatnonzero((ids < 1) | (ids > MAX_SEGMENT_ID))
    if wrong.size:
        what = f"segment id {ids[wrong[0]]}, expected 1 to {MAX_SEGMENT_ID:,}: three bytes, 0 is void"
        raise report.error("A42", what, *place(int(wrong[0])), "id", remedy="number the segments anew, PNG and JSON")
    for start, stop in pairwise(first.tolist()):
        k = first_repeat(ids[start:stop].tolist())
        if k is not None:
            what = f"segment id {ids[start + k]} stands twice in one image"
            raise report.error("A42", what, *place(start + k), "id", remedy="give each segment its own id")
    return ids


def _crowds(infos: list[dict], place: Place, report: Report) -> NDArray[np.bool_]:
    """(N,) bool; a missing iscrowd is 0, as in predictions."""
    values = [info.get("iscrowd", 0) for info in infos]
    for k, value in enumerate(values):
        if type(value) not in (int, bool) or value not in (0, 1):
            raise report.error("A34", f"iscrowd is {shown(value)}, not 0 or 1", *place(k), "iscrowd")
    return np.array(values, dtype=np.bool_)


def _areas(infos: list[dict], place: Place, report: Report) -> NDArray[np.float64]:
    values: list[Any] = [info.get("area") for info in infos]
    for k, value in enumerate(values):
        if type(value) not in (int, float, type(None)):
            raise report.error("A36", f"area is {shown(value)}, not a number", *place(k), "area")
    return float_array([np.nan if value is None else value for value in values])


def _note_unused(segments: SegmentTable, categories: tuple[Category, ...], report: Report) -> None:
    if segments.is_crowd.all():
        report.add("A09", "warn", "there are no segments to learn or to find", "annotations")
        return
    used = set(segments.labels[~segments.is_crowd].tolist())
    names = [category.name for label, category in enumerate(categories) if label not in used]
    if names:
        listed = ", ".join(f"{name:.30}" for name in names[:5]) + (", ..." if len(names) > 5 else "")
        what = f"{len(names)} of {len(categories)} categories have no segment: {listed}"
        report.add("A46", "warn", what, "categories")


def unfitting(annotations: PanopticAnnotations, index: int, what: str, segment: int | None, remedy: str) -> DataError:
    """The error for image `index` whose pixels do not fit the file; segment: which of its rows, if it is one."""
    place: tuple[str | int, ...] = ("annotations", int(annotations.rows[index]))
    if segment is not None:
        place += ("segments_info", segment, "id")
    png = annotations.segment_folder / annotations.files[index]
    return annotations.report.error("A42", f"{what}: {png}", *place, remedy=remedy)
