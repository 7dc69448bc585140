"""Processes that train together: what their end means, and who gets Ctrl-C."""

import os
import signal
import subprocess
import sys

import pytest

from refusals import refused
from regard.errors import MachineError
from regard.training.launch import is_restarted, may_restart, run_processes


@pytest.mark.parametrize("code", [0, 5, 130, 143])
def test_the_processes_have_told_why(monkeypatch, code):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], code))
    if not code:
        run_processes(["train"], 2)
        return
    with pytest.raises(SystemExit) as left:
        run_processes(["train"], 2)
    assert left.value.code == code


@pytest.mark.parametrize("code", [-9, 137])
def test_killed_processes(monkeypatch, code):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], code))
    with refused(MachineError, "signal 9", "memory"):
        run_processes(["train"], 2)


def test_ctrl_c_is_left_to_the_processes(monkeypatch):
    """`subprocess.run` would kill them before they have saved their state."""

    def interrupted(*_, **__):
        os.kill(os.getpid(), signal.SIGINT)
        return subprocess.CompletedProcess([], 130)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        monkeypatch.setattr(subprocess, "run", interrupted)
        with pytest.raises(SystemExit):
            run_processes(["train"], 2)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("what", "code", "says"), [("KeyboardInterrupt", 130, "interrupted"), ("SystemExit(3)", 3, "")]
)
def test_after_ctrl_c_a_process_is_not_taken_apart(what, code, says):
    """What Python does at its end takes seconds once torch is loaded."""
    text = f"""
import atexit, regard.cli

def end(*_, **__):
    raise {what}

atexit.register(print, "taken apart")
regard.cli.app = end
regard.cli.main()
"""
    ended = subprocess.run([sys.executable, "-c", text, "models"], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr.strip()) == (code, says)
    assert ended.stdout.strip() == ("" if code == 130 else "taken apart")


def test_who_starts_again(monkeypatch):
    """torchrun and SLURM count."""
    for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT", "TORCHELASTIC_MAX_RESTARTS"):
        monkeypatch.delenv(name, raising=False)
    assert not is_restarted() and not may_restart()
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    assert not is_restarted() and may_restart()
    for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"):
        with monkeypatch.context() as patch:
            patch.setenv(name, "2")
            assert is_restarted()
