"""What annotation files of objects and of panoptic segments share: images, categories and ids, read and checked."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regard.data.coco.document import Rows, Table, array_of, column
from regard.data.image_folders import are_safe, is_unsafe
from regard.data.images import MAX_PIXELS, image_size
from regard.data.report import Report, listed
from regard.errors import HAS, IS, ImageError, counted
from regard.structures.categories import Category

# What `whole_numbers` gives for a value that is none, where faults are gathered.
NO_ID = -(2**63)
# Row number -> the keys and indices of that row in the document.
Place = Callable[[int], tuple[str | int, ...]]

_TABLES = ("images", "annotations", "categories")


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """An image as the annotations describe it.

    Args:
        id: the data set's own id.
        file_name: path relative to the image folder; empty where faults are gathered and the file cannot be used.
        height, width: in pixels; 0 where faults are gathered and the size is wrong.
    """

    id: int
    file_name: str
    height: int
    width: int


@dataclass(frozen=True, kw_only=True)
class Annotations:
    """The checked content of an annotation file.

    Args:
        categories: in ascending order of their ids; labels are indices into them.
        images: I images, in ascending order of their ids.
        first_row: (I + 1,) int64; image i has the rows `first_row[i]` to `first_row[i + 1]` of the table of objects or
            segments.
        image_folder: the folder of the images, None if it was not looked for.
        report: issues that do not stop the work.
        groups: categories that group others and have no objects in the file; no classes unless another file needs them.
    """

    path: Path
    categories: tuple[Category, ...]
    images: tuple[ImageRecord, ...]
    first_row: NDArray[np.int64]
    image_folder: Path | None
    report: Report
    groups: tuple[Category, ...] = ()

    def rows_of(self, index: int) -> slice:
        """Return the rows of image `index`."""
        return slice(int(self.first_row[index]), int(self.first_row[index + 1]))

    def count_per_image(self, rows: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Count the rows of each image that are marked in `rows` (N,). Returns (I,)."""
        return np.diff(np.concatenate(([0], np.cumsum(rows)))[self.first_row])


@contextmanager
def collector_paused() -> Iterator[None]:
    """Pause Python's cycle collector, which would visit the lists of a document over and over.

    The document has no cycles. A million annotations are read in 7 seconds instead of 12.
    """
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


def read_tables(document: Any, report: Report, *, kind: str) -> list[Any]:
    """Return the images, annotations and categories of a document, each a list of objects.

    Args:
        kind: `instances` or `panoptic`.

    Raises:
        DataError: another kind of document (A07), or no images (A08).
    """
    if not isinstance(document, dict):
        what = f"the document is a {type(document).__name__}, expected an object with {', '.join(_TABLES)}"
        raise report.error("A07", what, remedy=f"is this a COCO {kind} file?")
    for name in _TABLES:
        if name not in document and report.gathers:
            absent = [key for key in _TABLES if key not in document]
            raise report.error("A07", f"no keys {', '.join(map(repr, absent))}", remedy=f"is this a COCO {kind} file?")
        if name not in document:
            what = f"no key {name!r} (found: {', '.join(map(repr, list(document)[:8])) or 'nothing'})"
            raise report.error("A07", what, remedy=f"is this a COCO {kind} file?")
        rows = document[name]
        if isinstance(rows, Table):
            continue
        if not isinstance(rows, list):
            raise report.error("A07", f"{name} is a {type(rows).__name__}, expected a list", name)
        if not set(map(type, rows)) <= {dict}:
            row = next(row for row, value in enumerate(rows) if type(value) is not dict)
            raise report.error("A07", f"an entry of {name} is {rows[row]!r:.40}, expected an object", name, row)
    if document["annotations"] and (kind == "panoptic") != ("segments_info" in document["annotations"][0]):
        other = "instances" if kind == "panoptic" else "panoptic"
        what, remedy = f"these are {other} annotations", f"use the {kind} file of the data set"
        raise report.error("A07", what, "annotations", 0, remedy=remedy)
    if not document["images"]:
        raise report.error("A08", "no images", "images", remedy="export the annotations again")
    return [document[name] for name in _TABLES]


def in_table(name: str) -> Place:
    """Return the places of the rows of a table."""
    return lambda row: (name, row)


