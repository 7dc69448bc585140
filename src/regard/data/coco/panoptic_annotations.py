"""COCO's panoptic annotations: the JSON file with the classes of the segments, read and checked.

A wrong segment would silently give a wrong label or score, so every mismatch is an error that names its place. Pixels
are checked when an image is read, see regard.data.coco.panoptic_png.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regard.data.coco.categories import note_unused
from regard.data.coco.json_file import float_array, read_json
from regard.data.coco.tables import (
    Annotations,
    ImageRecord,
    Place,
    collector_paused,
    first_repeat,
    folder_of,
    in_table,
    index_of,
    read_categories,
    read_crowds,
    read_images,
    read_tables,
    safe_name,
    shorten,
    whole_numbers,
)
from regard.data.report import Report
from regard.errors import HAS, counted
from regard.structures.categories import Category

MAX_SEGMENT_ID = 2**24 - 1  # three bytes of a pixel; 0 is void
# COCO's list of its 133 classes with isthing, for files without isthing.
CATEGORY_FILE = "panoptic_coco_categories.json"

_ROWS = in_table("annotations")


@dataclass(frozen=True)
class SegmentTable:
    """N segments of all images, one row each.

    Args:
        ids: (N,) int64, as in the pixels of the PNG file: R + 256 G + 65536 B.
        labels: (N,) int64, index into the categories.
        is_crowd: (N,) bool, a region of many objects: not learned, and predictions on it are not counted.
        areas: (N,) float64, pixels as stated in the file; NaN if it states none.
    """

    ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    is_crowd: NDArray[np.bool_]
    areas: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class PanopticAnnotations(Annotations):
    """Checked panoptic annotations.

    Args:
        files: the PNG file of each image, relative to `segment_folder`.
        segments: of all images, image after image.
        rows: (I,) int64, the number of each image's annotation in the file.
    """

    files: tuple[str, ...]
    segments: SegmentTable
    rows: NDArray[np.int64]
    segment_folder: Path


def read_panoptic(
    path: str | Path, *, segment_folder: Path | None = None, image_folders: Sequence[Path] = ()
) -> PanopticAnnotations:
    """Read and check a COCO panoptic file: ground truth, or predictions as `PanopticWriter` writes them.

    Args:
        segment_folder: the folder of its PNG files, which must have all of them; None for the folder of the same name
            next to the file.
        image_folders: folders that may hold the images. The first one with the first image must have all images.
            Without folders no image is looked for.

    Raises:
        DataError: the file is wrong; the place is a JSON pointer, `ann.json:/annotations/17/segments_info/2/id`.
    """
    path = Path(path)
    with collector_paused():
        return _read(Report(path), segment_folder or path.with_suffix(""), image_folders)


def select_panoptic(annotations: PanopticAnnotations, chosen: Sequence[int], report: Report) -> PanopticAnnotations:
    """Return the annotations of some images. chosen: their indices, ascending. report: that of the result."""
    taken = [np.arange(annotations.rows_of(index).start, annotations.rows_of(index).stop) for index in chosen]
    rows = np.concatenate(taken)
    table = annotations.segments
    columns = (table.ids, table.labels, table.is_crowd, table.areas)
    return replace(
        annotations,
        images=tuple(annotations.images[index] for index in chosen),
        first_row=np.concatenate(([0], np.cumsum([len(of_image) for of_image in taken]))).astype(np.int64),
        files=tuple(annotations.files[index] for index in chosen),
        segments=SegmentTable(*(column[rows] for column in columns)),
        rows=annotations.rows[list(chosen)],
        report=report,
    )


def read_category_file(path: str | Path) -> tuple[Category, ...]:
    """Read a list of classes such as COCO's `panoptic_coco_categories.json`, in ascending order of their ids.

    Raises:
        DataError: not a list of categories with isthing.
    """
    report = Report(path)
    rows = read_json(report.path, report)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise report.error("A07", "the document is not a list of categories", remedy="is this COCO's category file?")
    _check_flags(rows, (), report)
    return read_categories(rows, set(), report)[0]


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
    folder_of(list(files), [segment_folder], report, kind="panoptic PNG file", code="A42")
    known = np.array([category.id for category in categories])
    affected = "segments"
    labels = index_of(category_ids, known, place, "category_id", "categories", "A20", report, affected=affected)
    counts = np.array([len(row["segments_info"]) for row in annotations_json], dtype=np.int64)
    first = np.concatenate(([0], np.cumsum(counts)))
    ids = _segment_ids(infos, first, place, report)
    segments = SegmentTable(ids, labels, read_crowds(infos, place, report), _areas(infos, place, report))
    taken = np.concatenate([np.arange(first[k], first[k + 1]) for k in order])
    columns = (segments.ids, segments.labels, segments.is_crowd, segments.areas)
    segments = SegmentTable(*(column[taken] for column in columns))
    note_unused(segments.labels[~segments.is_crowd], categories, "segment", report)
    return PanopticAnnotations(
        path=report.path,
        categories=categories,
        images=images,
        first_row=np.concatenate(([0], np.cumsum(counts[order]))),
        image_folder=image_folder,
        report=report,
        files=files,
        segments=segments,
        rows=order,
        segment_folder=segment_folder,
    )


def _segment_rows(rows: list[dict], report: Report) -> tuple[list[dict], Place]:
    """Return the segments of all annotations in one list, and the place of each."""
    infos: list[dict] = []
    first = [0]
    for k, row in enumerate(rows):
        found = row.get("segments_info")
        if not isinstance(found, list):
            stated = f"segments_info is {shorten(found)}" if "segments_info" in row else "no segments_info"
            what = f"{stated}, expected a list"
            raise report.error("A42", what, "annotations", k, remedy="is this a COCO panoptic file?")
        if not set(map(type, found)) <= {dict}:
            j = next(j for j, info in enumerate(found) if type(info) is not dict)
            what = f"a segment is {shorten(found[j])}, expected an object"
            raise report.error("A42", what, "annotations", k, "segments_info", j)
        infos += found
        first.append(len(infos))
    starts = np.array(first)

    def place(segment: int) -> tuple[str | int, ...]:
        row = int(np.searchsorted(starts, segment, side="right")) - 1
        return "annotations", row, "segments_info", segment - first[row]

    return infos, place


def _categories(rows: list[dict], used: set[int], report: Report) -> tuple[Category, ...]:
    """Return the categories. If the file has no isthing, read it from COCO's own list in the same or parent folder."""
    if any("isthing" not in row for row in rows):
        folders = (report.path.parent, report.path.parent.parent)
        file = next((folder / CATEGORY_FILE for folder in folders if (folder / CATEGORY_FILE).is_file()), None)
        if file is not None:
            flags = {category.id: category.is_thing for category in read_category_file(file)}
            rows = [{"isthing": int(flags[row["id"]]), **row} if row.get("id") in flags else row for row in rows]
    _check_flags(rows, ("categories",), report)
    return read_categories(rows, used, report)[0]


