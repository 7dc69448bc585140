"""Twenty kills at random times while a detector trains: every run goes on to the weights of a run left alone.

Takes several minutes: `uv run pytest -m slow tests/runs/test_kill.py -s` prints where each kill fell.
"""

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from regard.errors import RegardError
from regard.training.checkpoints import newest_checkpoint, read_checkpoint

KILLS = 20
# A checkpoint after each of 40 steps, so that a kill falls into the writing of one about as often as between two.
RUN = [
    "detr_tiny", "--data", "shapes:size=64,train=32,val=2", "batch_size=4", "epochs=5", "evaluate_every=5",
    "save_minutes=0", "workers=0",
]  # fmt: skip

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")]


def start(home: Path, run: Path, *arguments: str) -> subprocess.Popen:
    environment = {**os.environ, "REGARD_HOME": str(home), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, "-m", "regard", "train", *arguments, "--output", str(run)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def wait_for_a_checkpoint(process: subprocess.Popen, run: Path, after: int) -> bool:
    """Whether there is a checkpoint of a step later than `after` before the process ends."""
    while process.poll() is None:
        if newest_step(run) > after:
            return True
        time.sleep(0.005)
    return False


def newest_step(run: Path) -> int:
    names = [p.name for p in (run / "checkpoints").glob("step_*") if p.name.removeprefix("step_").isdecimal()]
    return max((int(name.removeprefix("step_")) for name in names), default=0)


def check_all_checkpoints(run: Path) -> None:
    for folder in (run / "checkpoints").iterdir():
        if "tmp" not in folder.name:
            read_checkpoint(folder)  # compares every byte with the manifest


def digests(run: Path) -> dict[str, str]:
    last = newest_checkpoint(run / "checkpoints")
    assert last is not None
    return {f"{last.name}/{p.name}": hashlib.sha256(p.read_bytes()).hexdigest() for p in last.glob("*.safetensors")}


def finish(process: subprocess.Popen) -> None:
    _, text = process.communicate(timeout=600)
    assert process.returncode == 0, text


def test_killed_runs_end_with_the_same_weights(tmp_path):
    home = tmp_path / "home"
    finish(start(home, tmp_path / "whole", *RUN))
    expected = digests(tmp_path / "whole")
    assert len(expected) >= 2  # weights and optimizer
    chance = random.Random(time.time_ns())
    kills = runs = unreadable = 0
    while kills < KILLS:
        run, runs, mine, arguments = tmp_path / f"run_{runs}", runs + 1, [], RUN
        while True:
            process = start(home, run, *arguments)
            arguments = ["--resume"]
            if len(mine) == 5 or kills == KILLS or not wait_for_a_checkpoint(process, run, newest_step(run)):
                finish(process)
                break
            time.sleep(chance.uniform(0, 0.6))
            process.kill()
            if process.wait() == -signal.SIGKILL:
                kills += 1
                mine.append(newest_step(run))
                try:
                    check_all_checkpoints(run)
                except RegardError:
                    unreadable += 1
        same = digests(run) == expected
        print(f"killed after steps {mine}: {'bit-identical' if same else 'OTHER WEIGHTS'}")
        assert same
    print(f"{kills} kills in {runs} runs, {unreadable} unreadable checkpoints")
    assert unreadable == 0