def whole_numbers(rows: Rows, place: Place, key: str, code: str, report: Report) -> NDArray[np.int64]:
    """Return the values of `key` of all rows (N,), which must be whole numbers that fit into 64 bits."""
    numbers = array_of(rows, key)
    if numbers is not None and (numbers != NO_ID).all():
        return numbers
    values: list[Any] = column(rows, key)
    if set(map(type, values)) <= {int} and all(NO_ID < value < 2**63 for value in values):
        return np.array(values, dtype=np.int64)
    wrong = [k for k, value in enumerate(values) if type(value) is not int or not NO_ID < value < 2**63]
    missing = [place(k) for k in wrong if key not in rows[k]]
    others = [k for k in wrong if key in rows[k]]
    if missing and (report.gathers or key not in rows[wrong[0]]):
        report.fail_at(code, f"{key} is missing", missing)
    if others:
        what = f"{key} is {shorten(values[others[0]])}, expected a whole number of 64 bits"
        remedy = "write a whole number, without quotes"
        report.fail_at(code, what, [(*place(k), key) for k in others], remedy=remedy)
    for k in wrong:
        values[k] = NO_ID
    return np.array(values, dtype=np.int64)


def read_categories(
    rows: list[dict], used: set[int], report: Report, used_elsewhere: Container[str] = ()
) -> tuple[tuple[Category, ...], tuple[Category, ...]]:
    """Return the categories in ascending order of their ids, and those that only group others.

    Args:
        used: the ids that annotations have.
        used_elsewhere: names of categories that have objects in another file of the data set.

    Raises:
        DataError: no categories (A07), ids that are not whole numbers (A22), duplicate ids (A24), missing or duplicate
            names (A25).
    """
    if not rows:
        raise report.error("A07", "no categories", "categories")
    nameless = [k for k, row in enumerate(rows) if not isinstance(row.get("name"), str) or not row["name"].strip()]
    if nameless:
        what = f"the name of a category is {rows[nameless[0]].get('name')!r:.40}, expected a text"
        report.fail_at("A25", what, [("categories", k, "name") for k in nameless])
        rows = [{**row, "name": f"category {k}"} if k in set(nameless) else row for k, row in enumerate(rows)]
    ids = whole_numbers(rows, in_table("categories"), "id", "A22", report).tolist()
    if repeats := [k for k in all_repeats(ids) if ids[k] != NO_ID]:
        what, remedy = f"duplicate category id {ids[repeats[0]]}", "give each category its own id"
        report.fail_at("A24", what, [("categories", k, "id") for k in repeats], remedy=remedy)
    # Roboflow lists the project as a category without objects, which the others name as their supercategory.
    groups = [row["supercategory"] for row in rows if row.get("supercategory") not in (None, "none")]
    is_group = [
        row.get("supercategory") == "none" and row["name"] in groups and row["name"] not in used_elsewhere
        for row in rows
    ]
    kept = [k for k in range(len(rows)) if ids[k] in used or not is_group[k]]
    dropped = [k for k in range(len(rows)) if ids[k] not in used and is_group[k]]
    if dropped:
        what = f"category {rows[dropped[0]]['name']!r:.40} groups others and has no objects; left out"
        report.add("A25", "fix", what, "categories", dropped[0], count=len(dropped))
    names = [rows[k]["name"] for k in kept]
    if repeats := all_repeats(names):
        what, remedy = f"duplicate category name {names[repeats[0]]!r:.40}", "merge or rename the categories"
        report.fail_at("A25", what, [("categories", kept[k], "name") for k in repeats], remedy=remedy)
    kinds = []
    for chosen in (kept, dropped):
        found = [Category(ids[k], rows[k]["name"], bool(rows[k].get("isthing", True))) for k in chosen]
        kinds.append(tuple(sorted(found, key=lambda category: category.id)))
    return kinds[0], kinds[1]


def group_names(document: Any, *, with_objects: bool) -> set[str]:
    """Return the names of the categories that group others in an unchecked document.

    with_objects: those that have objects, or those that have none.
    """
    found = document.get("categories") if isinstance(document, dict) else None
    categories = [row for row in found if isinstance(row, dict)] if isinstance(found, list) else []
    parents = {row.get("supercategory") for row in categories if isinstance(row.get("supercategory"), str)}
    roots = [row for row in categories if row.get("supercategory") == "none" and isinstance(row.get("name"), str)]
    groups = [row for row in roots if row["name"] in parents]
    if not groups:
        return set()
    rows = document.get("annotations")
    if not isinstance(rows, Table):
        rows = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    used = {value for value in column(rows, "category_id") if type(value) is int}
    return {row["name"] for row in groups if (type(row.get("id")) is int and row["id"] in used) == with_objects}


