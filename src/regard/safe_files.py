"""Writing: nothing over what is the user's, told before the work where it cannot be, and whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from regard.errors import MachineError


def is_used(folder: Path) -> bool:
    """Whether there is anything in the folder, or a file of that name. Hidden files are what ended runs leave."""
    return folder.exists() and (not folder.is_dir() or any(path.name[0] != "." for path in folder.iterdir()))


def make_writable(folder: Path) -> None:
    """Make the folder if need be and write in it for a try.

    Raises:
        MachineError: it cannot be made or written in (C11).
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".write-test"
        probe.touch()
        probe.unlink()
    except OSError as error:
        what = f"cannot write here: {error.strerror}"
        raise MachineError(what, where=folder, remedy="name another folder", code="C11") from error


def replace_text(path: Path, text: str) -> None:
    """Write a file that is whole or as before, whatever interrupts it."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    with temporary.open("w", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
