"""Start several training processes on this machine: `python -m regard.training.launch COUNT train ...`.

This is torchrun without its failure report: the failed process has printed one line, and its exit code is returned.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from regard.errors import MachineError


def run_processes(arguments: Sequence[str], count: int) -> None:
    """Run `regard ARGUMENTS` in `count` processes that train together, and wait until they end.

    Raises:
        SystemExit: a process failed and printed why; the code is that of the first failed process.
        MachineError: the processes were killed.
    """
    code = subprocess.run(launch_command(arguments, count), env=thread_environment(count)).returncode
    if code < 0 or code > 128:
        number = -code if code < 0 else code - 128
        raise MachineError(f"training was ended by signal {number}", remedy="check whether memory ran out")
    if code:
        raise SystemExit(code)


def launch_command(arguments: Sequence[str], count: int) -> list[str]:
    """Return the command that runs `regard ARGUMENTS` in `count` processes that train together."""
    if count == 1:
        return [sys.executable, "-m", "regard", *arguments]
    return [sys.executable, "-m", "regard.training.launch", str(count), *arguments]


def thread_environment(count: int) -> dict[str, str]:
    """Return the environment for `count` processes that share the cores: waiting threads must not spin."""
    threads = str(max(1, (os.cpu_count() or 1) // count))
    return {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads), "OMP_WAIT_POLICY": "PASSIVE"}


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


def main(words: Sequence[str]) -> int:
    """Start the processes; return the exit code of the one that failed first, or 0."""
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
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
    sys.exit(main(sys.argv[1:]))
