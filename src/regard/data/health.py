"""What is wrong with a data set, before any training: annotations and every image. Nothing is changed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from regard.data.formats import CocoDataset, find_bad_images, open_detection
from regard.errors import DataError, escape


def check_folder(folder: Path) -> Iterator[str]:
    """Lines about both splits of a folder in COCO's layout; every image is decoded.

    Raises:
        DataError: at the end, if any image cannot be used; at once, if annotations cannot.
    """
    train = open_detection(folder, "train")
    val = open_detection(folder, "val", categories=train.categories)
    broken = 0
    for data in (train, val):
        objects = int(data.annotations.objects.is_target.sum())
        yield f"{data.split}: {len(data)} images, {objects} objects, {len(data.categories)} classes"
        if data.annotations.report.issues:
            yield str(data.annotations.report)
        for _, error in find_bad_images(data):
            broken += 1
            yield error.line
    yield from _repeated(train, val)
    if broken:
        what = f"{broken} of {len(train) + len(val)} images cannot be used"
        raise DataError(what, where=folder, remedy="replace or remove them")
    yield "every image can be read"


def _repeated(train: CocoDataset, val: CocoDataset) -> Iterator[str]:
    """Images of the same bytes in both splits: scores on them say little (I30)."""
    known = {_digest(train.image_folder / name): name for name in train.names}
    known.pop(None, None)
    both = [(known[digest], name) for name in val.names if (digest := _digest(val.image_folder / name)) in known]
    if both:
        first = f"{both[0][0]} = {both[0][1]}"
        yield escape(f"warn[I30]: {len(both)} validation images are training images too — first: {first}")


def _digest(path: Path) -> bytes | None:
    """None for files that cannot be read: decoding has told that already."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError:
        return None
