"""One job at a time writes to a run folder."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path

from regard.errors import MachineError
from regard.safe_files import hold_lock


@contextlib.contextmanager
def lock_run(run: Path) -> Iterator[None]:
    """Hold the run folder for this process, so that no second job writes to it.

    Where the system has no locks (Windows, some network file systems), the run continues without one after a
    warning.

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
            warnings.warn(f"{run} cannot be locked here: start no second job on it", stacklevel=3)
        yield
