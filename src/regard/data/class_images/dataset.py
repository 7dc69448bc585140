"""Images with one class each: which layout the data have is found out, not asked."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regard.data.class_images.csv_lists import ClassLists
from regard.data.class_images.folders import ClassFolders, SplitFolders, looks_like_coco
from regard.data.class_images.listing import SPLIT_NAMES, Images, Layout, Split
from regard.data.class_images.shards import Shards
from regard.data.generated.words import WORDS, generated_folder
from regard.data.paths import check_folder
from regard.data.report import Report
from regard.data.samples import ClassSample
from regard.errors import ConfigError, DataError
from regard.structures.categories import Category

_LOOKED = "train/CLASS/*.jpg and val/CLASS/*.jpg, CLASS/*.jpg, train-*.tar[.gz], train.csv"


class ClassificationDataset:
    """Images with one class each; `dataset[i]` decodes image i into a `ClassSample`.

    Holds no open files and can be sent to the workers of a data loader.

    Attributes:
        categories: what labels index.
        labels: (N,) int64, the label of every image.
        report: what is worth a line to the user, such as how the data were split.
    """

    def __init__(
        self,
        images: Images,
        labels: NDArray[np.int64],
        categories: tuple[Category, ...],
        split: Split,
        report: Report,
    ) -> None:
        self.images = images
        self.labels = torch.from_numpy(labels)
        self.categories = categories
        self.split = split
        self.report = report

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> ClassSample:
        """Raises DataError, with the path and what is wrong, for an image that cannot be read."""
        return ClassSample(self.images.read(index), int(self.labels[index]), self.images.path(index))

    def subset(self, count: int) -> ClassificationDataset:
        """So many images, as evenly from all classes as can be; always the same ones, by the hash of their names.

        Raises:
            DataError: there are fewer images, or more classes.
        """
        if not len(self.categories) <= count <= len(self):
            what = f"{count} of {len(self)} images in {len(self.categories)} classes are asked for"
            raise DataError(what, remedy=f"ask for {len(self.categories)} to {len(self)}")
        hashes = [_hash(self.images.identity(index)) for index in range(len(self))]
        of_class: dict[int, list[int]] = {}
        for index in sorted(range(len(self)), key=hashes.__getitem__):
            of_class.setdefault(int(self.labels[index]), []).append(index)
        # The first of every class, then the second of every class, and so on.
        ranked = sorted(
            (rank, label, index) for label, members in of_class.items() for rank, index in enumerate(members)
        )
        chosen = sorted(index for _, _, index in ranked[:count])
        return ClassificationDataset(
            _Chosen(self.images, chosen), self.labels[chosen].numpy(), self.categories, self.split, self.report
        )

    def counts(self) -> list[int]:
        """Images of each class."""
        return torch.bincount(self.labels, minlength=len(self.categories)).tolist()

    def fingerprint(self) -> str:
        """sha256 of the class names and of the images' names, sizes in bytes and labels; no image is decoded."""
        digest = hashlib.sha256(
            "\0".join(category.name for category in self.categories).encode("utf-8", "surrogatepass")
        )
        for index, label in enumerate(self.labels.tolist()):
            digest.update(f"\0{self.images.identity(index)}\0{label}".encode("utf-8", "surrogatepass"))
        return digest.hexdigest()


