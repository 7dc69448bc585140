"""Two processes of which one is killed, and a SLURM job whose time is over: the weights are those of one long run.

Takes minutes: `uv run pytest -m slow tests/runs/test_restarts.py`.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from regard.training.checkpoints import newest_checkpoint, read_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]
GUIDE = Path(__file__).parents[2] / "docs" / "guide" / "many_gpus.md"
RUN = [
    "train", "detr_tiny", "--data", "shapes:size=64,train=16,val=2", "batch_size=2", "epochs=4", "evaluate_every=4",
    "save_minutes=0", "workers=0", "device=cpu",
]  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("home")


def environment(home: Path, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TORCHELASTIC", "SLURM"))}
    return {**kept, "REGARD_HOME": str(home), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", **more}


def torchrun(run: Path, restarts: int) -> list[str]:
    options = ["--nproc-per-node", "2", "--max-restarts", str(restarts), "--rdzv-backend", "c10d"]
    start = [sys.executable, "-m", "torch.distributed.run", *options, "--rdzv-endpoint", "localhost:0"]
    return [*start, "-m", "regard", *RUN, "--output", str(run)]


@pytest.fixture(scope="module")
def whole(home, tmp_path_factory) -> dict[str, dict[str, torch.Tensor]]:
    """What an uninterrupted run of two processes leaves."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    subprocess.run(torchrun(run, 0), env=environment(home), check=True, timeout=600, capture_output=True)
    return weights(run)


def weights(run: Path) -> dict[str, dict[str, torch.Tensor]]:
    newest = newest_checkpoint(run / "checkpoints")
    assert newest is not None
    return read_checkpoint(newest).tensors


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(tensor, other[part][name]) for part in one for name, tensor in one[part].items()
    )


def wait_for_a_checkpoint(run: Path, process: subprocess.Popen, step: int) -> None:
    while not any((run / "checkpoints" / f"step_{number}").exists() for number in range(step, step + 9)):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def process_of_rank(rank: int, parent: int) -> int:
    """The process that torchrun `parent` started with a rank."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            is_child = int((folder / "stat").read_text().rpartition(")")[2].split()[1]) == parent
            if is_child and f"\0RANK={rank}\0".encode() in b"\0" + (folder / "environ").read_bytes():
                return int(folder.name)
        except OSError:  # it has ended
            continue
    raise AssertionError(f"no process of rank {rank}")


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_restarts_and_ends_with_the_same_weights(tmp_path, home, whole, rank):
    run = tmp_path / "run"
    command = torchrun(run, 1)
    with subprocess.Popen(command, env=environment(home), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        wait_for_a_checkpoint(run, process, 3)
        os.kill(process_of_rank(rank, process.pid), signal.SIGKILL)
        _, text = process.communicate(timeout=600)
    assert process.returncode == 0, text.decode()
    assert same(weights(run), whole)


def test_without_restarts_the_others_end_with_one_line(tmp_path, home):
    run = tmp_path / "run"
    command = torchrun(run, 0)
    with subprocess.Popen(command, env=environment(home), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        wait_for_a_checkpoint(run, process, 1)
        os.kill(process_of_rank(1, process.pid), signal.SIGKILL)
        started = time.monotonic()
        _, text = process.communicate(timeout=600)
    assert process.returncode != 0 and time.monotonic() - started < 60
    assert len([line for line in text.decode().splitlines() if line.startswith("error")]) <= 1


SRUN = """#!/bin/bash
# One machine of $SLURM_NTASKS tasks; the code is the highest of all.
while [[ $1 == --* ]]; do shift; done
for task in $(seq 0 $((SLURM_NTASKS - 1))); do
  SLURM_PROCID=$task SLURM_LOCALID=$task "$@" & tasks+=($!)
done
printf '%s\\n' "${tasks[@]}" > "$TASKS"
code=0
for task in "${tasks[@]}"; do wait "$task"; one=$?; [ $one -gt $code ] && code=$one; done
exit $code
"""
SCONTROL = """#!/bin/bash
if [ "$1" == show ]; then echo localhost; else echo "$@" >> "$TASKS.requeued"; fi
"""


def test_the_slurm_file_of_the_guide_queues_itself_again(tmp_path, home, whole):
    """With tools that do what SLURM's do on one machine, and a smaller training."""
    (text,) = re.findall(r"```bash\n(#!/bin/bash.*?)```", GUIDE.read_text(), re.DOTALL)
    run, tools, tasks = tmp_path / "run", tmp_path / "bin", tmp_path / "tasks"
    assert text.count(" train detr_resnet50 --data coco/ --output runs/detr batch_size=4 workers=7\n") == 1
    text = text.replace("train detr_resnet50 --data coco/ --output runs/detr batch_size=4 workers=7", " ".join(RUN))
    text = text.replace(".venv/bin/python", sys.executable).replace("device=cpu", f"device=cpu --output {run}")
    tools.mkdir()
    for name, content in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tools / name).write_text(content)
        (tools / name).chmod(0o755)
    (tmp_path / "job.sbatch").write_text(text)
    more = {
        "PATH": f"{tools}:{os.environ['PATH']}", "TASKS": str(tasks), "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_NTASKS": "2", "SLURM_JOB_NODELIST": "localhost",
    }  # fmt: skip
    command = ["bash", str(tmp_path / "job.sbatch")]
    with subprocess.Popen(command, env=environment(home, **more), stderr=subprocess.PIPE) as process:
        wait_for_a_checkpoint(run, process, 3)
        for task in tasks.read_text().split():
            os.kill(int(task), signal.SIGUSR1)
        _, said = process.communicate(timeout=600)
    assert process.returncode == 138, said.decode()
    requeued = Path(f"{tasks}.requeued")
    assert requeued.read_text() == f"requeue {os.getpid()}\n"
    again = environment(home, **more, SLURM_RESTART_COUNT="1")
    subprocess.run(command, env=again, check=True, timeout=600, capture_output=True)
    assert len(requeued.read_text().splitlines()) == 1 and same(weights(run), whole)
