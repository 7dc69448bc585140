"""Two hundred kills at random times, over four kinds of training: each run goes on to the weights of one left alone.

Takes some minutes: `uv run pytest -m slow tests/runs/test_kill.py -s` prints after which step each kill fell.
"""

import hashlib
import json
import os
import random
import signal
import time
from pathlib import Path

import pytest

import killed_runs
from color_data import write_colors
from regard.data.generated.shapes import ShapesConfig, write_shapes
from regard.errors import RegardError
from regard.training.checkpoints import newest_checkpoint, read_checkpoint
from regard.training.rows import read_rows

KILLS = 50  # of each kind of training
KILLS_OF_A_RUN = 5
# A checkpoint after every step, so that a kill falls into the writing of one about as often as between two.
EVERY = ["save_minutes=0", "evaluate_every=3", "workers=0", "device=cpu", "--epochs", "3"]
DETECTOR = ["--recipe", "small", "batch_size=4", "model.embed_dim=16", "model.num_heads=2", "model.feedforward_dim=16"]
CLASSIFIER = ["batch_size=6", "model.layers=[1,1,1]", "model.widths=[8,8,8]", "augmentation=cifar"]
TRAININGS = {
    "detection": ["detr_tiny", "--data", "objects", *DETECTOR],
    "panoptic": ["detr_tiny_panoptic", "--data", "objects", *DETECTOR],
    "classification": ["resnet20", "--data", "colors", *CLASSIFIER],
    "distillation": ["resnet20", "--data", "colors", "--teacher", "teacher", *CLASSIFIER],
}

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")]


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A folder with data for all of them, in which they run."""
    write_shapes(ShapesConfig(size=32, train=16, val=2), tmp_path / "objects")
    write_colors(tmp_path / "colors", train=12)
    support = Path(killed_runs.__file__).parent
    for name, value in (("OMP_NUM_THREADS", "1"), ("REGARD_HOME", str(tmp_path / "home"))):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(support), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def newest_step(run: Path) -> int:
    names = [p.name for p in (run / "checkpoints").glob("step_*") if p.name.removeprefix("step_").isdecimal()]
    return max((int(name.removeprefix("step_")) for name in names), default=0)


def unreadable(run: Path) -> int:
    """The number of checkpoints that cannot be read; every byte is compared with the manifest."""
    bad = 0
    for folder in (run / "checkpoints").glob("step_*"):
        if "tmp" not in folder.name:
            try:
                read_checkpoint(folder)
            except RegardError:
                bad += 1
    return bad


def left_by(run: Path) -> tuple[dict[str, str], list[dict]]:
    """Hashes of the last weights and optimizer, and the rows of metrics without their times."""
    last = newest_checkpoint(run / "checkpoints")
    assert last is not None
    hashes = {f"{last.name}/{p.name}": hashlib.sha256(p.read_bytes()).hexdigest() for p in last.glob("*.safetensors")}
    rows = read_rows(run / "metrics.jsonl")
    return hashes, [{k: v for k, v in row.items() if k not in ("images_per_second", "seconds")} for row in rows]


def finish(words: list[str], run: Path) -> float:
    """Train to the end; return the seconds."""
    begun, log = time.monotonic(), run.with_suffix(".log")
    process = killed_runs.start([*words, "--output", str(run)], log)
    process.join()
    assert process.exitcode == 0, log.read_text()
    return time.monotonic() - begun


@pytest.mark.parametrize("kind", TRAININGS)
def test_killed_runs_end_with_the_same_weights(desk, kind):
    words = [*TRAININGS[kind], *EVERY]
    if kind == "distillation":
        finish([*TRAININGS["classification"], *EVERY], desk / "teacher")
    seconds = finish(words, desk / "whole")
    expected = left_by(desk / "whole")
    steps = newest_step(desk / "whole")
    assert len(expected[0]) >= 2 and steps > 10  # weights and optimizer
    chance = random.Random(time.time_ns())
    kills = runs = bad = 0
    while kills < KILLS:
        run, runs, mine = desk / f"run_{runs}", runs + 1, []
        while len(mine) < KILLS_OF_A_RUN and kills < KILLS:
            again = ["--resume"] if (run / "config.yaml").exists() else words
            process = killed_runs.start([*again, "--output", str(run)], run.with_suffix(".log"))
            # While it starts, after a step, while it saves or evaluates; never by the clock, which other work slows.
            target = chance.randint(newest_step(run), steps)
            while process.is_alive() and newest_step(run) < target:
                time.sleep(0.002)
            process.join(chance.uniform(0, seconds / steps))
            process.kill()
            process.join()
            if process.exitcode != -signal.SIGKILL:
                assert process.exitcode == 0, run.with_suffix(".log").read_text()
                break
            kills += 1
            mine.append(newest_step(run))
            bad += unreadable(run)
        finish(["--resume"] if (run / "config.yaml").exists() else words, run)
        same = left_by(run) == expected
        print(f"{kind}: killed after steps {mine}: {'bit-identical' if same else 'OTHER WEIGHTS'}", flush=True)
        assert same, json.dumps([left_by(run), expected], indent=1)
    print(f"{kind}: {kills} kills in {runs} runs, {bad} unreadable checkpoints", flush=True)
    assert bad == 0
