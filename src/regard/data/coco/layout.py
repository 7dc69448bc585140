"""Annotation files and image folders of COCO data, found in the layouts that tools write."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from regard.data.coco.document import read_document
from regard.data.formats.tables import DetectionTables
from regard.data.report import Report, listed
from regard.data.splits import SPLIT_NAMES, Part, Split, find_parts, missing_split
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
    "{0}/instances_{0}.json",
    "{0}/{0}.json",
    "instances_{}.json",
    "{}.json",
)
# Without splits: CVAT, Roboflow, FiftyOne, Label Studio.
_WHOLE_FILES = (
    "annotations/instances_default.json",
    "_annotations.coco.json",
    "labels.json",
    "annotations.json",
    "result.json",
)
# COCO as published, and the plain names. The PNG files are in a folder of the same name.
PANOPTIC_FILES = ("annotations/panoptic_{}2017.json", "annotations/panoptic_{}.json", "panoptic_{}.json")
_IMAGE_FOLDERS = ("{0}{1}", "images/{0}{1}", "{0}{1}/images", "{0}{1}/data", "images", "data", ".")
_WHOLE_IMAGE_FOLDERS = ("images/default", "images", "data", ".")
_OTHER_COCO = ("panoptic_", "captions_", "person_keypoints_", "image_info_", "stuff_")  # published beside instances_


class SplitFiles(NamedTuple):
    """One split: its annotation file, and the folders that may hold its images."""

    annotations: Path
    image_folders: list[Path]


class CocoFiles:
    """A folder with COCO annotations, see `Source`."""

    format = "COCO"

    def __init__(self, files: dict[Part, SplitFiles]) -> None:
        self.files = files

    @classmethod
    def find(cls, root: Path) -> CocoFiles | None:
        """Return the annotation files of a folder, None if it has none under the usual names."""
        if root.is_file():
            if root.suffix.lower() != ".json":
                return None
            return cls({"all": SplitFiles(root, _whole_folders(root.parent))})
        splits = _find(root, DETECTION_FILES)
        if splits:
            return cls(splits)
        whole = next((file for name in _WHOLE_FILES if is_coco(file := root / name)), None)
        if whole is None:
            return None
        part: Part = "val" if root.name in SPLIT_NAMES["val"][:3] else "all"
        return cls({part: SplitFiles(whole, _whole_folders(root))})

    @classmethod
    def find_any(cls, root: Path) -> CocoFiles | None:
        """Return the only COCO file of a folder or of its `annotations`, whatever its name; None if there is none.

        Raises:
            DataError: there are several (A64).
        """
        if not root.is_dir():
            return None
        files = [file for folder in (root, root / "annotations") for file in sorted(folder.glob("*.json"))]
        found = [file for file in files if not file.name.startswith(_OTHER_COCO) and is_coco(file)]
        if len(found) > 1:
            what = f"{len(found)} COCO files, none named as a split: {listed([f.relative_to(root) for f in found])}"
            remedy = f"name one as the data: --data {found[0]}, or name them train.json and val.json in annotations/"
            raise DataError(what, where=root, remedy=remedy, code="A64")
        return cls({"all": SplitFiles(found[0], _whole_folders(root))}) if found else None

    @property
    def parts(self) -> dict[Part, Path]:
        return {part: files.annotations for part, files in self.files.items()}

    def tables(self, part: Part, faults: list[DataError] | None = None) -> DetectionTables:
        """Read the annotation file of a part, see `Source`."""
        file, folders = self.files[part]
        report = Report(file, gathers=faults is not None)
        return DetectionTables(read_document(file, report), report, folders, is_file=True)


def has_coco(root: Path, split: Split) -> bool:
    """Return whether a folder has annotations of objects of a split in COCO's format."""
    return split in _find(root, DETECTION_FILES)


def is_coco(file: Path) -> bool:
    """Return whether a file seems to be a COCO document. Reads its first bytes: other tools use the same names."""
    try:
        with file.open("rb") as opened:
            head = opened.read(65536)
    except OSError:
        return False
    return head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{") and any(
        f'"{key}"'.encode() in head for key in ("images", "annotations", "categories")
    )


def _whole_folders(root: Path) -> list[Path]:
    above = [root.parent] if root.name == "annotations" else []
    return [base / name for base in (*above, root) for name in _WHOLE_IMAGE_FOLDERS]


def has_panoptic(root: str | Path) -> bool:
    """Return whether a folder has panoptic annotations."""
    return bool(_find(Path(root), PANOPTIC_FILES))


def panoptic_splits(root: Path) -> list[Split]:
    """Return the splits that a folder of panoptic annotations should have: both, or `val` alone."""
    return ["val"] if set(_find(root, PANOPTIC_FILES)) == {"val"} else list(SPLIT_NAMES)


def has_own_panoptic_validation(root: Path) -> bool:
    """Return whether a folder of panoptic annotations has a validation split of its own."""
    return "val" in _find(root, PANOPTIC_FILES)


def find_panoptic(root: Path, split: Split) -> SplitFiles:
    """Return the files of a split with panoptic annotations; without a validation split those of `train` for both.

    Raises:
        DataError: no panoptic annotations, or none of this split.
    """
    found = _find(root, PANOPTIC_FILES)
    if not found:
        looked = ", ".join(pattern.format("train") for pattern in PANOPTIC_FILES)
        raise DataError(f"no panoptic annotations; looked for {looked}", where=root, remedy="add them")
    return _split_of(found, "train" if "val" not in found else split, root)


def _find(root: Path, patterns: Sequence[str]) -> dict[Part, SplitFiles]:
    """Return the files of each split. patterns: annotation files to look for, best first; {} is the split's name."""

    def look(name: str) -> SplitFiles | None:
        file = next((file for pattern in patterns if _is_there(file := root / pattern.format(name))), None)
        if file is None:
            return None
        year = next((year for year in ("2017", "2014") if file.stem.endswith(year)), "")
        return SplitFiles(file, [root / folder.format(name, year) for folder in _IMAGE_FOLDERS])

    return find_parts(look)


def _is_there(file: Path) -> bool:
    """Return whether there is an annotation file. Other tools use some of the names for other things."""
    is_ours = file.parent.name == "annotations" or any(word in file.name for word in ("instances", "panoptic", "coco"))
    return file.is_file() and (is_ours or is_coco(file))


def _split_of(found: dict[Part, SplitFiles], split: Split, root: Path) -> SplitFiles:
    if split not in found:
        present = {name: files.annotations.relative_to(root) for name, files in found.items()}
        raise missing_split(split, present, root, "its annotations")
    return found[split]
