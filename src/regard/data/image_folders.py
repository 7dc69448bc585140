"""Image files of a folder, recognised by their names."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from regard.data.image_errors import unreadable, warn_of_unsupported
from regard.data.paths import open_file
from regard.errors import DataError

SUFFIXES = frozenset((".jpg", ".jpeg", ".jfif", ".mpo", ".png", ".apng", ".webp", ".bmp", ".tif", ".tiff", ".gif"))
LOOKED_FOR = f"looked for files with {' '.join(sorted(SUFFIXES))}"

# Empty, absolute (also with a drive letter), a URL, a parent folder, a NUL: names that are never opened.
_UNSAFE_NAME = re.compile(r"\A\Z|\A[/\\]|\A[A-Za-z]:|://|\0|(\A|[/\\])\.\.([/\\]|\Z)")


def list_images(path: str | Path) -> list[Path]:
    """Return the image file itself, or all images of a folder and of the folders below it, as `find_images`.

    Raises:
        DataError: the folder has no image, or a file or folder cannot be read.
    """
    path = Path(path)
    if not path.is_dir():
        open_file(path).close()
        return [path]
    found = find_images(path)
    if not found:
        raise DataError("no image in the directory", where=path, remedy=LOOKED_FOR)
    return found


def find_images(folder: Path) -> list[Path]:
    """Return all files with a suffix of `SUFFIXES` in a folder and the folders below it, sorted.

    Skips hidden names, pipes, sockets and devices. Follows links to folders, each folder once. Keeps links to missing
    files, so that reading them names what is missing. Warns about images of unsupported formats.

    Raises:
        DataError: a folder cannot be read (I27).
    """
    found = []
    seen = set()
    others: list[Path] = []
    for place, folders, names in os.walk(folder, onerror=_refuse, followlinks=True):
        status = Path(place).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files = [Path(place, name) for name in names if not name.startswith(".")]
        others += files
        files = [file for file in files if file.suffix.lower() in SUFFIXES]
        found += [file for file in files if file.is_file() or not file.exists()]
    warn_of_unsupported(others, folder)
    return sorted(found)


def is_unsafe(name: str) -> bool:
    """Return whether a file name of an annotation could lead out of its folder. Such names are never opened."""
    return _UNSAFE_NAME.search(name) is not None


def are_safe(names: Sequence[str]) -> bool:
    """Return whether no name is unsafe, in one look at all of them. May be False for safe names as well."""
    text = "\n".join(names)
    may_lead_out = any(part in text for part in ("\n/", "\\", ":", "..", "\0"))
    return not may_lead_out and not text.startswith("/") and "" not in names


def _refuse(error: OSError) -> NoReturn:
    raise unreadable(error, error.filename) from error
