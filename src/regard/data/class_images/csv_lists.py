"""Images listed with their classes in `train.csv` and `val.csv`."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from regard.data.class_images.listing import (
    ImageFiles,
    LabelledImages,
    class_name,
    in_natural_order,
    read_labels_file,
)
from regard.data.image_folders import is_unsafe
from regard.data.report import listed
from regard.data.splits import Split, find_splits
from regard.errors import IS, DataError, counted

# Names of the two columns, in lower case. Where a file has several, the first is used.
_PATHS = ("path", "file_path", "filepath", "image_path", "file_name", "filename", "file", "image", "img", "name")
_LABELS = ("label", "class", "class_name", "category", "target", "labels", "y")


class ClassLists:
    """`train.csv` and `val.csv`, with comma, semicolon or tab between the columns; paths are relative to the file.

    Labels are class names. With a `labels.txt` in the same folder they may also be its line numbers, from 0.
    """

    notice = None

    def __init__(self, root: Path, splits: dict[Split, str]) -> None:
        self.root = root
        self.splits = splits
        self.names = read_labels_file(root / "labels.txt")

    @classmethod
    def find(cls, root: Path) -> ClassLists | None:
        """Return the lists of a folder, None if it has none."""
        splits = find_splits(lambda name: f"{name}.csv" if (root / f"{name}.csv").is_file() else None)
        return cls(root, splits) if splits else None

    def class_names(self, split: Split, faults: list[DataError] | None = None) -> tuple[str, ...]:
        return self.names or in_natural_order(label for _, _, label in self._rows(split, faults))

    def labelled_images(self, split: Split, faults: list[DataError] | None = None) -> LabelledImages:
        """Return the images of a split with their class names.

        Raises:
            DataError: a wrong row, a missing image, or an image with two classes (A32, A49).
        """
        file = self.root / self.splits[split]
        label_of: dict[str, str] = {}
        missing = []
        for line, path, label in self._rows(split, faults):
            if label_of.setdefault(path, label) != label:
                what = f"{path} has class {label!r:.40} here and {label_of[path]!r:.40} in an earlier line"
                _report(DataError(what, where=f"{file}:{line}", remedy="keep one of the lines", code="A49"), faults)
            if not _is_file(self.root / path):
                missing.append((line, path))
        if missing:
            count = counted(len(missing), "image", of=len(label_of), verb=IS)
            what = f"{count} missing: {listed([path for _, path in missing])}"
            remedy = f"write paths relative to {self.root}"
            _report(DataError(what, where=f"{file}:{missing[0][0]}", remedy=remedy, code="A49"), faults)
            for _, path in missing:
                label_of.pop(path, None)
        return LabelledImages(ImageFiles(self.root, list(label_of)), list(label_of.values()))

    def _rows(self, split: Split, faults: list[DataError] | None) -> Iterator[tuple[int, str, str]]:
        """Yield (line, path, class name) of each image."""
        file = self.root / self.splits[split]
        for line, path, text in read_list(file, faults):
            try:
                label = class_name(text, self.names, f"{file}:{line}")
            except DataError as error:
                _report(error, faults)
                continue
            yield line, path, label


def _report(error: DataError, faults: list[DataError] | None) -> None:
    """Raise an error, or gather it."""
    if faults is None:
        raise error
    faults.append(error)


def read_list(file: Path, faults: list[DataError] | None = None) -> Iterator[tuple[int, str, str]]:
    """Yield (line, path, label) of each row of a list. faults: gets the errors of rows; None to raise the first.

    Raises:
        DataError: no header with the two columns, a row with more or fewer columns, an empty path or label, or a file
            that is not text (A49); a path that leaves the folder (A32).
    """
    try:
        with file.open(newline="", encoding="utf-8-sig") as text:
            first = text.readline()
            rows = csv.reader(text, delimiter=_delimiter(first), strict=True)
            header = next(csv.reader([first], delimiter=_delimiter(first)), [])
            path_at, label_at = _columns(header, file)
            for row in rows:
                if not row:
                    continue
                try:
                    found = _checked(row, len(header), path_at, label_at, file, rows.line_num + 1)
                except DataError as error:
                    _report(error, faults)
                    continue
                yield found
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"not a readable CSV file ({error})", where=file, remedy="save it as UTF-8", code="A49"
        ) from error


def _delimiter(header: str) -> str:
    return max(",;\t", key=header.count)


def _columns(header: Sequence[str], file: Path) -> tuple[int, int]:
    names = [name.strip().lower() for name in header]
    places = [next((names.index(name) for name in known if name in names), None) for known in (_PATHS, _LABELS)]
    path_at, label_at = places
    if path_at is None or label_at is None:
        what = f"expected a first line with the columns path and label, found {','.join(header)!r:.80}"
        raise DataError(what, where=f"{file}:1", remedy="add the line path,label", code="A49")
    return path_at, label_at


def _checked(row: list[str], width: int, path_at: int, label_at: int, file: Path, line: int) -> tuple[int, str, str]:
    where = f"{file}:{line}"
    if len(row) != width:
        remedy = "quote values that contain the separator"
        raise DataError(f"{len(row)} columns, the header has {width}", where=where, remedy=remedy, code="A49")
    path, label = row[path_at].strip(), row[label_at].strip()
    if not path or not label:
        raise DataError(
            f"empty {'label' if path else 'path'}", where=where, remedy="write a path and a label", code="A49"
        )
    if is_unsafe(path):
        remedy = f"write it relative to {file.parent} and keep the images in that folder"
        raise DataError(f"path {path!r:.80} leaves the folder", where=where, remedy=remedy, code="A32")
    return line, PurePosixPath(path).as_posix(), label


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # the name is too long for the file system
        return False
