"""Names of classes and images in ImageNet's data sets: WordNet ids, numbers 0 to 999, labels of ReaL."""

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
    """Return the WordNet ids of the 1000 classes in the usual, sorted order: `n01440764` is class 0."""
    return tuple(Path(__file__).with_name("imagenet_wnids.txt").read_text(encoding="ascii").split())


def is_imagenet(folder: str | Path) -> bool:
    """Return whether a folder has ImageNet's training images: a `train` folder with a folder for each class."""
    train = Path(folder) / "train"
    return train.is_dir() and {path.name for path in train.iterdir()} >= set(wordnet_ids())


def imagenet_classes(categories: Sequence[Category], names: Sequence[str]) -> list[int] | None:
    """Return the ImageNet class, 0 to 999, of each category. None if any category is not of ImageNet.

    Categories are recognised by WordNet ids (folders of ImageNet, -A and -R), by names, or by numbers if these are
    exactly 0 to 999 (folders of ImageNet-V2). Fewer numbers could mean anything.

    Args:
        names: of the 1000 classes, as our models have them.
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
    """Read the `real.json` of ReaL (Beyer et al. 2020): all classes that each ImageNet validation image shows.

    Returns:
        A list of labels 0..999 for each image, maybe empty. The first is of `ILSVRC2012_val_00000001`.

    Raises:
        DataError: no such file, not JSON, or not lists of numbers from 0 to 999 (A49).
    """
    path = Path(path)
    report = Report(path)
    document = read_json(path, report)
    remedy = "get real.json from google-research/reassessed-imagenet"
    if not isinstance(document, list) or not document:
        found = "an empty list" if document == [] else f"a {type(document).__name__}"
        raise report.error("A49", f"found {found}, expected a list with a list of labels for each image", remedy=remedy)
    for number, labels in enumerate(document):
        if not isinstance(labels, list):
            what = f"found {labels!r:.40}, expected a list of labels"
            raise report.error("A49", what, number, remedy=remedy)
        for place, label in enumerate(labels):
            if type(label) is not int or not 0 <= label < CLASSES:
                raise report.error("A49", f"label {label!r:.40}, expected 0 to 999", number, place, remedy=remedy)
    return document


def real_labels_of(paths: Sequence[str], labels: Sequence[list[int]], where: str | Path) -> list[list[int]]:
    """Return the ReaL labels of some images, found by the number in their names.

    Args:
        paths: of the images.
        labels: of all validation images, see `read_real_labels`.
        where: the file of the labels, for errors.

    Raises:
        DataError: an image that is not an ImageNet validation image, or that has no labels in the file.
    """
    found = []
    for path in paths:
        match = _VAL_IMAGE.search(re.split(r"[/\\]", path)[-1])
        if match is None:
            remedy = "ReaL needs ImageNet's validation images under their original names"
            raise DataError("expected a name like ILSVRC2012_val_00000001", where=path, remedy=remedy)
        number = int(match[1])
        if not 1 <= number <= len(labels):
            what = f"image {number} has no labels in {Path(where).name}, which has {len(labels):,} images"
            raise DataError(what, where=path, remedy="use the file for all 50,000 images")
        found.append(labels[number - 1])
    return found
