"""One job at a time writes to a run folder."""

from __future__ import annotations

import contextlib
import os
import socket
import warnings
from collections.abc import Iterator
from pathlib import Path

from regard.errors import MachineError

_held_locks: set[int] = set()


@contextlib.contextmanager
def lock_run(run: Path) -> Iterator[None]:
    """Hold the run folder for this process, so that no second job writes to it.

    The lock ends with the process, however that ends; the file `.lock` stays and means nothing by itself.
    Where there is no `flock` (Windows, some network file systems) the run goes on without it, after one
    warning.

    Raises:
        MachineError: another job holds the folder (T14), or it cannot be written (T06).
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(run / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        what = f"cannot write to the run folder: {error.strerror}"
        raise MachineError(what, where=run, remedy="choose another --output", code="T06") from error
    _held_locks.add(descriptor)
    try:
        _take_lock(descriptor, run)
        yield
    finally:
        if descriptor in _held_locks:  # absent in a forked child, where it is closed already
            _held_locks.discard(descriptor)
            os.close(descriptor)


def _take_lock(descriptor: int, run: Path) -> None:
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, 200).decode(errors="replace").strip() or "unknown"
        what, remedy = (
            f"another job writes to this run folder ({holder})",
            "stop it, or choose another --output",
        )
        raise MachineError(what, where=run, remedy=remedy, code="T14") from None
    except (ImportError, OSError):
        warnings.warn(f"{run} cannot be locked here: start no second job on it", stacklevel=4)
    with contextlib.suppress(OSError):  # a full disk: the name of the holder is a courtesy
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())


def _drop_inherited_locks() -> None:
    """A forked data-loader worker that outlives a killed trainer must not keep the run locked."""
    for descriptor in _held_locks:
        os.close(descriptor)
    _held_locks.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_drop_inherited_locks)
