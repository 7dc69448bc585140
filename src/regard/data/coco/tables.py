"""The tables that COCO's files of objects and of panoptic segments share: images, categories, ids; checked."""

from __future__ import annotations

import gc
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regard.data.image_folders import is_unsafe
from regard.data.images import MAX_PIXELS, image_size
from regard.data.report import Report
from regard.errors import DataError
from regard.structures.categories import Category

# Where row k of some rows stands in the file: the keys and indices that lead to it.
Place = Callable[[int], tuple[str | int, ...]]

_TABLES = ("images", "annotations", "categories")


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """An image as the annotations describe it; height, width in pixels, file_name below the image folder."""

    id: int
    file_name: str
    height: int
    width: int


@contextmanager
def collector_paused() -> Iterator[None]:
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


def read_tables(document: Any, report: Report, *, kind: str) -> list[list[dict]]:
    """The images, annotations and categories of a document, each a list of objects.

    Raises DataError for another document (A07) and one without images (A08). kind: `instances` or `panoptic`.
    """
    if not isinstance(document, dict):
        what = f"the document is a {type(document).__name__}, not an object with {', '.join(_TABLES)}"
        raise report.error("A07", what, remedy=f"is this a COCO {kind} file?")
    for name in _TABLES:
        if name not in document:
            what = f"key {name!r} is missing (found: {', '.join(map(repr, list(document)[:8])) or 'nothing'})"
            raise report.error("A07", what, remedy=f"is this a COCO {kind} file?")
        rows = document[name]
        if not isinstance(rows, list):
            raise report.error("A07", f"{name} is a {type(rows).__name__}, not a list", name)
        if not set(map(type, rows)) <= {dict}:
            row = next(row for row, value in enumerate(rows) if type(value) is not dict)
            raise report.error("A07", f"an entry of {name} is {rows[row]!r:.40}, not an object", name, row)
    if document["annotations"] and (kind == "panoptic") != ("segments_info" in document["annotations"][0]):
        other = "instances" if kind == "panoptic" else "panoptic"
        what, remedy = f"these are {other} annotations", f"use the {kind} file of the data set"
        raise report.error("A07", what, "annotations", 0, remedy=remedy)
    if not document["images"]:
        raise report.error("A08", "there are no images", "images", remedy="export the annotations again")
    return [document[name] for name in _TABLES]


def in_table(name: str) -> Place:
    """The places of the rows of a table."""
    return lambda row: (name, row)


def whole_numbers(rows: list[dict], place: Place, key: str, code: str, report: Report) -> NDArray[np.int64]:
    """The values of `key`, whole numbers that fit into 64 bits, of all rows."""
    values: list[Any] = [row.get(key) for row in rows]
    if set(map(type, values)) <= {int} and all(-(2**63) <= value < 2**63 for value in values):
        return np.array(values, dtype=np.int64)
    row = next(k for k, value in enumerate(values) if type(value) is not int or not -(2**63) <= value < 2**63)
    if key not in rows[row]:
        raise report.error(code, f"{key} is missing", *place(row))
    what = f"{key} is {shown(values[row])}, not a whole number of 64 bits"
    raise report.error(code, what, *place(row), key, remedy="write a whole number, without quotes")


def read_categories(rows: list[dict], used: set[int], report: Report) -> tuple[Category, ...]:
    """The categories in ascending order of their ids."""
    if not rows:
        raise report.error("A07", "there are no categories", "categories")
    for place, row in enumerate(rows):
        if not isinstance(row.get("name"), str) or not row["name"].strip():
            what = f"the name of a category is {row.get('name')!r:.40}, not a text"
            raise report.error("A25", what, "categories", place, "name")
    ids = whole_numbers(rows, in_table("categories"), "id", "A22", report).tolist()
    if (k := first_repeat(ids)) is not None:
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
    if (k := first_repeat(names)) is not None:
        what, remedy = f"category name {names[k]!r:.40} stands twice", "merge or rename the categories"
        raise report.error("A25", what, "categories", kept[k], "name", remedy=remedy)
    found = [Category(ids[k], rows[k]["name"], bool(rows[k].get("isthing", True))) for k in kept]
    return tuple(sorted(found, key=lambda category: category.id))


