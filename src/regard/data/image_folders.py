"""Which files of a folder are images, by their names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn

from regard.data.image_errors import unreadable, warn_of_unsupported
from regard.data.paths import open_file
from regard.errors import DataError

SUFFIXES = frozenset((".jpg", ".jpeg", ".jfif", ".mpo", ".png", ".apng", ".webp", ".bmp", ".tif", ".tiff", ".gif"))


def list_images(path: str | Path) -> list[Path]:
    """The file itself, or the files with a suffix of `SUFFIXES` in a directory and below it, sorted.

    Hidden names are left out, and so are pipes, sockets and devices. Links to directories are followed, each
    directory once. Links that lead nowhere are listed, so that reading them tells what is missing. Images of
    formats that are not supported are passed over with a warning.

    Raises:
        DataError: if there is none.
    """
    path = Path(path)
    if not path.is_dir():
        open_file(path).close()
        return [path]
    found = []
    seen = set()
    others: list[Path] = []
    for folder, folders, names in os.walk(path, onerror=_refuse, followlinks=True):
        status = Path(folder).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files = [Path(folder, name) for name in names if not name.startswith(".")]
        others += files
        files = [file for file in files if file.suffix.lower() in SUFFIXES]
        found += [file for file in files if file.is_file() or not file.exists()]
    warn_of_unsupported(others, path)
    if not found:
        remedy = f"looked for files with {' '.join(sorted(SUFFIXES))}"
        raise DataError("no image in the directory", where=path, remedy=remedy)
    return sorted(found)


def _refuse(error: OSError) -> NoReturn:
    raise unreadable(error, error.filename) from error
