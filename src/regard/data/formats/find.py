"""Finds out in which format a folder has detection data, and reads one split of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from regard.data.coco.annotations import CocoAnnotations, check_tables, select_images
from regard.data.coco.layout import CocoFiles
from regard.data.coco.tables import collector_paused, group_names
from regard.data.formats.csv_boxes import CsvBoxes
from regard.data.formats.held_out import split_by_content
from regard.data.formats.tables import DetectionTables, Document, Source
from regard.data.formats.voc import VocFiles
from regard.data.formats.yolo import YoloFiles
from regard.data.image_folders import SUFFIXES
from regard.data.paths import WITH_BOXES, check_folder
from regard.data.report import folder_entries
from regard.data.splits import SPLIT_NAMES, Part, Split, missing_split, spellings
from regard.errors import DataError

_SPLIT_FOLDERS = frozenset(name for split in SPLIT_NAMES for name in spellings(split))
_LOOKED = (
    "COCO (annotations/instances_train.json, train/_annotations.coco.json, train/labels.json, result.json), "
    "YOLO (data.yaml, images/train and labels/train), Pascal VOC (Annotations/*.xml), CSV (train.csv with boxes)"
)


@dataclass(frozen=True)
class SplitTables:
    """One split: its checked annotations, and the COCO document that they were made from.

    Where the split is a part of `document`, `annotations.images` has the images that belong to it.
    """

    annotations: CocoAnnotations
    document: Document
    format: str


def find_source(path: Path) -> Source | None:
    """Return the detection data of a folder or file, None if there are none.

    Raises:
        DataError: the folder is of a known format, but what says so is wrong, such as a `data.yaml`.
    """
    finders = (CocoFiles.find, YoloFiles.find, VocFiles.find, CsvBoxes.find, CocoFiles.find_any)
    return next((source for find in finders if (source := find(path)) is not None), None)


def has_detection(path: str | Path) -> bool:
    """Return whether a folder or file has annotations of objects in any format, even if they are wrong."""
    return detection_format(path) is not None


def detection_format(path: str | Path) -> str | None:
    """Return the name of the format of detection data, None if there are none."""
    try:
        source = find_source(Path(path))
    except DataError:
        return "detection data"  # of a known format, with a mistake
    return None if source is None else source.format


def detection_splits(path: str | Path) -> tuple[Split, ...]:
    """Return the splits that can be opened: both, or `val` alone.

    Raises:
        DataError: no detection data (A64).
    """
    parts = _source(Path(path)).parts
    return ("val",) if set(parts) == {"val"} else ("train", "val")


def has_own_validation(path: str | Path) -> bool:
    """Return whether detection data have a validation split of their own."""
    return "val" in _source(Path(path)).parts


def read_split(path: Path, split: Split, faults: list[DataError] | None = None) -> SplitTables:
    """Read and check one split. Data without a validation split are split by the content of their images.

    faults: gets errors as far as the rest can be read; others become issues of the report of the result. Data with
    faults are not split. None to raise the first.

    Raises:
        DataError: no format fits (A64), the split is missing, or annotations are wrong.
    """
    source = _source(path)
    parts: Mapping[Part, object] = source.parts
    if split in parts and (split == "val" or "val" in parts):
        return _whole(source, split, faults)
    if "val" in parts:
        raise missing_split(split, _shown(parts, path), path, "its annotations")
    found = _whole(source, "all" if "all" in parts else "train", faults)
    annotations = found.annotations
    if faults or annotations.report.errors:
        return found
    folder = annotations.image_folder
    assert folder is not None
    files = [folder / image.file_name for image in annotations.images]
    chosen, report = split_by_content(files, split, annotations.report)
    return replace(found, annotations=select_images(annotations, chosen, report))


def _whole(source: Source, part: Part, faults: list[DataError] | None) -> SplitTables:
    """Read and check all images of a part."""
    with collector_paused():
        tables = source.tables(part, faults)
        used = _groups_used_elsewhere(source, part, tables.document)
        annotations = check_tables(tables.document, tables.image_folders, tables.report, used)
    for code, severity, what, place, count in tables.notes:
        tables.report.add_at(code, severity, what, place, count)
    return SplitTables(replace(annotations, tables_digest=_digest(tables)), tables.document, source.format)


def _groups_used_elsewhere(source: Source, part: Part, document: object) -> set[str]:
    """Return the names of categories that only group others here, but have objects in another part."""
    if source.format != "COCO" or not group_names(document, with_objects=False):
        return set()
    names: set[str] = set()
    for other in source.parts:
        if other != part:
            with suppress(DataError):  # opening that part says why
                names |= group_names(source.tables(other).document, with_objects=True)
    return names


def _digest(tables: DetectionTables) -> bytes | None:
    if tables.is_file:
        return None
    return hashlib.sha256(json.dumps(tables.document, sort_keys=True).encode("utf-8", "surrogatepass")).digest()


def _source(path: Path) -> Source:
    source = find_source(path)
    if source is None:
        raise _no_detection(path)
    return source


def _shown(parts: Mapping[Part, object], root: Path) -> dict[Part, str]:
    """Return the parts as messages show them: paths below the folder."""
    return {part: str(place).removeprefix(f"{root}/") for part, place in parts.items()}


def _no_detection(path: Path) -> DataError:
    if path.is_file():
        what = "not a file of detection data: COCO's .json, YOLO's .yaml or a .csv with columns of boxes"
        return DataError(what, where=path, remedy="name the folder of the data", code="A64")
    check_folder(path, WITH_BOXES)
    what = f"no detection data; looked for {_LOOKED}; found {folder_entries(path)}"
    return DataError(what, where=path, remedy=_hint(path), code="A64")


def _hint(root: Path) -> str | None:
    """Return what the folder seems to be."""
    for folder in (root / "train", root):
        inside = [entry for entry in folder.iterdir() if entry.name[0] != "."] if folder.is_dir() else []
        are_splits = all(entry.name in _SPLIT_FOLDERS for entry in inside)
        if inside and not are_splits and all(entry.is_dir() for entry in inside):
            return "this looks like images in class folders, which are for classification; detection needs boxes"
    if any(root.glob("*.csv")):
        return "a CSV file of boxes needs a first line such as filename,xmin,ymin,xmax,ymax,class"
    if any(entry.suffix.lower() in SUFFIXES for entry in root.iterdir()):
        return "detection needs boxes: add the annotations beside the images"
    return None