def read_images(
    rows: list[dict], folders: Sequence[Path], report: Report
) -> tuple[tuple[ImageRecord, ...], Path | None]:
    """The images in ascending order of their ids, and their folder where folders are given."""
    ids = whole_numbers(rows, in_table("images"), "id", "A30", report).tolist()
    if (k := first_repeat(ids)) is not None:
        what, remedy = f"image id {ids[k]} stands twice", "give each image its own id"
        raise report.error("A29", what, "images", k, "id", remedy=remedy)
    names = [safe_name(row, ("images", k), report) for k, row in enumerate(rows)]
    folder = folder_of(names, folders, report) if folders else None
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


def safe_name(row: dict, place: tuple[str | int, ...], report: Report) -> str:
    """The `file_name` of a row, which must be a path below the folder of the files (A32)."""
    name = row.get("file_name")
    if isinstance(name, str) and not is_unsafe(name):
        return name
    what = f"file_name {shown(name)} is not the path of a file below the image folder"
    raise report.error("A32", what, *place, "file_name", remedy="write paths relative to the image folder")


def _stated_size(row: dict, k: int, report: Report) -> tuple[int, int]:
    for key in ("height", "width"):
        value = row.get(key)
        if type(value) is not int or value <= 0:
            what = f"{key} is {shown(value)}, not a number of pixels" if key in row else f"{key} is missing"
            raise report.error("A33", what, "images", k, key, remedy="write the size of the image file")
    if row["height"] * row["width"] > MAX_PIXELS:
        what = f"an image of {shown(row['width'])}x{shown(row['height'])}, more than {MAX_PIXELS:,} pixels"
        raise report.error("A33", what, "images", k)
    return row["height"], row["width"]


def folder_of(
    names: list[str], folders: Sequence[Path], report: Report, *, kind: str = "image files", code: str = "A31"
) -> Path:
    """The folder with all files. Folders are listed: asking for each file takes minutes on a network."""
    files: dict[Path, set[str]] = {}

    def is_file(path: Path) -> bool:
        if path.parent not in files:
            files[path.parent] = _files_in(path.parent)
        return path.name in files[path.parent]

    folder = next((folder for folder in folders if is_file(folder / names[0])), folders[0])
    missing = [name for name in names if not is_file(folder / name)]
    if missing:
        listed = ", ".join(f"{name!r:.60}" for name in missing[:5]) + (", ..." if len(missing) > 5 else "")
        what = f"{len(missing):,} of {len(names):,} {kind} are missing: {listed}"
        remedy = f"looked in {', '.join(map(str, folders))}"
        raise DataError(what, where=report.path, remedy=remedy, code=code)
    return folder


def _files_in(folder: Path) -> set[str]:
    """Names of the regular files of a folder, also by link; none if there is no such folder."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_file()}
    except (OSError, ValueError):  # ValueError: a name that the file system cannot have
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
    affected: str = "boxes affected; dropping them would raise AP",
) -> NDArray[np.int64]:
    """(N,) the index of each id in `known`, which ascends."""
    index = np.minimum(np.searchsorted(known, ids), len(known) - 1)
    strays = np.flatnonzero(known[index] != ids)
    if strays.size:
        row = int(strays[0])
        listed = ", ".join(map(str, known[:5].tolist())) + (", ..." if len(known) > 5 else "")
        what = f"{key} {ids[row]} is not in {table} ({listed})"
        remedy = f"{strays.size} of {ids.size} {affected}: correct the ids"
        raise report.error(code, what, *place(row), key, remedy=remedy)
    return index


def first_repeat(values: list) -> int | None:
    """The index of the first value that stands earlier in the list; None if all differ."""
    if len(set(values)) == len(values):
        return None
    seen: Counter = Counter()
    for k, value in enumerate(values):
        if seen[value]:
            return k
        seen[value] += 1
    return None


def shown(value: Any) -> str:
    """A short form for a message; integers of thousands of digits have none of their own."""
    return "a very large number" if isinstance(value, int) and abs(value) >= 10**30 else f"{value!r:.60}"
