"""The lock of a run folder, to which only one job may write at a time."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path

from regard.errors import MachineError
from regard.safe_files import hold_lock


@contextlib.contextmanager
def lock_run(run: Path) -> Iterator[None]:
    """Lock the run folder for this process, so that no second job writes to it.

    On systems without file locks (Windows, some network file systems) a warning is given and nothing is locked.

    Args:
        run: the run folder; created if missing.

    Raises:
        MachineError: another job holds the folder (T14), or it cannot be written (T06).
    """

    def refuse(holder: str) -> None:
        what = f"another job writes to this run folder ({holder})"
        raise MachineError(what, where=run, remedy="stop it, or choose another --output", code="T14")

    with contextlib.ExitStack() as stack:
        try:
            run.mkdir(parents=True, exist_ok=True)
            locked = stack.enter_context(hold_lock(run / ".lock", on_busy=refuse))
        except MachineError:
            raise
        except OSError as error:
            what = f"cannot write to the run folder: {error.strerror}"
            raise MachineError(what, where=run, remedy="choose another --output", code="T06") from error
        if not locked:
            warnings.warn(f"{run} cannot be locked on this file system: start no second job in it", stacklevel=3)
        yield
