"""Recognise the files that `regard predict` wrote: these may be replaced, no others."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from regard.data.videos import DRAWN_BY, comment_of
from regard.drawing.boxes import SOFTWARE
from regard.prediction.parquet import is_table

DESCRIPTION = "segments predicted with regard predict"  # under `info` of our panoptic files
_DETECTION = {"image_id", "category_id", "bbox", "score", "file_name"}
_CLASSES = {"file_name", "classes"}
_SEGMENTS = {"info", "images", "annotations", "categories"}
_OF_VIDEOS = {"frame", "seconds"}


def result_text(rows: Sequence[dict[str, Any]]) -> str:
    """Return detections or classes as a JSON list with a row on each line.

    The list without rows has two lines, which tells it from an empty list of another program.
    """
    return "[\n" + ",\n".join(json.dumps(row) for row in rows) + ("\n]\n" if rows else "]\n")


def is_result(path: Path) -> bool:
    """Return whether a file holds what `regard predict` writes: detections, classes or segments, and nothing else."""
    if is_table(path):
        return True
    try:
        text = path.read_text() if path.is_file() else ""  # reading a pipe would block
        content = json.loads(text)
    except (OSError, ValueError, RecursionError):
        return False
    if isinstance(content, dict):
        ours = content.get("info") == {"description": DESCRIPTION} and set(content) == _SEGMENTS
        return ours and all(isinstance(content[name], list) for name in _SEGMENTS - {"info"})
    if content == []:
        return text == result_text([])
    return isinstance(content, list) and all(isinstance(row, dict) and _is_row(row) for row in content)


def is_drawn(path: Path) -> bool:
    """Return whether a picture or video was drawn by `regard predict`, which says so in it."""
    if not path.is_file():
        return False
    if path.suffix.lower() == ".mp4":
        return comment_of(path) == DRAWN_BY
    try:
        with Image.open(path) as image:
            return image.getexif().get(SOFTWARE) == DRAWN_BY
    except (OSError, ValueError, SyntaxError):  # Pillow raises all three for files that are no images
        return False


def _is_row(row: dict[str, Any]) -> bool:
    columns = set(row) - _OF_VIDEOS
    if columns == _CLASSES:
        return isinstance(row["classes"], list)
    return columns - {"segmentation"} == _DETECTION


def png_names(path: Path) -> set[str]:
    """Return the names of the PNG files of an earlier panoptic result, none of them outside its folder."""
    if not path.is_file() or not isinstance(content := json.loads(path.read_text()), dict):
        return set()
    names = {row.get("file_name") for row in content.get("annotations", []) if isinstance(row, dict)}
    return {name for name in names if isinstance(name, str) and name.endswith(".png") and Path(name).name == name}
