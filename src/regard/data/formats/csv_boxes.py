"""Boxes in CSV files, one row an object; the columns are found by their names in the first line.

Corners (xmin, ymin, xmax, ymax) are in pixels from the top left edge of the image, and a box is xmax - xmin wide.
Fractions are refused. A row with an image and no box is an image without objects.
"""

from __future__ import annotations

import csv
import math
import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from regard.data.class_images.listing import in_natural_order
from regard.data.formats.tables import DetectionTables, TableBuilder, measure
from regard.data.image_folders import is_unsafe
from regard.data.report import listed
from regard.data.splits import Part, find_parts
from regard.errors import IS, DataError, counted

# Names of columns in lower case, without spaces, hyphens and underscores. Where a file has several, the first is used.
_IMAGE = ("image", "filename", "path", "filepath", "imagepath", "imagename", "imageid", "img", "file", "name")
_CLASS = ("class", "label", "classname", "labelname", "category", "categoryname", "species", "name")
_CORNERS = (("xmin", "x1", "left"), ("ymin", "y1", "top"), ("xmax", "x2", "right"), ("ymax", "y2", "bottom"))
_SIZES = (
    ("x", "bboxx", "boxx", "left", "xmin"),
    ("y", "bboxy", "boxy", "top", "ymin"),
    ("width", "w", "bboxwidth", "boxwidth"),
    ("height", "h", "bboxheight", "boxheight"),
)
_SPLIT_FILES = ("{}.csv", "{}_labels.csv", "{}_annotations.csv", "{}/_annotations.csv", "annotations/{}.csv")
_MORE_SPLIT_FILES = ("data/{}_labels.csv", "{}/annotations.csv", "{}/labels.csv")
_IMAGE_FOLDERS = ("{0}", "images/{0}", "images", "data", ".")


@dataclass(frozen=True)
class _Columns:
    """Where the values of a row are. image_size: of the columns with height and width of the image, if there are."""

    image: int
    label: int
    box: tuple[int, int, int, int]
    is_corners: bool
    image_size: tuple[int, int] | None
    count: int


@dataclass(frozen=True)
class _Row:
    line: int
    image: str
    label: str
    box_xywh: tuple[float, float, float, float] | None
    image_size: tuple[int, int] | None


