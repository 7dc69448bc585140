"""What ImageNet's data sets call their classes and images: WordNet ids, the numbers 0 to 999, labels of ReaL."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from regard.data.coco.json_file import read_json
from regard.data.report import Report
from regard.errors import DataError
from regard.structures.categories import Category

CLASSES = 1000
_VAL_IMAGE = re.compile(r"ILSVRC2012_val_([0-9]{8})(?![0-9])")


@cache
def wordnet_ids() -> tuple[str, ...]:
    """`n01440764` and so on, of the 1000 classes in the order that everybody counts them: they are sorted."""
    return tuple(Path(__file__).with_name("imagenet_wnids.txt").read_text(encoding="ascii").split())


def is_imagenet(folder: str | Path) -> bool:
    """Whether a folder has the training images of ImageNet: a folder for each of its classes."""
    train = Path(folder) / "train"
    return train.is_dir() and {path.name for path in train.iterdir()} >= set(wordnet_ids())


def imagenet_classes(categories: Sequence[Category], names: Sequence[str]) -> list[int] | None:
    """Which of ImageNet's classes, 0 to 999, each category is; None if they are not all of ImageNet.

    They are known by their WordNet ids (folders of ImageNet, -A and -R), by their names, or by their numbers if these
    are just 0 to 999 (folders of ImageNet-V2): a few numbers may be anything.

    Args:
        names: of the 1000 classes, as a model of ours has them.
    """
    found = [category.name for category in categories]
    for known in (wordnet_ids(), names):
        place = {name: index for index, name in enumerate(known)}
        if all(name in place for name in found):
            return [place[name] for name in found]
    if all(re.fullmatch("[0-9]{1,9}", name) for name in found):
        numbers = [int(name) for name in found]
        return numbers if sorted(numbers) == list(range(CLASSES)) else None
    return None


def read_real_labels(path: str | Path) -> list[list[int]]:
    """Labels of ReaL (Beyer et al. 2020), its `real.json`: all that each of ImageNet's validation images shows.

    The image `ILSVRC2012_val_00000001` has the first list; lists may be empty.

    Raises:
        DataError: no such file, not JSON, or anything but lists of numbers from 0 to 999 (A49).
    """
    path = Path(path)
    report = Report(path)
    document = read_json(path, report)
    remedy = "get real.json of google-research/reassessed-imagenet"
    if not isinstance(document, list) or not document:
        found = "an empty list" if document == [] else f"{type(document).__name__} at the top"
        raise report.error("A49", f"{found}, expected a list with a list of labels for each image", remedy=remedy)
    for number, labels in enumerate(document):
        if not isinstance(labels, list):
            what = f"{labels!r:.40}, expected the labels of an image as a list"
            raise report.error("A49", what, number, remedy=remedy)
        for place, label in enumerate(labels):
            if type(label) is not int or not 0 <= label < CLASSES:
                raise report.error("A49", f"label {label!r:.40}, expected 0 to 999", number, place, remedy=remedy)
    return document


def real_labels_of(paths: Sequence[str], labels: Sequence[list[int]], where: str | Path) -> list[list[int]]:
    """The labels of ReaL for images, found by the number in their names.

    Args:
        paths: of the images. labels: of all, as `read_real_labels` gives them. where: that file.

    Raises:
        DataError: an image is none of ImageNet's validation images, or is not among those that have labels.
    """
    found = []
    for path in paths:
        match = _VAL_IMAGE.search(re.split(r"[/\\]", path)[-1])
        if match is None:
            remedy = "ReaL is for ImageNet's validation images under their own names"
            raise DataError("not called ILSVRC2012_val_ and a number", where=path, remedy=remedy)
        number = int(match[1])
        if not 1 <= number <= len(labels):
            what = f"image {number} has no labels in {Path(where).name}, which is for {len(labels):,} images"
            raise DataError(what, where=path, remedy="use the file for all 50,000 images")
        found.append(labels[number - 1])
    return found
