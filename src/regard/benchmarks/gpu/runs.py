"""Whole runs by the command line: stopped and resumed, and twice the same."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from torch import Tensor

from regard.benchmarks.gpu.session import Session
from regard.training.checkpoints import newest_checkpoint, read_checkpoint


def resume(session: Session) -> None:
    """Train three times, once stopped after the first evaluation and resumed: how far are the weights from the first?

    On a CPU they are equal. Kernels of a GPU may add in any order, so that two runs differ there in any case.
    """
    wanted, codes = _train(session, "first", stop=False)
    for name in ("second", "stopped"):
        found, codes = _train(session, name, stop=name == "stopped")
        far = max(float((found[key].float() - tensor.float()).abs().max()) for key, tensor in wanted.items())
        session.row("resume", run=name, difference=far, exit_codes=" ".join(map(str, codes)))


def _train(session: Session, name: str, *, stop: bool) -> tuple[dict[str, Tensor], list[int]]:
    """Return the weights at the end of a run, and the exit codes of its commands."""
    run = session.output / name
    shutil.rmtree(run, ignore_errors=True)
    size, count = (32, 32) if session.is_small else (64, 1024)
    command = [sys.executable, "-m", "regard", "train"]
    settings = ["epochs=3", "minutes=none", "workers=2", f"device={session.device.type}"]
    data = f"shapes:size={size},train={count},val=8"
    words = [*command, "detr_tiny", "--data", data, "--output", str(run), *settings]
    log = session.output / f"{name}.log"
    with log.open("w") as told, subprocess.Popen(words, stdout=told, stderr=told) as child:
        rows = run / "metrics.jsonl"
        while stop and child.poll() is None and not (rows.exists() and "val/" in rows.read_text()):
            time.sleep(0.02)
        if stop:
            child.send_signal(signal.SIGTERM)
        codes = [child.wait()]
    if stop:
        again = [*command, "--output", str(run), "--resume"]
        with log.open("a") as told:
            codes.append(subprocess.run(again, stdout=told, stderr=told).returncode)
    newest = newest_checkpoint(run / "checkpoints")
    if newest is None:
        raise RuntimeError(f"the run left no checkpoint: {log.read_text()[-200:]}")
    return dict(read_checkpoint(newest, parts=["model"]).tensors["model"]), codes


def gpu_tests(session: Session) -> None:
    """Run `pytest -m gpu` where there is a checkout of the sources."""
    root = Path(__file__).parents[4]
    if session.is_small or not (root / "tests").is_dir():
        session.row("gpu_tests", skipped="they need a GPU and a checkout")
        return
    words = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "--no-header", "-p", "no:cacheprovider"]
    done = subprocess.run(words, cwd=root, env=os.environ, capture_output=True, text=True)
    lines = done.stdout.strip().splitlines()
    failures = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    told = lines[-1] if lines else done.stderr[-200:]
    session.row("gpu_tests", exit_code=done.returncode, told=told, failures=failures[:9])