def read_images(rows: Rows, folders: Sequence[Path], report: Report) -> tuple[tuple[ImageRecord, ...], Path | None]:
    """Return the images in ascending order of their ids, and their folder.

    Args:
        folders: the folders that may hold the images, see `folder_of`. Without any, no image is looked for.

    Raises:
        DataError: wrong or duplicate ids (A29, A30), unsafe names (A32), missing files (A31), wrong sizes (A33).
    """
    ids = whole_numbers(rows, in_table("images"), "id", "A30", report).tolist()
    if repeats := [k for k in all_repeats(ids) if ids[k] != NO_ID]:
        what, remedy = f"duplicate image id {ids[repeats[0]]}", "give each image its own id"
        report.fail_at("A29", what, [("images", k, "id") for k in repeats], remedy=remedy)
    names = column(rows, "file_name")
    if array_of(rows, "file_name") is None or not are_safe(names):
        names = [safe_name(name, ("images", k), report) for k, name in enumerate(names)]
    folder = folder_of(names, folders, report) if folders else None
    heights, widths, measured = _sizes(rows, names, folder, report)
    images = list(map(ImageRecord, ids, names, heights, widths))
    images = [image for image in images if image.id != NO_ID]
    if not images:
        raise report.error("A30", "no image has an id that can be used", "images", remedy="write whole numbers")
    if measured:
        what = f"{counted(len(measured), 'image', verb=HAS)} no height and width; read from the file"
        report.add("A33", "fix", what, "images", measured[0], count=len(measured))
    return tuple(sorted(images, key=attrgetter("id"))), folder


