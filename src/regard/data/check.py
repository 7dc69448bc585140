"""`regard data check`: check annotations and every image of a data set before training. Changes no file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

from regard.data.class_images.dataset import ClassificationDataset, is_classification, open_classification
from regard.data.coco.dataset import CocoDataset, find_bad_images, open_detection
from regard.data.coco.layout import has_panoptic
from regard.data.coco.panoptic import PanopticDataset, find_bad_segments, open_panoptic
from regard.data.formats.find import detection_splits, has_detection
from regard.errors import DataError, ImageError, escape


def check_folder(folder: Path) -> Iterator[str]:
    """Check both splits of a detection, panoptic or classification data set, and decode every image.

    Checks objects and segments where a folder has annotations of both.

    Yields:
        One line for each split, issue and bad image, and one line at the end.

    Raises:
        DataError: annotations or classes are wrong, or, at the end, an image cannot be used.
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
    """Add to an `ImageError` how to find all bad images of the data set: one bad image is seldom the only one."""
    try:
        yield
    except ImageError as error:
        remedy = f"{error.remedy}; find all such images: regard data check {folder}"
        raise ImageError(error.what, where=error.where, remedy=remedy, code=error.code) from error


def _check_objects(folder: Path) -> Iterator[str]:
    splits = [open_detection(folder, split) for split in detection_splits(folder)[:1]]
    if splits[0].split == "train":
        splits.append(open_detection(folder, "val", categories=splits[0].categories))
    bad_images = 0
    for data in splits:
        objects = int(data.annotations.objects.is_target.sum())
        yield f"{data.split}: {len(data)} images, {objects} objects, {len(data.categories)} classes"
        if data.annotations.report.issues:
            yield str(data.annotations.report)
        for error in find_bad_images(data):
            bad_images += 1
            yield error.line
    if len(splits) == 2:
        yield from _repeated_images(*splits)
    yield _verdict(bad_images, sum(map(len, splits)), folder)


def _check_segments(folder: Path, images: bool) -> Iterator[str]:
    """Check panoptic annotations, and decode the images if `images`."""
    train = open_panoptic(folder, "train")
    val = open_panoptic(folder, "val", categories=train.categories)
    bad_images = 0
    for data in (train, val):
        segments = len(data.annotations.segments.ids)
        stuff = sum(not category.is_thing for category in data.categories)
        classes = f"{len(data.categories) - stuff} thing and {stuff} stuff classes"
        yield f"panoptic {data.split}: {len(data)} images, {segments} segments, {classes}"
        if data.annotations.report.issues:
            yield str(data.annotations.report)
        errors, warning = find_bad_segments(data, images=images)
        yield from (error.line for error in errors)
        if warning:
            yield warning
        bad_images += len(errors)
    if images:
        yield from _repeated_images(train, val)
    if bad_images:
        what = f"{bad_images} of {len(train) + len(val)} panoptic images cannot be used"
        raise DataError(what, where=folder, remedy="correct the PNG and JSON files listed above")
    yield "all segments match their annotations"


def _check_classes(folder: Path) -> Iterator[str]:
    train, val = open_classification(folder, "train"), open_classification(folder, "val")
    bad_images = 0
    first: dict[bytes, tuple[str, str, str]] = {}  # digest of the pixels -> split, class and path of the first image
    repeats: dict[str, list[str]] = {}
    issues: set[str] = set()
    for data in (train, val):
        yield f"{data.split}: {len(data)} images, {len(data.categories)} classes"
        for issue in map(str, data.report.issues):
            if issue not in issues:  # both splits report how the folder was split
                yield issue
            issues.add(issue)
        for path, label, digest in _digests(data):
            if isinstance(digest, DataError):
                bad_images += 1
                yield digest.line
                continue
            name = data.categories[label].name
            split, other, earlier = first.setdefault(digest, (data.split, name, path))
            if other != name:
                repeats.setdefault("warn[A48]: {} images are in two classes", []).append(f"{earlier} = {path}")
            elif split != data.split:
                what = "warn[I30]: {} validation images are training images too"
                repeats.setdefault(what, []).append(f"{earlier} = {path}")
    for what, pairs in repeats.items():
        yield escape(f"{what.format(len(pairs))} — first: {pairs[0]}")
    yield _verdict(bad_images, len(train) + len(val), folder)


def _digests(data: ClassificationDataset) -> Iterator[tuple[str, int, bytes | DataError]]:
    """Yield path, label, and the digest of the pixels or the error, of every image."""

    def digest_of(index: int) -> tuple[str, int, bytes | DataError]:
        path, label = data.images.path(index), int(data.labels[index])
        try:
            pixels = data.images.read(index)
        except DataError as error:
            return path, label, error
        size = repr(tuple(pixels.shape)).encode()
        return path, label, hashlib.sha256(size + pixels.contiguous().numpy().tobytes()).digest()

    with ThreadPoolExecutor(2) as pool:
        yield from pool.map(digest_of, range(len(data)))


def _verdict(bad_images: int, count: int, folder: Path) -> str:
    if bad_images:
        what = f"{bad_images} of {count} images cannot be used"
        raise DataError(what, where=folder, remedy="replace or remove the images listed above")
    return "every image can be read"


def _repeated_images(train: CocoDataset | PanopticDataset, val: CocoDataset | PanopticDataset) -> Iterator[str]:
    """Warn about files of the same bytes in both splits (I30): scores on them say little."""
    known = {_file_digest(train.image_folder / name): name for name in train.names}
    known.pop(None, None)
    digests = ((name, _file_digest(val.image_folder / name)) for name in val.names)
    pairs = [f"{known[digest]} = {name}" for name, digest in digests if digest in known]
    if pairs:
        yield escape(f"warn[I30]: {len(pairs)} validation images are training images too — first: {pairs[0]}")


def _file_digest(path: Path) -> bytes | None:
    """Return the digest of a file, None if it cannot be read: decoding has reported that already."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError:
        return None
