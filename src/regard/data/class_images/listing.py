"""What every layout of classification data provides: the images of a split, each with the name of its class."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

from regard.data.images import read_image
from regard.data.remote import RemoteFile
from regard.data.splits import Split
from regard.errors import DataError, ImageError, MachineError


class Images(Protocol):
    """Images by number, however they are stored. Can be pickled for the workers of a data loader."""

    @property
    def at_once(self) -> int:
        """How many to read at the same time in one process: more than 1 if most of the time is spent on waiting."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> Tensor:
        """Decode an image to (3, H, W) uint8, RGB.

        Raises:
            ImageError: it cannot be read or decoded.
            MachineError: the server of an address does not give it (I33).
        """

    def path(self, index: int) -> str:
        """Return the path of an image, for errors and lists."""

    def identity(self, index: int) -> str:
        """Return name and size in bytes, which change with the image. Does not decode it."""


@dataclass(frozen=True)
class LabelledImages:
    """The images of one split, and the class name of each."""

    images: Images
    class_names: Sequence[str]


class Layout(Protocol):
    """A folder of a recognised layout."""

    @property
    def splits(self) -> Mapping[Split, str]:
        """The splits that the folder has, each with its file or subfolder."""

    @property
    def notice(self) -> str | None:
        """A note for the user on how the splits were made."""

    def class_names(self, split: Split, faults: list[DataError] | None = None) -> tuple[str, ...]:
        """Return the class names in the order of the labels. faults: as for `labelled_images`."""

    def labelled_images(self, split: Split, faults: list[DataError] | None = None) -> LabelledImages:
        """Return the images of a split with their class names.

        faults: gets errors without which the rest can be read. None to raise the first.
        """


class ImageFiles:
    """Image files in a folder. names: paths relative to `root`, with `/`."""

    at_once = 1

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
            raise ImageError("image file is gone", where=path, remedy="restore it", code="I29") from error


def in_natural_order(names: Iterable[str]) -> tuple[str, ...]:
    """Return the distinct names, sorted with numbers by value: `2` before `10`."""

    def key(name: str) -> tuple[list[tuple[int, int, str]], str]:
        parts = re.split(r"([0-9]+)", name)
        return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part], name

    return tuple(sorted(set(names), key=key))


def class_name(text: str, names: Sequence[str] | None, where: str) -> str:
    """Return the class name that a label stands for.

    Args:
        text: the label: a class name, or, with `names`, a line number from 0, which comes first.
        names: the lines of `labels.txt`, None without that file.
        where: the place of the label, for errors.

    Raises:
        DataError: no such line and no such name (A49).
    """
    if names is None:
        return text
    if text.isdecimal() and int(text) < len(names):
        return names[int(text)]
    if text in names:
        return text
    what = f"label {text!r:.40}, expected 0 to {len(names) - 1} or a name in labels.txt"
    raise DataError(what, where=where, remedy="correct the label or labels.txt", code="A49")


def read_labels_file(path: Path | RemoteFile) -> tuple[str, ...] | None:
    """Read the class names of a `labels.txt`, one a line in the order of the labels. None if there is no such file.

    Raises:
        DataError: an empty line or a repeated name (A25), or not a text file (A49).
        MachineError: a file at an address cannot be read (I33).
    """
    if not path.is_file():
        return None
    try:
        lines = path.read_bytes().decode("utf-8-sig").rstrip().splitlines()
    except MachineError:
        raise
    except (OSError, UnicodeDecodeError) as error:
        raise DataError("not a readable text file", where=str(path), remedy="save it as UTF-8", code="A49") from error
    names = [line.strip() for line in lines]
    for number, name in enumerate(names, start=1):
        if not name or name in names[: number - 1]:
            what = f"duplicate class {name!r}" if name else "a line without a class name"
            raise DataError(what, where=f"{path}:{number}", remedy="write one name a line, each once", code="A25")
    return tuple(names) or None
