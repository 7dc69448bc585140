"""Lists of images with their classes: `train.csv` and `val.csv`."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from regard.data.class_images.listing import (
    SPLIT_NAMES,
    ImageFiles,
    Listing,
    Split,
    class_name,
    in_natural_order,
    read_labels_file,
)
from regard.errors import DataError

# Names of the two columns, in lower case; of several that are there the first is taken.
_PATHS = ("path", "file_path", "filepath", "image_path", "file_name", "filename", "file", "image", "img", "name")
_LABELS = ("label", "class", "class_name", "category", "target", "labels", "y")
# Absolute (also with a drive letter), a URL, a step up, a NUL: such names are never opened.
_UNSAFE_PATH = re.compile(r"\A[/\\]|\A[A-Za-z]:|://|\0|(\A|[/\\])\.\.([/\\]|\Z)")


class ClassLists:
    """`train.csv` and `val.csv`, comma, semicolon or tab between the columns; paths are relative to the file.

    Labels are names; with a `labels.txt` beside the lists they may also be the numbers of its lines, from 0.
    """

    notice = None

    def __init__(self, root: Path, splits: dict[Split, str]) -> None:
        self.root = root
        self.splits = splits
        self.names = read_labels_file(root / "labels.txt")

    @classmethod
    def find(cls, root: Path) -> ClassLists | None:
        splits: dict[Split, str] = {}
        for split, names in SPLIT_NAMES.items():
            there = [f"{name}.csv" for name in names if (root / f"{name}.csv").is_file()]
            if there:
                splits[split] = there[0]
        return cls(root, splits) if splits else None

    def class_names(self, split: Split) -> tuple[str, ...]:
        return self.names or in_natural_order(label for _, _, label in self._rows(split))

    def listing(self, split: Split) -> Listing:
        """Raises DataError for a file that is missing, and for one with two classes (A49)."""
        file = self.root / self.splits[split]
        label_of: dict[str, str] = {}
        missing = []
        for line, path, label in self._rows(split):
            if label_of.setdefault(path, label) != label:
                what = f"{path} is of class {label!r:.40} here and of {label_of[path]!r:.40} before"
                raise DataError(what, where=f"{file}:{line}", remedy="remove one of the lines", code="A49")
            if not _is_file(self.root / path):
                missing.append((line, path))
        if missing:
            shown = ", ".join(path for _, path in missing[:5]) + (", ..." if len(missing) > 5 else "")
            what = f"{len(missing)} of {len(label_of)} images are missing: {shown}"
            raise DataError(what, where=f"{file}:{missing[0][0]}", remedy=f"paths start at {self.root}", code="A49")
        return Listing(ImageFiles(self.root, list(label_of)), list(label_of.values()))

    def _rows(self, split: Split) -> Iterator[tuple[int, str, str]]:
        """(line, path, class name) of each image."""
        file = self.root / self.splits[split]
        for line, path, text in read_list(file):
            yield line, path, class_name(text, self.names, f"{file}:{line}")


def read_list(file: Path) -> Iterator[tuple[int, str, str]]:
    """(line, path, label) of each row.

    Raises:
        DataError: no header with the two columns, a row with more or fewer columns or an empty one, a path that leaves
            the folder (A49, A32), or a file that is not text.
    """
    try:
        with file.open(newline="", encoding="utf-8-sig") as text:
            first = text.readline()
            rows = csv.reader(text, delimiter=_delimiter(first), strict=True)
            header = next(csv.reader([first], delimiter=_delimiter(first)), [])
            path_at, label_at = _columns(header, file)
            for row in rows:
                if row:
                    yield _checked(row, len(header), path_at, label_at, file, rows.line_num + 1)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"not a readable list ({error})", where=file, remedy="save it as UTF-8", code="A49") from error


def _delimiter(header: str) -> str:
    return max(",;\t", key=header.count)


def _columns(header: Sequence[str], file: Path) -> tuple[int, int]:
    names = [name.strip().lower() for name in header]
    places = [next((names.index(name) for name in known if name in names), None) for known in (_PATHS, _LABELS)]
    path_at, label_at = places
    if path_at is None or label_at is None:
        what = f"the first line must name the columns path and label, found {','.join(header)!r:.80}"
        raise DataError(what, where=f"{file}:1", remedy="add the line path,label", code="A49")
    return path_at, label_at


def _checked(row: list[str], width: int, path_at: int, label_at: int, file: Path, line: int) -> tuple[int, str, str]:
    where = f"{file}:{line}"
    if len(row) != width:
        remedy = "quote values that hold the separator"
        raise DataError(f"{len(row)} columns, the header has {width}", where=where, remedy=remedy, code="A49")
    path, label = row[path_at].strip(), row[label_at].strip()
    if not path or not label:
        raise DataError(f"the {'label' if path else 'path'} is empty", where=where, remedy="fill it in", code="A49")
    if _UNSAFE_PATH.search(path):
        remedy = f"write it relative to {file.parent}, and keep the images below that"
        raise DataError(f"path {path!r:.80} leaves the folder", where=where, remedy=remedy, code="A32")
    return line, PurePosixPath(path).as_posix(), label


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long for the file system
        return False
