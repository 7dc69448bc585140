"""A validation split for data that have none: a fifth of the images, chosen by their content.

The choice depends on the bytes of each image alone. It is the same on every machine, stays the same when images are
renamed, added or removed, and keeps images of the same bytes together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from regard.data.paths import open_file
from regard.data.report import Report
from regard.data.splits import Split
from regard.errors import IS, counted

VAL_SHARE = 0.2


def choose_validation(files: Sequence[Path]) -> list[bool]:
    """Return whether each image is for validation; none is if all images are the same.

    An image is if the first 64 bits of its sha256, as a fraction of 2**64, are below `VAL_SHARE`. Where that is true of
    no image, the lowest is taken; where it is true of all, the highest is left for training.

    Raises:
        ImageError: a file cannot be read.
    """
    places = [_place(file) for file in files]
    if len(set(places)) == 1:
        return [False] * len(places)
    chosen = [place < VAL_SHARE for place in places]
    if not any(chosen):
        return [place == min(places) for place in places]
    return [place != max(places) for place in places] if all(chosen) else chosen


def split_by_content(files: Sequence[Path], split: Split, report: Report) -> tuple[list[int], Report]:
    """Return the indices of the images of a split, ascending, and the report of the split, which tells of it.

    Args:
        files: all images.
        split: all images are in both where all are the same.
        report: of all images; its issues stay those of `train`.

    Raises:
        ImageError: a file cannot be read.
    """
    for_validation = choose_validation(files)
    if split == "val":
        report = Report(report.path, report.places)
    if not any(for_validation):
        what = "no validation split, and all images are the same: used for training and validation"
        report.add("A61", "warn", what)
        return list(range(len(files))), report
    count = counted(sum(for_validation), "image", of=len(for_validation), verb=IS)
    report.add("A61", "note", f"no validation split: {count} used for it, chosen by content")
    return [index for index, is_val in enumerate(for_validation) if is_val == (split == "val")], report


def _place(file: Path) -> float:
    """Return the place of an image in 0..1."""
    open_file(file).close()  # refuses what is not a regular file
    status = file.stat()
    return _hash(file, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=1 << 20)
def _hash(file: Path, size: int, changed: int) -> float:
    """Hash the bytes of a file. Both splits are opened one after the other: each file is read once."""
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").digest()
    return int.from_bytes(digest[:8]) / 2**64
