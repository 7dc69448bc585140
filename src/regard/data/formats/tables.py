"""COCO's tables made from another format, with the place of every row in the user's own files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from regard.data.images import image_size
from regard.data.report import Report, listed
from regard.data.splits import Part
from regard.errors import DataError, ImageError, counted

Document = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class DetectionTables:
    """The COCO document of one part, not yet checked.

    Args:
        document: with the keys images, annotations and categories.
        report: gets the issues, and knows the places of the rows.
        image_folders: folders that may hold the images; the first one with the first image must have all.
        notes: issues that the reader of the format found, as code, severity, text, place and count. They follow those
            of the checks.
        is_file: whether `report.path` is the COCO file that the document was read from.
    """

    document: Document
    report: Report
    image_folders: Sequence[Path]
    notes: Sequence[tuple[str, Literal["fix", "skip", "warn"], str, str, int]] = ()
    is_file: bool = False


class Source(Protocol):
    """A folder in a known format."""

    @property
    def format(self) -> str:
        """Return the name of the format: COCO, YOLO, Pascal VOC or CSV."""

    @property
    def parts(self) -> Mapping[Part, Any]:
        """The parts that the folder has, each with what is shown of it in messages: its file or folder."""

    def tables(self, part: Part, faults: list[DataError] | None = None) -> DetectionTables:
        """Read a part.

        Args:
            faults: gets the errors of lines and files without which the rest can be read, and makes the report of the
                result gather further ones. None to raise the first.

        Raises:
            DataError: a file is wrong; the error names the file and the line.
        """


@dataclass(frozen=True)
class Places:
    """Where the rows of tables come from: of each image, of each object, of the names of classes, of the whole."""

    whole: str
    images: Sequence[str]
    annotations: Sequence[str]
    categories: str

    def __call__(self, place: tuple[str | int, ...]) -> str:
        """Return the place of a value, given by its keys and indices in the COCO document."""
        table, row = place[0], place[1] if len(place) > 1 else None
        if table == "categories":
            return self.categories
        rows = {"images": self.images, "annotations": self.annotations}.get(str(table), ())
        return rows[row] if isinstance(row, int) and row < len(rows) else self.whole


@dataclass
class TableBuilder:
    """Collects the rows of the tables.

    Args:
        path: what names the data set in messages.
        names: of the classes; the id of a class is its index + 1, as COCO counts from 1.
        names_at: the place of the names, for messages.
    """

    path: Path
    names: Sequence[str]
    names_at: str
    images: list[dict[str, Any]] = field(default_factory=list)
    annotations: list[dict[str, Any]] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    notes: list[tuple[str, Literal["fix", "skip", "warn"], str, str, int]] = field(default_factory=list)
    _images_at: list[str] = field(default_factory=list)
    _annotations_at: list[str] = field(default_factory=list)

    def add_image(self, file: Path, size: tuple[int, int], place: str) -> None:
        """Add an image; the objects that follow are its own. size: (height, width) in pixels."""
        self.files.append(file)
        self.images.append({"id": len(self.files), "height": size[0], "width": size[1]})
        self._images_at.append(place)

    def add_object(
        self,
        label: int,
        box_xywh: Sequence[float],
        place: str,
        *,
        crowd: bool = False,
        polygons: Sequence[Sequence[float]] = (),
        area: float | None = None,
    ) -> None:
        """Add an object of the last image. Pixels; polygons: [x, y, x, y, ...]; area: that of the box if None."""
        row: dict[str, Any] = {
            "id": len(self.annotations) + 1,
            "image_id": len(self.files),
            "category_id": label + 1,
            "bbox": list(box_xywh),
            "area": box_xywh[2] * box_xywh[3] if area is None else area,
            "iscrowd": int(crowd),
        }
        if polygons:
            row["segmentation"] = [list(polygon) for polygon in polygons]
        self.annotations.append(row)
        self._annotations_at.append(place)

    def note(
        self, code: str, severity: Literal["fix", "skip", "warn"], what: str, place: str | Path, count: int = 1
    ) -> None:
        """Add an issue that does not stop the work."""
        self.notes.append((code, severity, what, str(place), count))

    def build(self, root: Path, *, gathers: bool = False) -> DetectionTables:
        """Return the tables. Names of images are relative to `root`, or to the folder that holds all of them.

        gathers: whether the report gathers faults.
        """
        folder, *files = without_parents([root, *self.files])
        root = folder
        if any(not file.is_relative_to(root) for file in files):
            files = [file.absolute() for file in files]
            folder = Path(os.path.commonpath([file.parent for file in files]))
        for row, file in zip(self.images, files, strict=True):
            row["file_name"] = file.relative_to(folder).as_posix()
        categories = [{"id": label + 1, "name": name} for label, name in enumerate(self.names)]
        document = {"images": self.images, "annotations": self.annotations, "categories": categories}
        places = Places(str(self.path), self._images_at, self._annotations_at, self.names_at)
        return DetectionTables(document, Report(self.path, places, gathers=gathers), [folder], self.notes)


def without_parents(paths: Sequence[Path]) -> list[Path]:
    """Return paths without `..`. Behind a symbolic link these lead elsewhere than the text says: links are followed."""
    folders: dict[Path, Path] = {}
    for path in paths:
        if ".." in path.parts and path.parent not in folders:
            folders[path.parent] = path.parent.resolve()
    return [folders[path.parent] / path.name if path.parent in folders else path for path in paths]


def measure(files: Sequence[Path], faults: list[DataError] | None = None) -> dict[Path, tuple[int, int]]:
    """Return (height, width) of images as they are displayed, from their headers.

    faults: gets the errors of images that cannot be opened, which the result then lacks.

    Raises:
        ImageError: an image cannot be opened; the error is that of the first one and names the others.
    """
    sizes: dict[Path, tuple[int, int]] = {}
    errors: list[ImageError] = []
    for file in files:
        try:
            sizes[file] = image_size(file)
        except ImageError as error:
            errors.append(error)
    if faults is not None:
        faults += errors
    if not errors or faults is not None:
        return sizes
    first = errors[0]
    others = [Path(error.where or "").name for error in errors[1:]]
    remedy = first.remedy
    if others:
        remedy = f"{remedy or 'replace or remove it'}; and {counted(len(others), 'other image')}: {listed(others)}"
    raise ImageError(first.what, where=first.where, remedy=remedy, code=first.code)
