"""Ctrl-C while `regard quickstart` trains. Generates its images first: `uv run pytest -m slow tests/studies`."""

import os
import signal
import subprocess
import sys
import time

import pytest

from regard.training.checkpoints import newest_checkpoint, read_checkpoint


@pytest.mark.slow
def test_ctrl_c(tmp_path):
    """All processes end soon; what is said is how to go on, and the checkpoint is whole."""
    run = tmp_path / "run"
    environment = {**os.environ, "REGARD_HOME": str(tmp_path / "home")}
    process = subprocess.Popen(
        [sys.executable, "-m", "regard", "quickstart", "--output", str(run)],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    while not (run / "metrics.jsonl").exists():
        assert process.poll() is None
        time.sleep(0.1)
    time.sleep(1)
    sent = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    code = process.wait(timeout=60)
    assert time.monotonic() - sent < 2
    _, said = process.communicate()
    step = newest_checkpoint(run / "checkpoints")
    launcher = "torchrun --nproc-per-node 2 -m " if (os.cpu_count() or 1) > 1 else ""
    assert code == 130 and said.splitlines()[-2:] == [
        f"stopped at step {step.name.removeprefix('step_')}, continue with:",
        f"{launcher}regard train --output {run} --resume",
    ]
    read_checkpoint(step)  # compares every byte with the manifest
    assert [path.name for path in (run / "checkpoints").iterdir()] == [step.name]