class CsvBoxes:
    """A folder with CSV files of boxes, see `Source`."""

    format = "CSV"

    def __init__(self, root: Path, parts: dict[Part, Path]) -> None:
        self.root = root
        self.parts = parts

    @classmethod
    def find(cls, root: Path) -> CsvBoxes | None:
        """Return the files of a folder, None if it has none with columns for boxes.

        Raises:
            DataError: there are several files, none named as a split (A64).
        """
        if root.is_file():
            return cls(root.parent, {"all": root}) if root.suffix.lower() == ".csv" else None
        patterns = (*_SPLIT_FILES, *_MORE_SPLIT_FILES)
        splits = find_parts(lambda name: next((f for p in patterns if _has_boxes(f := root / p.format(name))), None))
        if splits:
            return cls(root, splits)
        files = [file for folder in (root, root / "annotations") for file in sorted(folder.glob("*.csv"))]
        files = [file for file in files if _has_boxes(file)]
        if len(files) > 1:
            what = f"{len(files)} files of boxes: {listed([file.relative_to(root) for file in files])}"
            remedy = f"name one: --data {files[0]}, or name them train.csv and val.csv"
            raise DataError(what, where=root, remedy=remedy, code="A64")
        return cls(root, {"all": files[0]}) if files else None

    def tables(self, part: Part, faults: list[DataError] | None = None) -> DetectionTables:
        """Read the file of a part, see `Source`. The classes are those of all files, in natural order."""
        rows = {file: list(_read(file, faults)) for file in self.parts.values()}
        names = in_natural_order(row.label for found in rows.values() for row in found if row.box_xywh is not None)
        label_of = {name: label for label, name in enumerate(names)}
        file = self.parts[part]
        of_image: dict[str, list[_Row]] = {}
        for row in _without_box_sizes(rows[file]):
            of_image.setdefault(row.image, []).append(row)
        _check_fractions(rows[file], file)
        folder = self._image_folder(of_image, file, faults)
        images = {name: folder / name for name in of_image}
        unstated = [images[name] for name, own in of_image.items() if own[0].image_size is None]
        sizes = measure(unstated, faults)
        builder = TableBuilder(file, names, f"{file}:1")
        for name, own in of_image.items():
            size = own[0].image_size or sizes.get(images[name])
            if size is None:
                continue  # the image cannot be opened, and faults are gathered
            builder.add_image(images[name], size, f"{file}:{own[0].line}")
            for row in own:
                if row.box_xywh is not None:
                    builder.add_object(label_of[row.label], row.box_xywh, f"{file}:{row.line}")
        return builder.build(folder, gathers=faults is not None)

    def _image_folder(self, of_image: dict[str, list[_Row]], file: Path, faults: list[DataError] | None) -> Path:
        """Return the folder that has the images; all of them must be in one. Takes the missing out, or raises."""
        split = file.stem.partition("_")[0]
        bases = list(dict.fromkeys((file.parent, self.root)))
        folders = [base / inner.format(split) for base in bases for inner in ("", *_IMAGE_FOLDERS)]
        folders = list(dict.fromkeys(folders))
        first = next(iter(of_image), None)
        if first is None:
            return file.parent
        folder = next((folder for folder in folders if (folder / first).is_file()), folders[0])
        missing = [name for name in of_image if not (folder / name).is_file()]
        if missing:
            what = f"{counted(len(missing), 'image file', of=len(of_image), verb=IS)} missing: {listed(missing)}"
            where = f"{file}:{of_image[missing[0]][0].line}"
            error = DataError(what, where=where, remedy=f"looked in {', '.join(map(str, folders))}", code="A31")
            if faults is None:
                raise error
            faults.append(error)
            for name in missing:
                del of_image[name]
        return folder


def has_box_columns(header: Sequence[str]) -> bool:
    """Return whether the names of columns are those of a file of boxes."""
    return _columns(header) is not None


def _has_boxes(file: Path) -> bool:
    try:
        with file.open(newline="", encoding="utf-8-sig") as text:
            first = text.readline(65536)
        return has_box_columns(next(csv.reader([first], delimiter=_delimiter(first)), []))
    except (OSError, UnicodeDecodeError, csv.Error):
        return False


def _delimiter(header: str) -> str:
    return max(",;\t", key=header.count)


def _columns(header: Sequence[str]) -> _Columns | None:
    names = [name.strip().lower().replace("_", "").replace("-", "").replace(" ", "") for name in header]

    def find(known: Sequence[str]) -> int | None:
        return next((names.index(name) for name in known if name in names), None)

    image, corners = find(_IMAGE), [place for known in _CORNERS if (place := find(known)) is not None]
    is_corners = len(corners) == 4
    box = corners if is_corners else [place for known in _SIZES if (place := find(known)) is not None]
    label = find([name for name in _CLASS if image is None or name != names[image]])
    if image is None or label is None or len(box) != 4:
        return None
    sides = ("height", "width")  # without a prefix they may also be those of the box
    size = [find((f"image{side}", f"img{side}", *((side,) if is_corners else ()))) for side in sides]
    height, width = size
    stated = None if height is None or width is None else (height, width)
    return _Columns(image, label, (box[0], box[1], box[2], box[3]), is_corners, stated, len(names))