def _sizes(rows: Rows, names: list[str], folder: Path | None, report: Report) -> tuple[list[int], list[int], list[int]]:
    """Return the heights and widths of all images, and the rows for which they were read from the files (A33)."""
    heights, widths = array_of(rows, "height"), array_of(rows, "width")
    if heights is not None and widths is not None:
        is_right = (heights > 0) & (widths > 0) & (heights <= MAX_PIXELS // np.maximum(widths, 1))
        if is_right.all():
            return heights.tolist(), widths.tolist(), []
    measured = []
    sizes = []
    for k, size in enumerate(zip(column(rows, "height"), column(rows, "width"), strict=True)):
        if folder is not None and size == (None, None):
            measured.append(k)
            size = _measured_size(folder / names[k], report) if names[k] else (0, 0)
        elif not _is_size(*size):
            size = _wrong_size(rows[k], k, report)
        sizes.append(size)
    return [height for height, _ in sizes], [width for _, width in sizes], measured


def read_crowds(rows: Rows, place: Place, report: Report) -> NDArray[np.bool_]:
    """Return `iscrowd` of all rows (N,), which must be 0 or 1 (A34). A missing one counts as 0."""
    values = column(rows, "iscrowd", 0)
    wrong = [k for k, v in enumerate(values) if type(v) not in (int, bool, float) or v not in (0, 1)]
    if wrong:
        what = f"iscrowd is {shorten(values[wrong[0]])}, expected 0 or 1"
        report.fail_at("A34", what, [(*place(k), "iscrowd") for k in wrong], remedy="write 0 or 1")
        for k in wrong:
            values[k] = 0
    return np.array(values, dtype=np.bool_)


def safe_name(name: Any, place: tuple[str | int, ...], report: Report) -> str:
    """Return the `file_name` of the row at `place`. It must be a path inside the folder of the files (A32)."""
    if isinstance(name, str) and not is_unsafe(name):
        return name
    what = f"file_name {shorten(name)} is not a path inside the image folder"
    report.fail("A32", what, *place, "file_name", remedy="write paths relative to the image folder")
    return ""


def _measured_size(file: Path, report: Report) -> tuple[int, int]:
    try:
        return image_size(file)
    except ImageError:
        if not report.gathers:
            raise
        return 0, 0  # decoding will say why


def _is_size(height: Any, width: Any) -> bool:
    return type(height) is int and type(width) is int and height > 0 and width > 0 and height * width <= MAX_PIXELS


def _wrong_size(row: dict, k: int, report: Report) -> tuple[int, int]:
    """Report the stated size of an image (A33)."""
    for key in ("height", "width"):
        value = row.get(key)
        if type(value) is not int or value <= 0:
            what = f"{key} is {shorten(value)}, expected a number of pixels" if key in row else f"no {key}"
            report.fail("A33", what, "images", k, key, remedy="write the size of the image file")
            return 0, 0
    what = f"an image of {shorten(row['width'])}x{shorten(row['height'])}, more than {MAX_PIXELS:,} pixels"
    report.fail("A33", what, "images", k, remedy="write the size of the image file")
    return 0, 0


def folder_of(
    names: list[str], folders: Sequence[Path], report: Report, *, kind: str = "image file", code: str = "A31"
) -> Path:
    """Return the first of `folders` that has the first file, or the first folder; it must have all files.

    Lists the folders: checking file by file takes minutes on a network. Where faults are gathered, names of missing
    files become empty.

    Raises:
        DataError: files are missing (`code`).
    """
    files: dict[tuple[Path, str], set[str]] = {}

    def is_file(folder: Path, name: str) -> bool:
        inside, _, last = name.rpartition("/")  # a Path for each name takes seconds
        if last in ("", "."):
            inside, last = str(Path(name).parent), Path(name).name
        found = files.get((folder, inside))
        if found is None:
            found = files[folder, inside] = _files_in(folder / inside)
        return last in found

    first = next(filter(None, names), "")
    folder = next((folder for folder in folders if is_file(folder, first)), folders[0])
    missing = []
    if not files.get((folder, ""), set()).issuperset(filter(None, names)):
        missing = [name for name in names if name and not is_file(folder, name)]
    if missing:
        count = counted(len(missing), kind, of=len(names), verb=IS)
        what = f"{count} missing: {listed([repr(name) for name in missing])}"
        remedy = f"looked in {', '.join(map(str, folders))}"
        report.fail(code, what, remedy=remedy)
        gone = set(missing)
        names[:] = ["" if name in gone else name for name in names]
    return folder


def _files_in(folder: Path) -> set[str]:
    """Return the names of files in a folder, links to files included. Empty if there is no such folder."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_file()}
    except (OSError, ValueError):  # ValueError: a name that the file system does not allow
        return set()


def index_of(
    ids: NDArray[np.int64],
    known: NDArray[np.int64],
    place: Place,
    key: str,
    table: str,
    code: str,
    report: Report,
    *,
    affected: str = "objects",
) -> NDArray[np.int64]:
    """Return the index (N,) of each id in `known`, which is in ascending order; -1 for ids that were no numbers.

    Args:
        place, key: of the ids in the document, for errors.
        table: the table that `known` comes from.
        affected: what the ids belong to, for the remedy.

    Raises:
        DataError: an id that is not in `known` (`code`).
    """
    span = int(known[-1]) - int(known[0]) + 1 if len(known) else 0
    if 0 < span <= len(known) + len(ids):  # a table is faster than a search
        table_of = np.zeros(span, dtype=np.int64)
        table_of[known - known[0]] = np.arange(len(known))
        index = table_of[ids.clip(known[0], known[-1]) - known[0]]
    else:
        index = np.minimum(np.searchsorted(known, ids), len(known) - 1)
    known_ids = known[index] == ids
    strays = np.flatnonzero(~known_ids & (ids != NO_ID))
    if strays.size:
        row = int(strays[0])
        what = f"{key} {ids[row]} is not in {table} ({listed(known.tolist())})"
        remedy = f"correct the ids ({strays.size} of {ids.size} {affected})"
        report.fail_at(code, what, [(*place(k), key) for k in strays.tolist()], remedy=remedy)
    return np.where(known_ids, index, -1)


def all_repeats(values: Sequence) -> list[int]:
    """Return the indices of the values that repeat an earlier one."""
    if len(set(values)) == len(values):
        return []
    first = {value: k for k, value in reversed(list(enumerate(values)))}
    return [k for k, value in enumerate(values) if first[value] != k]


def first_repeat(values: Sequence) -> int | None:
    """Return the index of the first value that repeats an earlier one; None if all differ."""
    return next(iter(all_repeats(values)), None)


def shorten(value: Any) -> str:
    """Return a short text of a value for a message. Python cannot print integers of thousands of digits."""
    return "a very large number" if isinstance(value, int) and abs(value) >= 10**30 else f"{value!r:.60}"


def image_rows(images: Sequence[ImageRecord]) -> list[dict[str, Any]]:
    """Return the `images` table of a COCO document."""
    return [{"id": i.id, "file_name": i.file_name, "height": i.height, "width": i.width} for i in images]
