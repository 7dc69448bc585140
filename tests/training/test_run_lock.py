"""One job at a time, also over killed trainers and systems without locks."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from refusals import refused
from regard.errors import MachineError, RegardError
from regard.training.run_lock import lock_run


def in_child(action: Callable[[], None]) -> int:
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            action()
            code = 0
        except RegardError as error:
            code = error.exit_code
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_two_jobs_cannot_share_a_run(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "a"

    def take() -> None:
        with lock_run(run):
            pass

    with lock_run(run):
        assert in_child(take) == MachineError.exit_code
        with refused(MachineError, os.getpid(), run, code="T14"):
            take()
        assert in_child(take) == MachineError.exit_code  # the failed attempts did not release it
    assert in_child(take) == 0
    take()


def test_the_lock_dies_with_its_process_not_with_its_workers(tmp_path: Path) -> None:
    ready, told = os.pipe()
    hold, release = os.pipe()
    trainer = os.fork()
    if trainer == 0:
        with lock_run(tmp_path):
            if os.fork() == 0:  # a worker that outlives the trainer
                os.close(release)
                os.write(told, b"x")
                os.read(hold, 1)
                os._exit(0)
            signal.pause()
    os.read(ready, 1)
    os.kill(trainer, signal.SIGKILL)
    os.waitpid(trainer, 0)
    with lock_run(tmp_path):
        pass
    for descriptor in (release, hold, ready, told):
        os.close(descriptor)


def test_lock_on_systems_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.warns(UserWarning, match="second job"), lock_run(tmp_path):
        pass
    (tmp_path / "file").write_text("")
    with refused(MachineError, tmp_path / "file", code="T06"), lock_run(tmp_path / "file"):
        pass