def _read(file: Path, faults: list[DataError] | None) -> Iterator[_Row]:
    """Yield the rows of a file. faults: gets the errors of rows, which are left out; None to raise the first.

    Raises:
        DataError: the columns are not found, a row has another number of them, no image or no class, a size that is not
            a number, or the file is not text (A49); a name that leaves the folder (A32); a box that is not four numbers
            (A17, A16) or has a negative size (A14).
    """
    try:
        with file.open(newline="", encoding="utf-8-sig") as text:
            first = text.readline()
            header = next(csv.reader([first], delimiter=_delimiter(first)), [])
            columns = _columns(header)
            if columns is None:
                what = f"no columns for image, class and box among {','.join(header)!r:.80}"
                remedy = "add the first line filename,xmin,ymin,xmax,ymax,class"
                raise DataError(what, where=f"{file}:1", remedy=remedy, code="A49")
            rows = csv.reader(text, delimiter=_delimiter(first), strict=True)
            for row in rows:
                if not any(value.strip() for value in row):
                    continue
                try:
                    found = _row(row, columns, file, rows.line_num + 1)
                except DataError as error:
                    if faults is None:
                        raise
                    faults.append(error)
                    continue
                yield found
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        what = f"not a readable CSV file ({error})"
        raise DataError(what, where=file, remedy="save it as UTF-8", code="A49") from error


def _without_box_sizes(rows: list[_Row]) -> list[_Row]:
    """Return rows without image sizes if columns called width and height hold those of the boxes instead."""
    pairs = [(row.image_size, row.box_xywh[2:]) for row in rows if row.image_size and row.box_xywh]
    same = all(abs(size[1] - box[0]) <= 1 and abs(size[0] - box[1]) <= 1 for size, box in pairs)
    return [replace(row, image_size=None) for row in rows] if pairs and same else rows


def _row(row: list[str], columns: _Columns, file: Path, line: int) -> _Row:
    where = f"{file}:{line}"
    if len(row) != columns.count:
        what = f"{len(row)} columns, the header has {columns.count}"
        raise DataError(what, where=where, remedy="quote values that contain the separator", code="A49")
    image, label = row[columns.image].strip().replace("\\", "/"), row[columns.label].strip()
    if not image or is_unsafe(image):
        what = f"image {image!r:.80} is not a path inside the folder" if image else "no image"
        raise DataError(what, where=where, remedy="write paths relative to the file", code="A32" if image else "A49")
    image = posixpath.normpath(image)  # `./a.jpg` is `a.jpg`
    texts = [row[column].strip() for column in columns.box]
    size = None if columns.image_size is None else _size([row[column].strip() for column in columns.image_size])
    if not any(texts):
        return _Row(line, image, label, None, size)
    if not label:
        raise DataError("a box without a class", where=where, remedy="write its class", code="A49")
    values = []
    for text in texts:
        try:
            values.append(float(text))
        except ValueError as error:
            what = f"a box with the value {text!r:.40}, expected a number"
            raise DataError(what, where=where, remedy="write pixels", code="A17") from error
    if not all(map(math.isfinite, values)):
        raise DataError("a box with a value that is not finite", where=where, remedy="write pixels", code="A16")
    x, y, right, bottom = values
    box = (x, y, right - x, bottom - y) if columns.is_corners else (x, y, right, bottom)
    if min(box[2:]) < 0:
        remedy = "write the top left corner first" if columns.is_corners else "write a positive width and height"
        what = f"a box with the size {box[2]:g} x {box[3]:g}"
        raise DataError(what, where=where, remedy=remedy, code="A14")
    return _Row(line, image, label, box, size)


def _size(texts: Sequence[str]) -> tuple[int, int] | None:
    """Return (height, width); None if they are not positive whole numbers, so that the image is measured."""
    if all(text.isascii() and text.isdecimal() and len(text) < 10 and int(text) > 0 for text in texts):
        return int(texts[0]), int(texts[1])
    return None


def _check_fractions(rows: Sequence[_Row], file: Path) -> None:
    """Check that boxes are in pixels (A19): Open Images and others write fractions."""
    boxed = [row for row in rows if row.box_xywh is not None]
    if boxed and all(max(row.box_xywh or (0,)) <= 1 for row in boxed):
        remedy = "multiply x by the image's width and y by its height"
        what = "all boxes are within 0..1: fractions of the image, not pixels"
        raise DataError(what, where=f"{file}:{boxed[0].line}", remedy=remedy, code="A19")