@dataclass(frozen=True)
class _Chosen:
    """Some of the images."""

    images: Images
    chosen: list[int]

    def __len__(self) -> int:
        return len(self.chosen)

    def read(self, index: int) -> Tensor:
        return self.images.read(self.chosen[index])

    def path(self, index: int) -> str:
        return self.images.path(self.chosen[index])

    def identity(self, index: int) -> str:
        return self.images.identity(self.chosen[index])


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def open_classification(root: str | Path, split: Split = "train", *, all_images: bool = False) -> ClassificationDataset:
    """Open one split of a classification data set.

    Labels follow the natural order of the class names (`2` before `10`), or the lines of a `labels.txt`; those of
    `val` are those of `train` wherever there is a `train`.

    Args:
        root: a folder with `train/CLASS/*` and `val/CLASS/*`; class folders alone, of which a fixed fifth is kept
            for validation; shards `train-0000.tar` or `.tar.gz`; lists `train.csv` and `val.csv` with the columns
            path and label. Or a word: `digits` (scikit-learn's handwritten digits), `shapes` or
            `shapes:size=32,classes=6` (generated, one shape each). `./digits` is a folder of that name.
        split: `val` also finds what is called `valid`, `validation` or `test`, in this order.
        all_images: class folders alone are a test set: all of their images are for validation.

    Raises:
        ConfigError: `all_images` for data with splits of their own.
        DataError: no layout fits (A48), the split is not there, or its images or classes are wrong: a class that
            training does not know, a class or a split without images (A48), a single class (A45), a wrong row of a
            list (A49).
    """
    if split not in SPLIT_NAMES:
        raise DataError(f"split {split!r}, expected train or val", where=root)
    word = str(root)
    root = generated_folder(word) if word.partition(":")[0] in WORDS else Path(root)
    layout = _find_layout(root)
    if all_images:
        if not isinstance(layout, ClassFolders):
            what = f"all images are asked for, but there are splits: {', '.join(sorted(layout.splits.values()))}"
            remedy = "leave all_images out, or name the folder with the class folders"
            raise ConfigError(what, where=root, remedy=remedy, code="C09")
        layout = replace(layout, whole=True)
    if split not in layout.splits:
        there = ", ".join(f"{name} ({place})" for name, place in layout.splits.items())
        looked = " or ".join(SPLIT_NAMES[split])
        raise DataError(f"there is no split {looked}; present: {there}", where=root, remedy="add its images")
    names = layout.class_names("train" if "train" in layout.splits else "val")
    if split == "train" and len(names) < 2:
        what = f"one class only, {names[0]!r:.40}" if names else "no classes"
        raise DataError(what, where=root / layout.splits[split], remedy="there must be two to tell apart", code="A45")
    return _dataset(layout, split, names, root)


def is_classification(root: Path) -> bool:
    """Whether a folder is laid out for classification; what is wrong with its images or classes does not count."""
    try:
        return not looks_like_coco(root) and bool(_find_layout(root))
    except DataError as error:
        return error.code != "A48" and root.is_dir()


def _dataset(layout: Layout, split: Split, names: tuple[str, ...], root: Path) -> ClassificationDataset:
    listing = layout.listing(split)
    where = root / layout.splits[split]
    label_of = {name: label for label, name in enumerate(names)}
    for index, name in enumerate(listing.class_names):
        if name not in label_of:
            what = f"class {name!r:.40} is not among the {len(names)} of the training split"
            raise DataError(what, where=listing.images.path(index), remedy="train and val need the same", code="A48")
    if not len(listing.images):
        raise DataError("no image in the split", where=where, code="A48")
    labels = np.array([label_of[name] for name in listing.class_names], dtype=np.int64)
    report = Report(where)
    if layout.notice:
        report.add("A48", "fix", layout.notice)
    missing = [name for name, count in zip(names, np.bincount(labels, minlength=len(names)), strict=True) if not count]
    if missing:
        shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        report.add("A46", "warn", f"no image of {len(missing)} of {len(names)} classes: {shown}")
    categories = tuple(Category(label, name) for label, name in enumerate(names))
    return ClassificationDataset(listing.images, labels, categories, split, report)


def _find_layout(root: Path) -> Layout:
    check_folder(root, ["digits"])
    # Lists and shards first: folders beside them hold what they name or what was unpacked.
    for find in (ClassLists.find, Shards.find, SplitFolders.find, ClassFolders.find):
        layout = find(root)
        if layout is not None:
            return layout
    raise _no_layout(root)


def _no_layout(root: Path) -> DataError:
    entries = sorted(entry.name + "/" * entry.is_dir() for entry in root.iterdir())
    listed = ", ".join(entries[:8]) + (", ..." if len(entries) > 8 else "") or "nothing"
    remedy = None
    if looks_like_coco(root):
        remedy = "this looks like COCO: that is for detection, classification needs images in folders by class"
    return DataError(
        f"no classification data; looked for {_LOOKED}; found {listed}", where=root, remedy=remedy, code="A48"
    )