def _check_flags(rows: list[dict], place: tuple[str, ...], report: Report) -> None:
    for k, row in enumerate(rows):
        value = row.get("isthing")
        if type(value) not in (int, bool) or value not in (0, 1):
            what = f"isthing is {shorten(value)}, expected 0 or 1" if "isthing" in row else "no isthing"
            remedy = f"write isthing 1 for things and 0 for stuff, or put COCO's {CATEGORY_FILE} next to the file"
            raise report.error("A42", what, *place, k, remedy=remedy)


def _annotation_of(image_ids: NDArray[np.int64], images: tuple[ImageRecord, ...], report: Report) -> NDArray[np.int64]:
    """Return the number of each image's annotation (I,). Every image must have exactly one."""
    if (k := first_repeat(image_ids.tolist())) is not None:
        what = f"duplicate annotation of image {image_ids[k]}"
        raise report.error("A42", what, "annotations", k, "image_id", remedy="remove one of the annotations")
    known = np.array([image.id for image in images])
    index_of(image_ids, known, _ROWS, "image_id", "images", "A30", report, affected="annotations")
    if len(image_ids) < len(known):
        missing = known[~np.isin(known, image_ids)]
        what = f"{counted(len(missing), 'image', of=len(known), verb=HAS)} no annotation: image {missing[0]}"
        raise report.error("A42", what, "images", remedy="annotate them or remove them from images")
    return np.argsort(image_ids)


def _files(
    rows: list[dict], order: NDArray[np.int64], images: tuple[ImageRecord, ...], report: Report
) -> tuple[str, ...]:
    """Return the PNG file of each image. Its name must not be that of another image: tools may pair them by name."""
    names = [safe_name(row.get("file_name"), _ROWS(k), report) for k, row in enumerate(rows)]
    if (k := first_repeat(names)) is not None:
        what = f"duplicate file_name {shorten(names[k])}"
        raise report.error("A42", what, "annotations", k, "file_name", remedy="give each image its own PNG file")
    files = tuple(names[k] for k in order)
    stems = [PurePosixPath(image.file_name).stem for image in images]
    own = {stem: image for image, stem in enumerate(stems)}
    others = [k for k, file in enumerate(files) if PurePosixPath(file).stem != stems[k]]
    for k in others:
        other = own.get(PurePosixPath(files[k]).stem, k)
        if other != k and first_repeat(stems) is None:
            what = f"file_name {shorten(files[k])} is the name of image {images[other].id}, not {images[k].id}"
            remedy = "correct image_id or file_name"
            raise report.error("A42", what, "annotations", int(order[k]), "file_name", remedy=remedy)
    if others:
        k = others[0]
        count = counted(len(others), "PNG file", verb=HAS)
        what = f"{count} another name than the image, such as {files[k]}; matched by image_id"
        report.add("A42", "warn", what, "annotations", int(order[k]), "file_name", count=len(others))
    return files


def _segment_ids(infos: list[dict], first: NDArray[np.int64], place: Place, report: Report) -> NDArray[np.int64]:
    """Return the segment ids (N,), which must be unique in an image and fit into three bytes."""
    ids = whole_numbers(infos, place, "id", "A42", report)
    wrong = np.flatnonzero((ids < 1) | (ids > MAX_SEGMENT_ID))
    if wrong.size:
        what = f"segment id {ids[wrong[0]]}, expected 1 to {MAX_SEGMENT_ID:,} (three bytes; 0 is void)"
        raise report.error("A42", what, *place(int(wrong[0])), "id", remedy="renumber the segments in PNG and JSON")
    for start, stop in pairwise(first.tolist()):
        k = first_repeat(ids[start:stop].tolist())
        if k is not None:
            what = f"duplicate segment id {ids[start + k]} in one image"
            raise report.error("A42", what, *place(start + k), "id", remedy="give each segment its own id")
    return ids


def _areas(infos: list[dict], place: Place, report: Report) -> NDArray[np.float64]:
    values: list[Any] = [info.get("area") for info in infos]
    for k, value in enumerate(values):
        if type(value) not in (int, float, type(None)):
            raise report.error("A36", f"area is {shorten(value)}, expected a number", *place(k), "area")
    return float_array([np.nan if value is None else value for value in values])
