"""Paths that a user names: data folders, words for generated data, image files.

No torch is imported here, so that a mistyped path is answered at once.
"""

from __future__ import annotations

import stat
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from regard.config import near_path, read_yaml
from regard.errors import DataError, ImageError

FILES = (".json", ".yaml", ".yml", ".csv")  # that describe detection data by themselves
WITH_BOXES = ("shapes", "shapes_hard")  # words for generated images with boxes
GENERATED = (*WITH_BOXES, "digits")  # words for generated data; a folder of such a name is `./shapes`


def data_text(data: str | Path) -> str:
    """Return `data` as text for settings, from which the same folder is found: a Path is never a generated data set."""
    is_folder = isinstance(data, Path) and str(data).partition(":")[0] in GENERATED
    return f"./{data}" if is_folder else str(data)


def is_remote(data: object) -> bool:
    """Return whether data are behind an address that fsspec opens, such as `s3://bucket/folder`. A `Path` never is."""
    return isinstance(data, str) and "://" in data


def refuse_address(data: str | Path) -> None:
    """Check that detection data are no address. Raises DataError (A64)."""
    if is_remote(data):
        remedy = "copy them to this machine and name the folder"
        raise DataError("detection data are read from folders", where=data, remedy=remedy, code="A64")


def check_data(data: str, words: Sequence[str] = GENERATED) -> None:
    """Check that `data` is a word for generated data, an existing folder, or a file with a suffix of `FILES`.

    Of an address only the protocol is checked: its server is not asked.

    Raises:
        ConfigError: no filesystem has the protocol (C01).
        DataError: there is no such folder, or it is another file.
        MachineError: the package for the protocol is missing.
    """
    if is_remote(data):
        from regard.data.remote import check_address

        return check_address(data)
    path = Path(data)
    is_description = path.suffix.lower() in FILES and path.is_file()
    if data.partition(":")[0] not in words and not is_description:
        check_folder(path, words)


def check_folder(root: Path, words: Sequence[str] = ()) -> None:
    """Check that `root` is a folder. A missing one is answered with the nearest name, `words` included.

    Raises:
        DataError: there is no such folder, or it is a file.
    """
    if root.is_dir():
        if (root / "checkpoints").is_dir() and (root / "config.yaml").is_file():
            data = read_yaml(root / "config.yaml").get("data")
            raise DataError("a run, not data", where=root, remedy=f"name its data: {data}")
        return
    if root.exists():
        raise DataError("a file, not a folder", where=root, remedy="name the folder of the data")
    what = "no such file" if root.suffix.lower() in FILES else "no such folder"
    raise DataError(what, where=root, remedy=near_path(root, words))


def check_images(paths: Sequence[Path]) -> None:
    """Check that image files and folders exist and can be opened.

    Raises:
        ImageError: no such file (I29), or one that cannot be read (I27).
    """
    for path in paths:
        if not path.is_dir():
            open_file(path).close()


def open_file(path: Path) -> BinaryIO:
    """Open a regular file for reading.

    Other kinds are refused before they are opened: opening a pipe would wait for a writer.

    Raises:
        ImageError: no such file (I29), or one that cannot be read (I27).
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISREG(mode):
            return path.open("rb")
    except FileNotFoundError as error:
        if path.is_symlink():
            raise ImageError("link to a missing file", where=path, remedy="restore it", code="I27") from error
        what = "no such file" if path.suffix else "no such file or folder"
        raise ImageError(what, where=path, remedy=near_path(path), code="I29") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        from regard.data.image_errors import unreadable  # imports Pillow

        raise unreadable(error, path) from error
    kind = "a directory" if stat.S_ISDIR(mode) else "a pipe, socket or device"
    raise ImageError(f"{kind} instead of an image file", where=path, remedy="check the path", code="I27")
