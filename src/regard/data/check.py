"""What is wrong with a data set, before any training: annotations and every image. Nothing is changed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

from regard.data.class_images.dataset import ClassificationDataset, is_classification, open_classification
from regard.data.coco.dataset import CocoDataset, find_bad_images, has_detection, open_detection
from regard.data.coco.panoptic import PanopticDataset, find_bad_segments, has_panoptic, open_panoptic
from regard.errors import DataError, escape


def check_folder(folder: Path) -> Iterator[str]:
    """Lines about both splits of a folder, in COCO's layout or for classification; every image is decoded.

    Objects and segments are both checked where a folder has annotations of both.

    Raises:
        DataError: at the end, if any image cannot be used; at once, if annotations or classes cannot.
    """
    if is_classification(folder):
        return _check_classes(folder)
    if not has_panoptic(folder):
        return _check_objects(folder)
    if not has_detection(folder):
        return _check_segments(folder, images=True)
    return chain(_check_objects(folder), _check_segments(folder, images=False))


@contextmanager
def advise(folder: str | Path) -> Iterator[None]:
    """An image that cannot be used seldom is the only one: the error tells how to find them all."""
    try:
        yield
    except DataError as error:
        if not (error.code or "").startswith(("I", "A33")):
            raise
        remedy = f"{error.remedy}; find all such images: regard data check {folder}"
        raise DataError(error.what, where=error.where, remedy=remedy, code=error.code) from error


def _check_objects(folder: Path) -> Iterator[str]:
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
    yield _verdict(broken, len(train) + len(val), folder)


def _check_segments(folder: Path, images: bool) -> Iterator[str]:
    """Panoptic annotations; images: whether nobody else looks at the images."""
    train = open_panoptic(folder, "train")
    val = open_panoptic(folder, "val", categories=train.categories)
    broken = 0
    for data in (train, val):
        segments = len(data.annotations.segments.ids)
        stuff = sum(not category.is_thing for category in data.categories)
        kinds = f"{len(data.categories) - stuff} things and {stuff} stuff"
        yield f"panoptic {data.split}: {len(data)} images, {segments} segments, {kinds}"
        if data.annotations.report.issues:
            yield str(data.annotations.report)
        errors, note = find_bad_segments(data, images=images)
        yield from (error.line for error in errors)
        yield from [note] if note else []
        broken += len(errors)
    if images:
        yield from _repeated(train, val)
    if broken:
        what = f"{broken} of {len(train) + len(val)} panoptic images cannot be used"
        raise DataError(what, where=folder, remedy="correct PNG and JSON files")
    yield "every segment is where the annotations say"


def _check_classes(folder: Path) -> Iterator[str]:
    train, val = open_classification(folder, "train"), open_classification(folder, "val")
    broken = 0
    first: dict[bytes, tuple[str, str, str]] = {}  # split, class and path by the image's pixels
    twice: dict[str, list[str]] = {}
    told: set[str] = set()
    for data in (train, val):
        yield f"{data.split}: {len(data)} images, {len(data.categories)} classes"
        for issue in data.report.issues:
            if str(issue) not in told:  # how the data were split is a finding of both
                yield str(issue)
            told.add(str(issue))
        for path, label, found in _decoded(data):
            if isinstance(found, DataError):
                broken += 1
                yield found.line
                continue
            name = data.categories[label].name
            split, other, earlier = first.setdefault(found, (data.split, name, path))
            if other != name:
                twice.setdefault("warn[A48]: {} images are in two classes", []).append(f"{earlier} = {path}")
            elif split != data.split:
                what = "warn[I30]: {} validation images are training images too"
                twice.setdefault(what, []).append(f"{earlier} = {path}")
    for what, places in twice.items():
        yield escape(f"{what.format(len(places))} — first: {places[0]}")
    yield _verdict(broken, len(train) + len(val), folder)


def _decoded(data: ClassificationDataset) -> Iterator[tuple[str, int, bytes | DataError]]:
    """Path, label, and a digest of the pixels or why there are none."""

    def look(index: int) -> tuple[str, int, bytes | DataError]:
        path, label = data.images.path(index), int(data.labels[index])
        try:
            pixels = data.images.read(index)
        except DataError as error:
            return path, label, error
        size = repr(tuple(pixels.shape)).encode()
        return path, label, hashlib.sha256(size + pixels.contiguous().numpy().tobytes()).digest()

    with ThreadPoolExecutor(2) as pool:
        yield from pool.map(look, range(len(data)))


def _verdict(broken: int, count: int, folder: Path) -> str:
    if broken:
        what = f"{broken} of {count} images cannot be used"
        raise DataError(what, where=folder, remedy="replace or remove them")
    return "every image can be read"


def _repeated(train: CocoDataset | PanopticDataset, val: CocoDataset | PanopticDataset) -> Iterator[str]:
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
