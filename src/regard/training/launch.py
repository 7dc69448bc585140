"""Start several training processes on this machine: `python -m regard.training.launch COUNT train ...`.

This is torchrun without its failure report: the failed process has printed one line, and its exit code is returned.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

from regard.errors import MachineError

STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM)  # exit codes


def run_processes(arguments: Sequence[str], count: int) -> None:
    """Run `regard ARGUMENTS` in `count` processes that train together, and wait until they end.

    Raises:
        SystemExit: a process failed and printed why; the code is that of the first failed process.
        MachineError: the processes were killed.
    """
    with _signals_left_to_others():
        code = subprocess.run(launch_command(arguments, count), env=thread_environment(count)).returncode
    if code in STOPPED:  # the run is saved, and has said so
        raise SystemExit(code)
    if code < 0 or code > 128:
        number = -code if code < 0 else code - 128
        raise MachineError(f"training was ended by signal {number}", remedy="check whether memory ran out")
    if code:
        raise SystemExit(code)


@contextmanager
def _signals_left_to_others() -> Iterator[None]:
    """Let Ctrl-C reach the started processes alone, and wait for them: `subprocess.run` would kill them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, lambda *_: None)  # not SIG_IGN, which the processes would inherit
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def launch_command(arguments: Sequence[str], count: int) -> list[str]:
    """Return the command that runs `regard ARGUMENTS` in `count` processes that train together."""
    if count == 1:
        return [sys.executable, "-m", "regard", *arguments]
    return [sys.executable, "-m", "regard.training.launch", str(count), *arguments]


def thread_environment(count: int) -> dict[str, str]:
    """Return the environment for `count` processes that share the cores: waiting threads must not spin."""
    threads = str(max(1, (os.cpu_count() or 1) // count))
    return {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads), "OMP_WAIT_POLICY": "PASSIVE"}


def is_restarted() -> bool:
    """Return whether this process was started again: by torchrun after a failure, or by SLURM after a requeue."""
    return any(int(os.environ.get(name) or 0) for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"))


def may_restart() -> bool:
    """Return whether torchrun would start the processes again after a failure."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS") or 0) > 0


def first_failure(code: int) -> tuple[bool, int]:
    """Record that this process fails with the exit code `code`.

    When one process fails, the others usually fail as a consequence. Only the first prints its error, and all end with
    its exit code.

    Returns:
        Whether this process failed first among those of torchrun, and the exit code of the one that did.
    """
    own = os.environ.get("TORCHELASTIC_ERROR_FILE")  # One folder per process, in a folder of all.
    if own is None:
        return True, code
    record = Path(own).parent.parent / "first_failure"
    try:
        with record.open("x") as file:
            file.write(f"{code} {own}")
        return True, code
    except FileExistsError:
        first_code, _, first = record.read_text().partition(" ")
        if first == own:
            return True, code
        return False, int(first_code or code)  # The file is empty until the first process has written it.
    except OSError:
        return True, code


def end_at_once(code: int) -> NoReturn:
    """End a process that was stopped, when all it writes is written.

    Taking torch apart, as `sys.exit` does, takes seconds on a busy machine. After Ctrl-C, one process after the other
    would wait for that.
    """
    import multiprocessing

    for worker in multiprocessing.active_children():
        worker.terminate()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # closed by its reader
            stream.flush()
    os._exit(code)


def main(words: Sequence[str]) -> int:
    """Start the processes; return the exit code of the one that failed first, or 0."""
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.disable(logging.ERROR)  # what it logs, the processes have told
    count, *arguments = words
    options = ["--nproc-per-node", count, "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    try:
        run.run(run.parse_args([*options, "-m", "regard", *arguments]))
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        return 128 - code if code < 0 else code
    except SignalException as ended:
        return 128 + ended.sigval
    return 0


if __name__ == "__main__":
    try:
        ended_with = main(sys.argv[1:])
    except KeyboardInterrupt:  # before there are processes that could tell
        print("interrupted", file=sys.stderr)
        ended_with = STOPPED[0]
    if ended_with in STOPPED:
        end_at_once(ended_with)
    sys.exit(ended_with)
