"""Write files so that they are complete or absent, and by one process at a time."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import socket
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from regard.errors import ConfigError, MachineError

FILE_SUFFIXES = frozenset((
    ".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".mp4", ".mov", ".avi", ".json", ".jsonl",
    ".parquet", ".csv", ".txt", ".md", ".yaml", ".yml", ".html", ".pdf", ".tex", ".npz", ".pt", ".pth", ".bin",
    ".safetensors", ".zip", ".tar", ".gz",
))  # fmt: skip
FULL_DISK = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
_held_locks: set[int] = set()  # descriptors of lock files


def is_used(folder: Path) -> bool:
    """Return whether `folder` is a file or holds any file. Hidden files do not count: stopped runs leave them."""
    return folder.exists() and (not folder.is_dir() or any(path.name[0] != "." for path in folder.iterdir()))


def first_free(path: Path, is_taken: Callable[[Path], bool] = Path.exists) -> Path:
    """Return the first of `a.png`, `a-2.png`, `a-3.png` and so on that is not taken."""
    later = (path.with_stem(f"{path.stem}-{number}") for number in itertools.count(2))
    return next(free for free in itertools.chain([path], later) if not is_taken(free))


def check_folder_name(folder: Path) -> None:
    """Check that a folder to make has no suffix of a file: who names `found.json` means a file.

    Raises:
        ConfigError: it has (C09).
    """
    if folder.suffix.lower() in FILE_SUFFIXES and not folder.exists():
        remedy = f"name a folder, such as {folder.with_suffix('')}"
        raise ConfigError("the name of a file, and a folder is written here", where=folder, remedy=remedy, code="C09")


def make_writable(folder: Path) -> None:
    """Make `folder` if it is missing, and check that files can be written to it.

    Raises:
        ConfigError: its name is that of a file (C09).
        MachineError: the folder cannot be made or written to (C11).
    """
    check_folder_name(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".write-test"
        probe.touch()
        probe.unlink()
    except OSError as error:
        what = f"cannot write here: {error.strerror}"
        raise MachineError(what, where=folder, remedy="name another folder", code="C11") from error


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; write the file there. It replaces `path` when the block ends.

    After an exception, a kill or a power cut, `path` holds the old content or the new, never a part of it.
    """
    temporary = _temporary(path)
    try:
        with naming(path, temporary):
            yield temporary
            sync(temporary)
            temporary.replace(path)
            sync(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def naming(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Give `path` to an OSError that names no file or the temporary one.

    Writes to an open file name none when the disk is full.
    """
    try:
        yield
    except OSError as error:
        is_unnamed = error.filename is None or str(error.filename) == str(temporary)
        if error.errno is not None and is_unnamed and type(error).__module__ == "builtins":
            error.filename = str(path)
        raise


def replace_text(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, with the guarantee of `atomic_file`."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp-{uuid.uuid4().hex}")


def sync(path: Path) -> None:
    """Make the content of a file, or the names in a folder, survive a power cut."""
    on_windows = os.name == "nt"
    if on_windows and path.is_dir():  # Windows cannot open folders.
        return
    descriptor = os.open(path, os.O_RDWR if on_windows else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # Some network file systems write names at once and refuse this call.
            raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def hold_lock(path: Path, on_busy: Callable[[str], object]) -> Iterator[bool]:
    """Hold the lock file `path` until the block ends, so that no other process or thread holds it.

    The system frees the lock when the process ends, however it ends. A file left behind locks nothing.

    Args:
        path: the lock file, removed at the end.
        on_busy: called once with the holder's name if the lock is taken; then this call waits for the lock,
            unless `on_busy` raises.

    Yields:
        True, or False where the system has no locks (Windows, some network file systems).
    """
    descriptor, locked = _take_lock(path, on_busy)
    with contextlib.suppress(OSError):  # The holder's name is optional, for instance on a full disk.
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    try:
        yield locked
    finally:
        if descriptor in _held_locks:  # A forked child has closed its copy already.
            with contextlib.suppress(OSError):
                path.unlink()
            _close_lock(descriptor)


def _take_lock(path: Path, on_busy: Callable[[str], object]) -> tuple[int, bool]:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        _held_locks.add(descriptor)
        try:
            locked = _lock(descriptor, on_busy)
        except BaseException:
            _close_lock(descriptor)
            raise
        with contextlib.suppress(FileNotFoundError):
            if not locked or os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor, locked
        _close_lock(descriptor)  # The last holder removed this file; another process may hold a newer one.


def _lock(descriptor: int, on_busy: Callable[[str], object]) -> bool:
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        on_busy(os.read(descriptor, 200).decode(errors="replace").strip() or "an unknown process")
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except (ImportError, OSError):
        return False
    return True


def _close_lock(descriptor: int) -> None:
    _held_locks.discard(descriptor)
    os.close(descriptor)


def _close_inherited_locks() -> None:
    """Close the locks in a forked child, or a data-loading worker could hold them after its trainer was killed."""
    for descriptor in list(_held_locks):
        _close_lock(descriptor)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_inherited_locks)
