"""Writes detection data in another format: COCO or YOLO. Images are linked, or copied where links cannot be made."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from regard.data.coco.json_file import read_json
from regard.data.formats.find import SplitTables, detection_splits, read_split
from regard.data.formats.tables import Document
from regard.data.formats.yolo_writer import Lost, write_yolo
from regard.data.report import Report
from regard.data.splits import Split
from regard.errors import ConfigError, MachineError, counted
from regard.safe_files import check_folder_name, is_used

Target = Literal["coco", "yolo"]


def convert(path: Path, to: Target, output: Path) -> list[str]:
    """Write the data of a folder in another format.

    COCO keeps everything that the source has. YOLO has no crowds and no masks of run lengths: objects with such masks
    keep their boxes, crowds are left out. Data without a validation split are written with the split that training
    would use.

    Args:
        path: a folder or file of detection data, see `open_detection`. Is not changed.
        to: `coco` (`train/`, `val/`, `annotations/instances_train.json`) or `yolo` (`images/train/`, `labels/train/`,
            `data.yaml`).
        output: the folder to make; complete or absent.

    Returns:
        Lines for the user: what was written, and what YOLO cannot hold.

    Raises:
        ConfigError: the output is used (C11), or is inside the source or around it (C09).
        DataError: the data are wrong.
        MachineError: files cannot be written (T06).
    """
    _check_output(path, output)
    splits = {split: read_split(path, split) for split in detection_splits(path)}
    work = output.absolute().with_name(f".{output.absolute().name}.tmp-{uuid.uuid4().hex}")
    try:
        work.mkdir(parents=True)
        if to == "coco":
            lost = Lost()
            for split, tables in splits.items():
                _write_coco(tables, split, work)
        else:
            lost = write_yolo(splits, work, place_image)
        if output.is_dir():
            output.rmdir()
        work.rename(output)
    except OSError as error:
        what = f"cannot be written: {error.strerror or error}"
        raise MachineError(what, where=output, remedy="name another folder", code="T06") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    counts = [_counts(split, tables) for split, tables in splits.items()]
    notes = [str(issue) for tables in splits.values() for issue in tables.annotations.report.issues]
    return [*dict.fromkeys(notes), *counts, *lost.lines()]


def place_image(source: Path, target: Path) -> None:
    """Make `target` a hard link to an image, or a copy where links cannot be made. A link never leads to a link."""
    target.parent.mkdir(parents=True, exist_ok=True)
    source = source.resolve()
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def document_of(tables: SplitTables) -> Document:
    """Return the rows of the document that belong to the split, with all that the file says of them."""
    path = tables.annotations.path
    document = read_json(path, Report(path)) if tables.format == "COCO" else tables.document
    ids = {image.id for image in tables.annotations.images}
    images = [row for row in document["images"] if row["id"] in ids]
    rows = [row for row in document["annotations"] if row["image_id"] in ids]
    return {**document, "images": images, "annotations": rows}


def _write_coco(tables: SplitTables, split: Split, output: Path) -> None:
    annotations = tables.annotations
    folder = annotations.image_folder
    assert folder is not None
    stated = {image.id: image for image in annotations.images}
    rows = document_of(tables)
    images: list[dict[str, Any]] = []
    for row in rows["images"]:
        record = stated[row["id"]]
        images.append({**row, "height": record.height, "width": record.width})
        target = output / split / record.file_name
        if not target.exists():  # an image may be listed twice
            place_image(folder / record.file_name, target)
    _write_json(output / "annotations" / f"instances_{split}.json", {**rows, "images": images})


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def _check_output(path: Path, output: Path) -> None:
    check_folder_name(output)
    if is_used(output):
        raise ConfigError("the output exists already", where=output, remedy="name a new folder", code="C11")
    source = (path.parent if path.is_file() else path).resolve()
    target = output.resolve()
    if target.is_relative_to(source) or source.is_relative_to(target):
        remedy = f"name a folder beside it: --output {source.parent / f'{source.name}_converted'}"
        raise ConfigError("the output is inside the data, or around them", where=output, remedy=remedy, code="C09")


def _counts(split: Split, tables: SplitTables) -> str:
    annotations = tables.annotations
    images, objects = counted(len(annotations.images), "image"), counted(len(annotations.objects.labels), "object")
    return f"{split}: {images}, {objects}, {counted(len(annotations.categories), 'class', 'classes')}"
