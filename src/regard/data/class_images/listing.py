"""What every layout of classification data comes down to: images of one split, each with the name of its class."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from torch import Tensor

from regard.data.images import read_image
from regard.errors import DataError

Split = Literal["train", "val"]

# What people call the two splits; where several are there the first is taken.
SPLIT_NAMES: dict[Split, tuple[str, ...]] = {"train": ("train",), "val": ("val", "valid", "validation", "test")}


class Images(Protocol):
    """Images by number, wherever they are kept. Can be sent to the workers of a data loader."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> Tensor:
        """(3, H, W) uint8, RGB."""

    def path(self, index: int) -> str:
        """Where the image is, for errors and listings."""

    def identity(self, index: int) -> str:
        """Name and size in bytes: changes with the image, and costs no decoding."""


@dataclass(frozen=True)
class Listing:
    """Images of one split. class_names: that of each image."""

    images: Images
    class_names: Sequence[str]


class Layout(Protocol):
    """A folder whose layout has been recognised."""

    @property
    def splits(self) -> dict[Split, str]:
        """The splits that are there, each with the name of its place in the folder."""

    @property
    def notice(self) -> str | None:
        """What the user should know of how the splits come about."""

    def class_names(self, split: Split) -> tuple[str, ...]:
        """Names in the order of the labels."""

    def listing(self, split: Split) -> Listing: ...


class ImageFiles:
    """Image files below a folder. names: paths from there, with `/`."""

    def __init__(self, root: Path, names: Sequence[str]) -> None:
        self.root = root
        self.names = names

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> Tensor:
        return read_image(self.root / self.names[index])

    def path(self, index: int) -> str:
        return str(self.root / self.names[index])

    def identity(self, index: int) -> str:
        path = self.root / self.names[index]
        try:
            return f"{self.names[index]}\0{path.stat().st_size}"
        except OSError as error:
            raise DataError("image file is gone", where=path, remedy="restore it", code="I29") from error


def in_natural_order(names: Iterable[str]) -> tuple[str, ...]:
    """Each name once, sorted with numbers by their value: `2` before `10`."""

    def key(name: str) -> tuple[list[tuple[int, int, str]], str]:
        parts = re.split(r"([0-9]+)", name)
        return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part], name

    return tuple(sorted(set(names), key=key))


def class_name(text: str, names: Sequence[str] | None, where: str) -> str:
    """The class that a label means: a number is a line of `names` (a `labels.txt`), if there is one, counted from 0.

    Raises:
        DataError: no such line or no such name (A49).
    """
    if names is None or (text in names and not text.isdecimal()):
        return text
    if text.isdecimal() and int(text) < len(names):
        return names[int(text)]
    what = f"label {text!r:.40}, expected 0 to {len(names) - 1} or a name in labels.txt"
    raise DataError(what, where=where, remedy="correct the label or labels.txt", code="A49")


def read_labels_file(path: Path) -> tuple[str, ...] | None:
    """The class names of a `labels.txt`, one a line in the order of the labels; None if there is no such file.

    Raises:
        DataError: an empty line, or a name twice (A25).
    """
    if not path.is_file():
        return None
    try:
        lines = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError("not a readable text file", where=path, remedy="save it as UTF-8", code="A49") from error
    names = [line.strip() for line in lines]
    for number, name in enumerate(names, start=1):
        if not name or name in names[: number - 1]:
            what = f"class {name!r} comes twice" if name else "a line without a class name"
            raise DataError(what, where=f"{path}:{number}", remedy="one name a line, each once", code="A25")
    return tuple(names) or None
