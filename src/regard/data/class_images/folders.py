"""Images in class folders: `train/CLASS/*.jpg` and `val/CLASS/*.jpg`, or `CLASS/*.jpg` without splits."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from regard.data.class_images.listing import ImageFiles, LabelledImages, in_natural_order
from regard.data.image_folders import LOOKED_FOR, SUFFIXES, image_names, is_folder, suffix_of
from regard.data.report import listed
from regard.data.splits import SPLIT_NAMES, Split, find_splits
from regard.errors import DataError

VAL_SHARE = 0.2  # of each class, for folders without splits
SPLIT_SEED = 0


@dataclass(frozen=True)
class SplitFolders:
    """`train/CLASS/...` and `val/CLASS/...`, with images at any depth below their class folder."""

    root: Path
    splits: dict[Split, str]
    notice: None = None

    @classmethod
    def find(cls, root: Path) -> SplitFolders | None:
        """Return the layout of a folder, None if it has no split with class folders."""
        splits = find_splits(lambda name: name if (root / name).is_dir() and class_folders(root / name) else None)
        return cls(root, splits) if splits else None

    def class_names(self, split: Split, faults: list[DataError] | None = None) -> tuple[str, ...]:
        return class_folders(self.root / self.splits[split])

    def labelled_images(self, split: Split, faults: list[DataError] | None = None) -> LabelledImages:
        """Return the images of a split with their class names.

        Raises:
            DataError: a class of the training split has no image (A48).
        """
        folder = self.root / self.splits[split]
        classes = class_folders(folder)
        found = [(name, label) for label in classes for name in _images_of(folder, label, split, faults)]
        return LabelledImages(ImageFiles(folder, [name for name, _ in found]), [label for _, label in found])


@dataclass(frozen=True)
class ClassFolders:
    """`CLASS/...` without splits: of each class, the share `VAL_SHARE` with the smallest hashes is for validation.

    The hash is sha256 of `SEED/CLASS/NAME`. The split does not depend on the machine or the order of the files, and a
    new file moves at most one other file to the other split.

    whole: do not split; all images are for validation.
    """

    root: Path
    whole: bool = False

    @classmethod
    def find(cls, root: Path) -> ClassFolders | None:
        """Return the layout of a folder, None if it has no class folders with images."""
        folders = class_folders(root)
        splits = tuple(name for names in SPLIT_NAMES.values() for name in names)
        if all(re.split(r"[^a-z]", name.lower())[0] in splits for name in folders):
            return None  # the folders are splits, not classes
        return cls(root) if any(_has_image(root / name) for name in folders) else None

    @property
    def splits(self) -> dict[Split, str]:
        return {"val": "."} if self.whole else {"train": ".", "val": "."}

    @property
    def notice(self) -> str | None:
        if self.whole:
            return None
        share = f"{VAL_SHARE:.0%} of the images of each class"
        return f"no train and val folders: {share} are used for validation, chosen by file name, always the same"

    def class_names(self, split: Split, faults: list[DataError] | None = None) -> tuple[str, ...]:
        return class_folders(self.root)

    def labelled_images(self, split: Split, faults: list[DataError] | None = None) -> LabelledImages:
        names: list[str] = []
        labels: list[str] = []
        for label in class_folders(self.root):
            images = _images_of(self.root, label, "val" if self.whole else "train", faults)
            if not self.whole:
                train, val = split_by_hash(images)
                images = train if split == "train" else val
            names += images
            labels += [label] * len(images)
        return LabelledImages(ImageFiles(self.root, names), labels)


def class_folders(folder: Path) -> tuple[str, ...]:
    """Return the names of the subfolders in natural order, without hidden ones and `__MACOSX`."""
    with os.scandir(folder) as entries:
        shown = [entry for entry in entries if not entry.name.startswith(".") and entry.name != "__MACOSX"]
        return in_natural_order(entry.name for entry in shown if is_folder(entry))


def split_by_hash(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split names into training and validation, each in the given order. A single name is for training."""
    ranked = sorted(
        names, key=lambda name: hashlib.sha256(f"{SPLIT_SEED}/{name}".encode("utf-8", "surrogatepass")).digest()
    )
    val = set(ranked[: round(VAL_SHARE * len(names)) or min(1, len(names) - 1)])
    return [name for name in names if name not in val], [name for name in names if name in val]


def _images_of(folder: Path, label: str, split: Split, faults: list[DataError] | None) -> list[str]:
    names = image_names(folder / label)
    if not names and split == "train":  # for validation, a class without images is only reported
        others = sorted({file.suffix.lower() for file in (folder / label).iterdir() if file.suffix})
        what = "class folder without an image" + (f" (but with {listed(others)} files)" if others else "")
        remedy = f"add images of the class ({LOOKED_FOR})"
        if {".xml", ".txt", ".json"} & set(others):
            remedy = "are these labels of objects? Then name the folder that holds images and labels; else add images"
        error = DataError(what, where=folder / label, remedy=remedy, code="A48")
        if faults is None:
            raise error
        faults.append(error)
    return [f"{label}/{name}" for name in names]


def _has_image(folder: Path) -> bool:
    """Return whether the folder itself has an image; subfolders do not count."""
    with os.scandir(folder) as entries:
        return any(suffix_of(entry.name) in SUFFIXES for entry in entries)
