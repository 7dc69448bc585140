"""Images with one class each. The layout of a folder is recognised, not asked for."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regard.data.class_images.csv_lists import ClassLists
from regard.data.class_images.folders import ClassFolders, SplitFolders
from regard.data.class_images.listing import Images, Layout
from regard.data.class_images.shards import Shards
from regard.data.formats.find import detection_format
from regard.data.generated.words import generated_folder
from regard.data.paths import GENERATED, check_folder, is_remote
from regard.data.remote import RemoteFolder
from regard.data.report import Report, folder_entries, listed
from regard.data.samples import ClassSample
from regard.data.splits import SPLIT_NAMES, Split, missing_split
from regard.errors import HAS, ConfigError, DataError, counted
from regard.structures.categories import Category

_LOOKED_REMOTE = "train-*.tar, val-*.tar"
_LOOKED = "train/CLASS/*.jpg and val/CLASS/*.jpg, CLASS/*.jpg, train-*.tar[.gz], train.csv"


class ClassificationDataset:
    """N images with one class each; `dataset[i]` decodes image i into a `ClassSample`.

    Holds no open files and can be pickled for the workers of a data loader.

    Attributes:
        categories: the classes; a label is an index into them.
        labels: (N,) int64, the label of each image.
        report: notes for the user, such as how the folder was split.
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

    @property
    def at_once(self) -> int:
        """How many samples a loader reads at the same time in each of its processes."""
        return self.images.at_once

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> ClassSample:
        """Decode an image.

        Raises:
            ImageError: it cannot be read or decoded.
            MachineError: the server of an address does not give it (I33).
        """
        return ClassSample(self.images.read(index), int(self.labels[index]), self.images.path(index))

    def subset(self, count: int) -> ClassificationDataset:
        """Return `count` images, as evenly from all classes as possible. The hash of their names decides which.

        Raises:
            DataError: `count` is below the number of classes or above the number of images.
        """
        if not len(self.categories) <= count <= len(self):
            what = f"a subset of {count} images, expected {len(self.categories)} (one of each class) to {len(self)}"
            raise DataError(what)
        hashes = [_hash(self.images.identity(index)) for index in range(len(self))]
        of_class: dict[int, list[int]] = {}
        for index in sorted(range(len(self)), key=hashes.__getitem__):
            of_class.setdefault(int(self.labels[index]), []).append(index)
        # The first image of every class, then the second of every class, and so on.
        ranked = sorted(
            (rank, label, index) for label, members in of_class.items() for rank, index in enumerate(members)
        )
        chosen = sorted(index for _, _, index in ranked[:count])
        return ClassificationDataset(
            _ImageSubset(self.images, chosen), self.labels[chosen].numpy(), self.categories, self.split, self.report
        )

    def counts(self) -> list[int]:
        """Return the number of images of each class."""
        return torch.bincount(self.labels, minlength=len(self.categories)).tolist()

    def fingerprint(self) -> str:
        """Return the sha256 of class names and of the images' names, sizes in bytes and labels. Decodes no image."""
        digest = hashlib.sha256(
            "\0".join(category.name for category in self.categories).encode("utf-8", "surrogatepass")
        )
        for index, label in enumerate(self.labels.tolist()):
            digest.update(f"\0{self.images.identity(index)}\0{label}".encode("utf-8", "surrogatepass"))
        return digest.hexdigest()


@dataclass(frozen=True)
class _ImageSubset:
    """The images with the numbers `chosen`."""

    images: Images
    chosen: list[int]

    @property
    def at_once(self) -> int:
        return self.images.at_once

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


def open_classification(
    root: str | Path,
    split: Split = "train",
    *,
    all_images: bool = False,
    faults: list[DataError] | None = None,
) -> ClassificationDataset:
    """Open one split of a classification data set.

    Labels number the class names in natural order (`2` before `10`), or in the order of a `labels.txt`. The `val`
    split has the labels of the `train` split, if there is one.

    Args:
        root: a folder with `train/CLASS/*` and `val/CLASS/*`; class folders alone, a fixed fifth of which is used for
            validation; shards `train-0000.tar` or `.tar.gz`; or lists `train.csv` and `val.csv` with the columns path
            and label. Or a word: `digits` (scikit-learn's handwritten digits), `shapes` or `shapes:size=32,classes=6`
            (generated images of one shape each). `./digits` is a folder of that name. Or the address of a
            folder with shards, as fsspec opens it: `s3://bucket/folder`.
        split: `val` also matches `valid`, `validation` and `test`, in this order.
        all_images: use all images of class folders without splits for validation, as a test set.
        faults: gets the errors of classes, rows and images without which the rest can be read. None to raise the first.

    Raises:
        ConfigError: `all_images` for data with splits (C09), or no filesystem has the protocol of an address (C01).
        DataError: no layout fits (A48), the split is missing, or its images or classes are wrong: a class that the
            training split lacks, a class or a split without images (A48), a single class (A45), a wrong row of a list
            (A49).
        MachineError: an address cannot be read (I33), or the package for its protocol is missing.
    """
    if split not in SPLIT_NAMES:
        raise DataError(f"split {split!r}, expected train or val", where=root)
    word = str(root)
    place = generated_folder(word) if word.partition(":")[0] in GENERATED else _place(root)
    layout = _find_layout(place)
    if all_images:
        if not isinstance(layout, ClassFolders):
            what = f"all_images is for class folders without splits, found {', '.join(sorted(layout.splits.values()))}"
            remedy = "leave out all_images, or name the folder that holds the class folders"
            raise ConfigError(what, where=str(place), remedy=remedy, code="C09")
        layout = replace(layout, whole=True)
    if split not in layout.splits:
        raise missing_split(split, layout.splits, str(place), "its images")
    names = layout.class_names("train" if "train" in layout.splits else "val", faults)
    if split == "train" and len(names) < 2:
        what = f"only one class, {names[0]!r:.40}" if names else "no classes"
        remedy = "add images of two or more classes"
        error = DataError(what, where=str(place / layout.splits[split]), remedy=remedy, code="A45")
        if faults is None or not names:
            raise error
        faults.append(error)
    return _dataset(layout, split, names, place, faults)


