"""Image files of a folder, recognised by their names."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

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
    return [folder / name for name in image_names(folder)]


def image_names(folder: Path) -> list[str]:
    """Return what `find_images` does as names below the folder, with `/`: paths of 100,000 files take seconds."""
    found: list[str] = []
    others: list[str] = []
    seen = set()
    waiting = [""]  # folders to look into, each with a `/` at its end; the last one is next
    while waiting:
        below = waiting.pop()
        place = folder / below
        inside: list[str] = []
        try:
            with os.scandir(place) as entries:
                status = place.stat()
                if (status.st_dev, status.st_ino) in seen:
                    continue
                seen.add((status.st_dev, status.st_ino))
                for entry in entries:
                    name = entry.name
                    if name.startswith("."):
                        continue
                    is_file = entry.is_file(follow_symlinks=False)
                    if not is_file and is_folder(entry):
                        inside.append(f"{below}{name}/")
                    elif suffix_of(name) not in SUFFIXES:
                        others.append(below + name)
                    elif is_file or _is_linked_file(entry):
                        found.append(below + name)
        except OSError as error:
            raise unreadable(error, error.filename or str(place)) from error
        waiting += sorted(inside, reverse=True)
    warn_of_unsupported(others, folder)
    found.sort()
    if len(seen) > 1:  # in the order of paths: `a/b` before `a b`
        found.sort(key=_parts)
    return found


def suffix_of(name: str) -> str:
    """Return the suffix of a file's name in small letters, with its dot; a text without a dot if there is none."""
    return name[name.rfind(".") :].lower()


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a folder, or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _is_linked_file(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a link to a file or to nothing."""
    return entry.is_symlink() and (Path(entry).is_file() or not Path(entry).exists())


def _parts(name: str) -> list[str]:
    return name.split("/")


def is_unsafe(name: str) -> bool:
    """Return whether a file name of an annotation could lead out of its folder. Such names are never opened."""
    return _UNSAFE_NAME.search(name) is not None


def are_safe(names: Sequence[str]) -> bool:
    """Return whether no name is unsafe, in one look at all of them. May be False for safe names as well."""
    text = "\n".join(names)
    may_lead_out = any(part in text for part in ("\n/", "\\", ":", "..", "\0"))
    return not may_lead_out and not text.startswith("/") and "" not in names
