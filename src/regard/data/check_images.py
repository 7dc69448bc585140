"""What `regard data check` looks for in the images of a data set, besides files that cannot be decoded."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from regard.data.class_images.dataset import ClassificationDataset
from regard.data.coco.annotated_images import AnnotatedImages
from regard.data.duplicates import Sketch, near_pairs, sketch
from regard.data.images import read_turned
from regard.data.report import Issue
from regard.errors import HAS, IS, WAS, DataError, counted

_MIN_SIDE = 8  # pixels; handwritten digits have 8


@dataclass(frozen=True)
class Look:
    """What is kept of an image.

    Args:
        path: as it is shown.
        size: (height, width) in pixels, None if it could not be decoded.
        orientation: EXIF orientation, 1..8.
        digest: of the bytes of the file, or of the pixels of an image with a class; None if they cannot be read.
        label: the name of the class of an image that has one.
    """

    path: str
    size: tuple[int, int] | None = None
    orientation: int = 1
    digest: bytes | None = None
    sketch: Sketch | None = None
    label: str = ""
    error: DataError | None = None


def look_at(data: AnnotatedImages[Any] | ClassificationDataset) -> list[Look]:
    """Decode every image. Images whose files are known to be missing are left out of the work, not of the result."""
    look: Callable[[int], Look]
    if isinstance(data, ClassificationDataset):
        look = partial(_look_at_class, data)
    else:
        look = partial(_look_at_annotated, data)
    with ThreadPoolExecutor(max(2, data.at_once if isinstance(data, ClassificationDataset) else 1)) as pool:
        return list(pool.map(look, range(len(data))))


def _look_at_annotated(data: AnnotatedImages[Any], index: int) -> Look:
    record = data.annotations.images[index]
    path = data.image_folder / record.file_name
    if not record.file_name:
        return Look("")  # reported already
    try:
        # Without a size in the annotations there is nothing to compare.
        image, orientation = data.read(index) if record.height else read_turned(path)
    except DataError as error:
        return Look(str(path), digest=_file_digest(path), error=error)
    return Look(str(path), _size(image), orientation, _file_digest(path), sketch(image))


def _look_at_class(data: ClassificationDataset, index: int) -> Look:
    path, label = data.images.path(index), data.categories[int(data.labels[index])].name
    try:
        image = data.images.read(index)
    except DataError as error:
        return Look(path, label=label, error=error)
    size = _size(image)
    digest = hashlib.sha256(repr((3, *size)).encode() + image.contiguous().numpy().tobytes()).digest()
    return Look(path, size, 1, digest, sketch(image), label)


def _size(image: Tensor) -> tuple[int, int]:
    return int(image.shape[-2]), int(image.shape[-1])


def _file_digest(path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError:
        return None


def check_sizes(looks: Sequence[Look], split: str) -> Iterator[Issue]:
    """Warn of images of a few pixels (I24)."""
    small = [look for look in looks if look.size and min(look.size) < _MIN_SIDE]
    if small:
        what = f"{counted(len(small), f'{split} image', verb=HAS)} a side below {_MIN_SIDE} pixels"
        yield _issue("I24", "warn", what, [look.path for look in small])


def check_rotation(data: AnnotatedImages[Any], looks: Sequence[Look], folder: Path) -> Iterator[Issue]:
    """Tell what is done about images that EXIF turns (I22): boxes may have been drawn before that.

    folder: the data set, for the remedy.
    """
    stored: list[str] = []
    displayed: list[str] = []
    unclear: list[str] = []
    for look, record in zip(looks, data.annotations.images, strict=True):
        if look.size is None or look.orientation == 1 or not record.height:
            continue
        # `size` is that of the pixels as they are used.
        if look.orientation < 5 or look.size[0] == look.size[1]:
            unclear.append(look.path)
        else:
            (stored if data.turns_back(record) else displayed).append(look.path)
    if stored:
        what = f"{counted(len(stored), 'image', verb=WAS)} annotated before EXIF rotation: used unrotated"
        yield _issue("I22", "fix", what, stored)
    if unclear and data.are_stored:
        count = counted(len(unclear), "image", verb=IS)
        what = f"{count} turned by EXIF without a change of size: used unrotated, as others prove"
        yield _issue("I22", "fix", what, unclear)
    if unclear and not data.are_stored and (stored or not displayed):
        count = counted(len(unclear), "image", verb=IS)
        what = f"{count} turned by EXIF without a change of size: boxes may be off"
        yield _issue("I22", "warn", what, unclear, f"look at their boxes: regard data show {folder}")
    if stored and displayed:
        what = f"{counted(len(displayed), 'image', verb=WAS)} annotated after EXIF rotation, others before it"
        yield _issue("I22", "warn", what, displayed)


def repeated_images(splits: Sequence[Sequence[Look]]) -> list[Issue]:
    """Warn of the same image twice: in one split (A29, I30), in two classes (A48), or in both splits (I30).

    splits: training first. Scores on images that were trained on say little.
    """
    issues: list[Issue] = []
    first: dict[bytes, tuple[int, Look]] = {}
    listed: list[str] = []
    kinds: dict[str, list[str]] = {"classes": [], "split": [], "splits": []}
    again: set[int] = set()
    for number, looks in enumerate(splits):
        seen: set[str] = set()
        for look in looks:
            path = look.path and os.path.normpath(look.path)  # `a/../b.png` is `b.png`
            is_listed_twice = bool(path) and path in seen
            seen.add(path)
            if is_listed_twice:
                listed.append(look.path)
            elif look.digest is not None:
                other, earlier = first.setdefault(look.digest, (number, look))
                if earlier is look:
                    continue
                again.add(id(look))
                kind = "classes" if earlier.label != look.label else "split" if other == number else "splits"
                kinds[kind].append(f"{earlier.path} = {look.path}")
    if listed:
        count = counted(len(listed), "image", verb=IS)
        what = f"{count} listed again under another id: objects of one entry are background in another"
        issues.append(_issue("A29", "warn", what, listed, "give each file one id, and its objects that id"))
    texts = (
        ("classes", "A48", "image", "in two classes"),
        ("splits", "I30", "validation image", "among the training images too"),
        ("split", "I30", "image", "in the same split twice"),
    )
    for kind, code, noun, where in texts:
        if kinds[kind]:
            what = f"{counted(len(kinds[kind]), noun, verb=IS)} {where}"
            issues.append(_issue(code, "warn", what, kinds[kind]))
    if len(splits) == 2:
        sketches = [[None if id(look) in again else look.sketch for look in looks] for looks in splits]
        near = [f"{splits[0][a].path} ~ {splits[1][b].path}" for a, b in near_pairs(*sketches)]
        if near:
            count = counted(len(near), "validation image", verb=("looks", "look"))
            what = f"{count} almost like a training image"
            issues.append(_issue("I30", "warn", what, near))
    return issues


def _issue(code: str, severity: Any, what: str, places: Sequence[str], remedy: str | None = None) -> Issue:
    return Issue(code, severity, what, places[0], len(places), tuple(places[1:]), remedy)