def classification_splits(root: str | Path) -> list[Split]:
    """Return the splits of a classification data set.

    Raises:
        DataError: no layout fits (A48).
        MachineError: an address cannot be read (I33).
    """
    layout = _find_layout(_place(root))
    return [split for split in SPLIT_NAMES if split in layout.splits]


def is_classification(root: str | Path) -> bool:
    """Return whether a folder has a layout for classification, even if its images or classes are wrong.

    An address always has: other data are read from folders.
    """
    if is_remote(root):
        return True
    root = Path(root)
    try:
        return root.is_dir() and _recognised_layout(root) is not None
    except DataError:
        return True  # a layout with a wrong labels.txt


def _dataset(
    layout: Layout, split: Split, names: tuple[str, ...], root: Path | RemoteFolder, faults: list[DataError] | None
) -> ClassificationDataset:
    labelled = layout.labelled_images(split, faults)
    where = str(root / layout.splits[split])
    label_of = {name: label for label, name in enumerate(names)}
    for index, name in enumerate(labelled.class_names):
        if name not in label_of:
            what = f"class {name!r:.40} is not one of the {len(names)} classes of the training split"
            remedy = "give both splits the same classes"
            error = DataError(what, where=labelled.images.path(index), remedy=remedy, code="A48")
            if faults is None:
                raise error
            faults.append(error)
            label_of[name] = len(label_of)  # to go on; these images are looked at, and the result is not used
            names = (*names, name)
    if not len(labelled.images):
        raise DataError("no image in the split", where=where, remedy="add images", code="A48")
    labels = np.array([label_of[name] for name in labelled.class_names], dtype=np.int64)
    report = Report(where)
    if layout.notice:
        report.add("A48", "note", layout.notice)
    missing = [name for name, count in zip(names, np.bincount(labels, minlength=len(names)), strict=True) if not count]
    if missing:
        count = counted(len(missing), "class", "classes", of=len(names), verb=HAS)
        report.add("A46", "warn", f"{count} no image: {listed(missing)}")
    categories = tuple(Category(label, name) for label, name in enumerate(names))
    return ClassificationDataset(labelled.images, labels, categories, split, report)


def _place(root: str | Path) -> Path | RemoteFolder:
    """Return the folder that a path or an address names."""
    return RemoteFolder(str(root)) if is_remote(root) else Path(root)


def _find_layout(root: Path | RemoteFolder) -> Layout:
    if isinstance(root, RemoteFolder):
        if (shards := Shards.find(root)) is None:
            raise _no_shards(root)
        return shards
    check_folder(root, ["digits"])
    layout = _recognised_layout(root)
    if layout is None:
        raise _no_layout(root)
    return layout


def _recognised_layout(root: Path) -> Layout | None:
    """Return the layout of a folder; None for detection data, whose folders are no classes."""
    if detection_format(root) is not None or any(root.glob("annotations/*.json")):
        return None
    # Lists and shards first: folders next to them hold the listed images, or unpacked ones.
    finders = (ClassLists.find, Shards.find, SplitFolders.find, ClassFolders.find)
    return next((layout for find in finders if (layout := find(root)) is not None), None)


def _no_layout(root: Path) -> DataError:
    remedy = None
    found = detection_format(root)
    if found is not None:
        remedy = f"this looks like {found}, which is for detection; classification needs images in class folders"
    return DataError(
        f"no classification data; looked for {_LOOKED}; found {folder_entries(root)}",
        where=root,
        remedy=remedy,
        code="A48",
    )


def _no_shards(root: RemoteFolder) -> DataError:
    names = sorted(file.name for file in root.iterdir())
    remedy = "pack the images into such files"
    if not names and str(root).startswith("http"):
        remedy = "the server must answer this address with a page that links to the files"
    what = f"no shards; looked for {_LOOKED_REMOTE}; found {listed(names, maximum=8) or 'no file'}"
    return DataError(what, where=str(root), remedy=remedy, code="A48")
