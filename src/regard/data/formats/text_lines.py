"""Text files of a data set: lines with their numbers, names of classes."""

from __future__ import annotations

from pathlib import Path

from regard.errors import DataError

MAX_BYTES = 256 * 1024**2


def read_text(path: Path, code: str) -> str:
    """Return the content of a UTF-8 file without byte-order mark.

    Raises:
        DataError: the file cannot be read, is not text, or is larger than `MAX_BYTES` (`code`).
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"more than {MAX_BYTES:,} bytes of text", where=path, remedy="split the file", code=code)
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        what = f"not UTF-8 text (byte {error.start:,})"
        raise DataError(what, where=path, remedy="save it as UTF-8", code=code) from error
    except OSError as error:
        what = f"cannot be read: {error.strerror}"
        raise DataError(what, where=path, remedy="check its permissions", code=code) from error


def read_class_names(path: Path) -> list[str]:
    """Return the class names of a file with one name a line. Empty lines at the end do not count.

    Raises:
        DataError: an empty line before the end, or a name twice (A25); not a text file (A62).
    """
    names = [line.strip() for line in read_text(path, "A62").rstrip().splitlines()]
    for number, name in enumerate(names, start=1):
        if not name or name in names[: number - 1]:
            what = f"duplicate class {name!r:.40}" if name else "a line without a class name"
            raise DataError(what, where=f"{path}:{number}", remedy="write one name a line, each once", code="A25")
    return names
