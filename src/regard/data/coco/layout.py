"""Annotation files and image folders of one data set, found in the layouts of COCO, Roboflow and FiftyOne."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from regard.data.paths import check_folder
from regard.data.report import folder_entries
from regard.data.splits import SPLIT_NAMES, Split, find_splits, missing_split
from regard.errors import DataError

# COCO as published, COCO as most tools write it, Roboflow, FiftyOne. {} is the name of the split.
DETECTION_FILES = (
    "annotations/instances_{}2017.json",
    "annotations/instances_{}2014.json",
    "annotations/instances_{}.json",
    "annotations/{}.json",
    "{}/_annotations.coco.json",
    "{}/annotations.json",
    "{}/labels.json",
)
# COCO as published, and the plain names. The PNG files are in a folder of the same name.
PANOPTIC_FILES = ("annotations/panoptic_{}2017.json", "annotations/panoptic_{}.json", "panoptic_{}.json")
_IMAGE_FOLDERS = ("{0}{1}", "images/{0}{1}", "{0}{1}/images", "{0}{1}/data", "images", ".")


class SplitFiles(NamedTuple):
    """One split: its annotation file, and the folders that may hold its images."""

    annotations: Path
    image_folders: list[Path]


def has_detection(root: str | Path, split: Split | None = None) -> bool:
    """Return whether a folder has annotations of objects, of one split or of any."""
    found = _find(Path(root), DETECTION_FILES)
    return bool(found) if split is None else split in found


def has_panoptic(root: str | Path) -> bool:
    """Return whether a folder has panoptic annotations."""
    return bool(_find(Path(root), PANOPTIC_FILES))


def find_detection(root: Path, split: Split) -> SplitFiles:
    """Return the files of a split with annotations of objects.

    Raises:
        DataError: no annotations in any layout, or none of this split.
    """
    found = _find(root, DETECTION_FILES)
    if not found:
        raise _no_detection(root)
    return _split_of(found, split, root)


def find_panoptic(root: Path, split: Split) -> SplitFiles:
    """Return the files of a split with panoptic annotations.

    Raises:
        DataError: no panoptic annotations, or none of this split.
    """
    found = _find(root, PANOPTIC_FILES)
    if not found:
        looked = ", ".join(pattern.format("train") for pattern in PANOPTIC_FILES)
        raise DataError(f"no panoptic annotations; looked for {looked}", where=root, remedy="add them")
    return _split_of(found, split, root)


def _find(root: Path, patterns: Sequence[str]) -> dict[Split, SplitFiles]:
    """Return the files of each split. patterns: annotation files to look for, best first; {} is the split's name."""

    def look(name: str) -> SplitFiles | None:
        file = next((file for pattern in patterns if (file := root / pattern.format(name)).is_file()), None)
        if file is None:
            return None
        year = next((year for year in ("2017", "2014") if file.stem.endswith(year)), "")
        return SplitFiles(file, [root / folder.format(name, year) for folder in _IMAGE_FOLDERS])

    return find_splits(look)


def _split_of(found: dict[Split, SplitFiles], split: Split, root: Path) -> SplitFiles:
    if split not in found:
        present = {name: files.annotations.relative_to(root) for name, files in found.items()}
        raise missing_split(split, present, root, "its annotations")
    return found[split]


def _no_detection(root: Path) -> DataError:
    check_folder(root, ["shapes"])
    looked = ", ".join(pattern.format("train") for pattern in DETECTION_FILES)
    names = ", ".join(SPLIT_NAMES["val"])
    what = f"no COCO annotations; looked for {looked}, the same with {names}; found {folder_entries(root)}"
    return DataError(what, where=root, remedy=_conversion_hint(root))


def _conversion_hint(root: Path) -> str | None:
    """Return how to make COCO annotations of the files in the folder."""
    output = root / "annotations" / "train.json"
    convert = f"convert it to COCO (pip install 'regard[train]'): coco convert --to coco --output {output} --from "
    if any(root.glob("*.yaml")) or any(root.glob("*.yml")) or (root / "labels").is_dir():
        return "this looks like YOLO: " + convert + f"yolo --input {root}/labels/train --images-dir {root}/images/train"
    for folder in ("Annotations", "annotations", "."):
        if any((root / folder).glob("*.xml")):
            return "this looks like Pascal VOC: " + convert + f"voc --input {root / folder}"
    train = root / "train"
    if train.is_dir() and all(entry.is_dir() for entry in train.iterdir()):
        return "this looks like images in class folders, which are for classification; detection needs boxes"
    return None
