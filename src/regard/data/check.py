"""`regard data check`: everything that is wrong with a data set, before training. Changes no file."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from regard.data.check_images import Look, check_rotation, check_sizes, look_at, repeated_images
from regard.data.class_images.dataset import (
    ClassificationDataset,
    classification_splits,
    is_classification,
    open_classification,
)
from regard.data.coco.check_objects import check_objects
from regard.data.coco.dataset import CocoDataset, check_trainable, with_categories
from regard.data.coco.layout import has_panoptic, panoptic_splits
from regard.data.coco.panoptic import PanopticDataset, find_bad_segments, open_panoptic
from regard.data.formats.find import detection_splits, has_detection, has_own_validation, read_split
from regard.data.paths import is_remote
from regard.data.report import WORDS, Issue, IssueWarning, issue_of, merged
from regard.data.splits import Split
from regard.errors import DataError, ImageError, counted
from regard.safe_files import replace_text
from regard.structures.categories import Category


@dataclass
class Findings:
    """What a check found. Iterating gives lines: the splits, the issues with the most serious first, the verdict.

    Args:
        folder: the data.
        splits: one line for each split that could be read.
        found: the issues in the order in which they were found.
    """

    folder: str | Path
    splits: list[str] = field(default_factory=list)
    found: list[Issue] = field(default_factory=list)

    @property
    def issues(self) -> list[Issue]:
        """Each kind of issue once, with its count: errors, then skip, fix, warn and note."""
        return merged(self.found)

    @property
    def stops_training(self) -> bool:
        """Whether any issue is an error."""
        return any(issue.severity == "error" for issue in self.found)

    @property
    def only_error(self) -> DataError | None:
        """The error that kept the check from everything, None if there is anything else to tell."""
        if self.splits or len(self.found) != 1 or not self.stops_training:
            return None
        (issue,) = self.found
        return DataError(issue.what, where=issue.where or None, remedy=issue.remedy, code=issue.code)

    @property
    def verdict(self) -> str:
        """One line that says whether the data can be used."""
        counts = Counter(issue.severity for issue in self.issues)
        done = [f"{counts[kind]} {WORDS[kind]}" for kind in ("skip", "fix") if counts[kind]]
        others = ", ".join(done + [counted(counts[kind], WORDS[kind]) for kind in ("warn", "note") if counts[kind]])
        if self.stops_training:
            faults = counted(counts["error"], "kind of fault", "kinds of faults", verb=("stops", "stop"))
            return f"{faults} a training" + (f"; also {others}" if others else "")
        return "every image can be read" + (f"; {others}" if others else "")

    def __iter__(self) -> Iterator[str]:
        yield from self.splits
        yield from map(str, self.issues)
        yield self.verdict

    def to_json(self) -> str:
        """Return the same as JSON, with all places that are known."""
        issues: list[dict[str, Any]] = [
            {
                "severity": issue.severity,
                "code": issue.code,
                "what": issue.what,
                "count": issue.count,
                "places": list(issue.places),
                "remedy": issue.remedy,
            }
            for issue in self.issues
        ]
        document = {
            "data": str(self.folder),
            "stops_training": self.stops_training,
            "verdict": self.verdict,
            "splits": self.splits,
            "issues": issues,
        }
        return json.dumps(document, indent=2) + "\n"

    def write_json(self, path: Path) -> None:
        """Write `to_json` to a file."""
        replace_text(path, self.to_json())

    def add(self, error: DataError, unchecked: str = "") -> None:
        """Add an error. unchecked: what could not be checked because of it."""
        self.found.append(issue_of(error))
        if unchecked:
            self.found.append(Issue(error.code, "note", f"not checked: {unchecked}", error.where or str(self.folder)))


def check_folder(folder: str | Path) -> Findings:
    """Check the splits of a detection, panoptic or classification data set, and decode every image.

    Checks objects and segments where a folder has annotations of both. Goes on after a fault as far as it can.

    Args:
        folder: a folder in any layout, a file that describes detection data, or the address of a folder with shards.
    """
    findings = Findings(folder if is_remote(folder) else Path(folder))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        if is_classification(folder):
            _check_classes(findings)
        elif not has_panoptic(folder):
            _check_objects(findings)
        elif not has_detection(folder):
            _check_segments(findings, images=True)
        else:
            _check_objects(findings)
            _check_segments(findings, images=False)
    issues = [each.message.issue for each in said if isinstance(each.message, IssueWarning)]
    findings.found += [issue for issue in issues if issue.code != "I22"]  # `check_rotation` counts these
    return findings


@contextmanager
def advise(folder: str | Path) -> Iterator[None]:
    """Add to an `ImageError` how to find all bad images of the data set: one bad image is seldom the only one."""
    try:
        yield
    except ImageError as error:
        remedy = f"{error.remedy}; find all such images: regard data check {folder}"
        raise ImageError(error.what, where=error.where, remedy=remedy, code=error.code) from error


def _check_objects(findings: Findings) -> None:
    opened: list[list[Look]] = []
    categories: tuple[Category, ...] | None = None
    try:
        splits = detection_splits(findings.folder)
    except DataError as error:
        findings.add(error)
        return
    for split in splits:
        faults: list[DataError] = []
        try:
            data = _open_objects(Path(findings.folder), split, categories, faults)
        except DataError as error:
            findings.found += map(issue_of, faults)
            if not (faults and error.code == "A08"):  # no image is left because of the faults
                findings.add(error, f"objects and images of {split}")
            if not has_own_validation(findings.folder):
                break
            continue
        findings.found += map(issue_of, faults)
        objects = len(data.annotations.objects.labels)
        targets = int(data.annotations.objects.is_target.sum())
        kinds = counted(targets, "object") + ("" if targets == objects else f" to learn of {objects:,}")
        classes = counted(len(data.categories), "class", "classes")
        findings.splits.append(f"{split}: {counted(len(data), 'image')}, {kinds}, {classes}")
        findings.found += data.annotations.report.issues
        findings.found += check_objects(data.annotations)
        opened.append(_check_images(findings, data, split))
        is_sound = not faults and not data.annotations.report.errors
        if split == "train":
            categories = data.categories if is_sound else None
            if not is_sound and not has_own_validation(findings.folder):
                break
    findings.found += repeated_images(opened)


def _open_objects(
    folder: Path, split: Split, categories: Sequence[Category] | None, faults: list[DataError]
) -> CocoDataset:
    """Open a split as `open_detection` does, and gather its faults."""
    annotations = read_split(folder, split, faults).annotations
    if not faults and not annotations.report.errors:
        try:
            if categories is not None:
                annotations = with_categories(annotations, categories)
            if split == "train":
                check_trainable(annotations)
        except DataError as error:
            faults.append(error)
    return CocoDataset(annotations, split, masks=False)


def _check_segments(findings: Findings, images: bool) -> None:
    """Check panoptic annotations, and decode the images if `images`."""
    opened: list[list[Look]] = []
    categories: tuple[Category, ...] | None = None
    for split in panoptic_splits(Path(findings.folder)):
        try:
            data = open_panoptic(findings.folder, split, categories=categories)
        except DataError as error:
            findings.add(error, f"segments of {split}" + " and its images" * images)
            continue
        categories = categories or data.categories
        segments = len(data.annotations.segments.ids)
        stuff = sum(not category.is_thing for category in data.categories)
        classes = f"{len(data.categories) - stuff} thing and {counted(stuff, 'stuff class', 'stuff classes')}"
        what = f"{counted(len(data), 'image')}, {counted(segments, 'segment')}, {classes}"
        findings.splits.append(f"panoptic {split}: {what}")
        findings.found += data.annotations.report.issues
        errors, warning = find_bad_segments(data)
        findings.found += map(issue_of, errors)
        if warning:
            findings.found.append(warning)
        if images:
            opened.append(_check_images(findings, data, split))
    findings.found += repeated_images(opened)


def _check_classes(findings: Findings) -> None:
    opened: list[list[Look]] = []
    try:
        splits = classification_splits(findings.folder)
    except DataError as error:
        findings.add(error)
        return
    for split in splits:
        faults: list[DataError] = []
        try:
            data: ClassificationDataset = open_classification(findings.folder, split, faults=faults)
        except DataError as error:
            findings.found += map(issue_of, faults)
            findings.add(error, f"images of {split}")
            continue
        findings.found += map(issue_of, faults)
        classes = counted(len(data.categories), "class", "classes")
        findings.splits.append(f"{split}: {counted(len(data), 'image')}, {classes}")
        findings.found += data.report.issues
        opened.append(_check_images(findings, data, split))
    findings.found += repeated_images(opened)


def _check_images(
    findings: Findings, data: CocoDataset | PanopticDataset | ClassificationDataset, split: str
) -> list[Look]:
    """Decode all images of a split, and return what is kept of them."""
    looks = look_at(data)
    findings.found += [issue_of(look.error) for look in looks if look.error]
    findings.found += check_sizes(looks, split)
    if not isinstance(data, ClassificationDataset):
        findings.found += check_rotation(data, looks, Path(findings.folder))
    return looks
