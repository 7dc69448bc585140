"""Images in folders by class: `train/CLASS/*.jpg` and `val/CLASS/*.jpg`, or class folders alone."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from regard.data.class_images.listing import SPLIT_NAMES, ImageFiles, Listing, Split, in_natural_order
from regard.data.image_folders import SUFFIXES, list_images
from regard.errors import DataError

VAL_SHARE = 0.2  # of each class, where a folder has no splits
SPLIT_SEED = 0


@dataclass(frozen=True)
class SplitFolders:
    """`train/CLASS/...`, `val/CLASS/...`; images may lie at any depth below the folder of their class."""

    root: Path
    splits: dict[Split, str]
    notice: None = None

    @classmethod
    def find(cls, root: Path) -> SplitFolders | None:
        splits: dict[Split, str] = {}
        for split, names in SPLIT_NAMES.items():
            there = [name for name in names if (root / name).is_dir() and class_folders(root / name)]
            if there:
                splits[split] = there[0]
        return cls(root, splits) if splits else None

    def class_names(self, split: Split) -> tuple[str, ...]:
        return class_folders(self.root / self.splits[split])

    def listing(self, split: Split) -> Listing:
        """Raises DataError for a class of the training split that has no image (A48)."""
        folder = self.root / self.splits[split]
        found = [(name, label) for label in class_folders(folder) for name in _images_of(folder, label, split)]
        return Listing(ImageFiles(folder, [name for name, _ in found]), [label for _, label in found])


@dataclass(frozen=True)
class ClassFolders:
    """`CLASS/...` alone, split by us: of each class the share `VAL_SHARE` whose names have the smallest hashes.

    The hash is sha256 of `SEED/CLASS/NAME`. So the split does not change with the machine or the order of the
    files, and a new file leaves the others where they are but for one at the border.

    whole: do not split; all images are for validation.
    """

    root: Path
    whole: bool = False

    @classmethod
    def find(cls, root: Path) -> ClassFolders | None:
        folders = class_folders(root)
        splits = tuple(name for names in SPLIT_NAMES.values() for name in names)
        if all(re.split(r"[^a-z]", name.lower())[0] in splits for name in folders) or looks_like_coco(root):
            return None  # images by split and not by class
        return cls(root) if any(_has_image(root / name) for name in folders) else None

    @property
    def splits(self) -> dict[Split, str]:
        return {"val": "."} if self.whole else {"train": ".", "val": "."}

    @property
    def notice(self) -> str | None:
        if self.whole:
            return None
        share = f"{VAL_SHARE:.0%} of each class, chosen by the hash of their names (seed {SPLIT_SEED})"
        return f"no train and val folders: {share}, are for validation"

    def class_names(self, split: Split) -> tuple[str, ...]:
        return class_folders(self.root)

    def listing(self, split: Split) -> Listing:
        names: list[str] = []
        labels: list[str] = []
        for label in class_folders(self.root):
            images = list(_images_of(self.root, label, "val" if self.whole else "train"))
            if not self.whole:
                train, val = split_by_hash(images)
                images = train if split == "train" else val
            names += images
            labels += [label] * len(images)
        return Listing(ImageFiles(self.root, names), labels)


def class_folders(folder: Path) -> tuple[str, ...]:
    """Names of the folders in a folder, in natural order; hidden ones and macOS's leftovers are left out."""
    entries = (entry for entry in folder.iterdir() if not entry.name.startswith(".") and entry.name != "__MACOSX")
    return in_natural_order(entry.name for entry in entries if entry.is_dir())


def looks_like_coco(root: Path) -> bool:
    """Whether there are annotations for detection."""
    return any(any(root.glob(pattern)) for pattern in ("annotations/*.json", "*/_annotations.coco.json"))


def split_by_hash(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Names for training and for validation, each in the order given. One image alone is for training."""
    ranked = sorted(
        names, key=lambda name: hashlib.sha256(f"{SPLIT_SEED}/{name}".encode("utf-8", "surrogatepass")).digest()
    )
    val = set(ranked[: round(VAL_SHARE * len(names)) or min(1, len(names) - 1)])
    return [name for name in names if name not in val], [name for name in names if name in val]


def _images_of(folder: Path, label: str, split: Split) -> Iterator[str]:
    try:
        paths = list_images(folder / label)
    except DataError as error:
        if error.code is not None:
            raise
        if split == "val":
            return  # a class without an example to be judged by is noted, not refused
        remedy = f"add images or remove the folder ({error.remedy})"
        raise DataError("class folder without an image", where=folder / label, remedy=remedy, code="A48") from error
    for path in paths:
        yield path.relative_to(folder).as_posix()


def _has_image(folder: Path) -> bool:
    """Whether an image lies in the folder, whatever is below it."""
    return any(entry.suffix.lower() in SUFFIXES for entry in folder.iterdir())
