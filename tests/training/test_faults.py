"""What days of training bring: numbers that are not finite, full memory and disks, processes that hang, clocks."""

import errno
import os
import time
from dataclasses import replace

import pytest
import torch
from torch import nn

from line_task import CONFIG, Line, metrics_of, same, state_of, trainer
from refusals import refused
from regard.errors import ConfigError, DivergedError, MachineError
from regard.training import data_loader
from regard.training.data_loader import explain_workers, raise_errors, training_loader
from regard.training.distributed import Processes
from regard.training.loop import MOST_OVERFLOWS

CPU = torch.device("cpu")
SKIP = replace(CONFIG, on_nan="skip:2")


def to_nan(x):
    return x * float("nan")


# Numbers that are not finite


@pytest.mark.parametrize("value", ["skip", "skip:0", "skip:-1", "skip:x", "SKIP:3", "", "3", "skip:3 "])
def test_values_of_on_nan(value):
    with refused(ConfigError, "skip:N", code="C02"):
        replace(CONFIG, on_nan=value)


@pytest.mark.parametrize("kind", ["input", "gradient", "matching"])
def test_skipped_steps_change_nothing(tmp_path, kind):
    """T07: weights, average, optimizer and statistics of batch norm are those from before; the next step goes on."""

    class Matching(Line):
        def loss(self, model, batch):
            loss, logs = super().loss(model, batch)
            if kind == "matching" and batch[0] in (8, 9):
                raise DivergedError("costs are not finite", code="T09")
            return loss, logs

    def everything():
        tensors = {**job.model.state_dict(prefix="model."), **job.result.state_dict(prefix="average.")}
        moments = {f"{i}.{k}": v for i, s in enumerate(job.optimizer.state.values()) for k, v in s.items()}
        return {name: value.clone() for name, value in (tensors | moments).items()}

    kept = []

    def spoil(x):
        kept.append(everything())
        if kind == "gradient":
            job.model[0].weight.register_hook(lambda gradient: gradient * (float("inf") if len(kept) < 3 else 1.0))
        return to_nan(x) if kind == "input" else x

    def look(x):
        kept.append(everything())
        return x

    task = Matching({8: spoil, 9: spoil, 10: look})
    job = trainer(tmp_path, task, SKIP, nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 1)))
    said = []
    job.reporter.say = said.append
    assert job.fit().step == 18 and job.progress.skipped == 0
    first, second, after = kept
    assert all(torch.equal(first[name], second[name]) and torch.equal(first[name], after[name]) for name in first)
    warnings = [line for line in said if line.startswith("warning")]
    assert len(warnings) == 2 and "step 8" in warnings[0] and "sample 8" in warnings[0]
    assert all(value.isfinite().all() for value in everything().values())


def test_more_in_a_row_than_may_be_skipped(tmp_path):
    job = trainer(tmp_path, Line(dict.fromkeys((3, 8, 9, 10), to_nan)), SKIP)
    with refused(DivergedError, "step 10", "sample 10", "2 skipped steps", code="T07"):
        job.fit()
    assert state_of(tmp_path)[1]["step"] == 6


def test_skipped_steps_survive_a_stop(tmp_path):
    """The count in a row is part of the checkpoint, and the resumed run ends as the whole one."""
    config = replace(SKIP, save_minutes=0)
    trainer(tmp_path / "whole", Line({8: to_nan}), config).fit()

    def fall(x):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path / "parts", Line({8: to_nan, 9: fall}), config).fit()
    assert state_of(tmp_path / "parts")[1]["skipped"] == 1
    again = trainer(tmp_path / "parts", Line({8: to_nan}), config)
    assert again.resume()
    again.fit()
    assert same(state_of(tmp_path / "whole")[0], state_of(tmp_path / "parts")[0])
    assert metrics_of(tmp_path / "whole") == metrics_of(tmp_path / "parts")


def overflowing(job, steps):
    """Let the gradient overflow in the first `steps` steps, as that of fp16 does."""
    passed = []

    def hook(gradient):
        passed.append(1)
        return gradient * (float("inf") if len(passed) <= steps else 1.0)

    job.model[0].weight.register_hook(hook)
    job.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    return job


def test_the_scale_of_fp16_may_be_sought(tmp_path):
    """T08: the first steps overflow until the scale fits; they are no fault."""
    job = overflowing(trainer(tmp_path), 5)
    assert job.fit().step == 18 and job.progress.skipped == 0 and job.scaler.get_scale() == 2.0**11


def test_fp16_that_always_overflows(tmp_path):
    """T08"""
    job = overflowing(trainer(tmp_path, config=replace(CONFIG, epochs=9)), 99)
    with refused(DivergedError, f"{MOST_OVERFLOWS} steps in a row", "amp=off", code="T08") as caught:
        job.fit()
    assert caught.value.exit_code == 5


# Memory


class Full(Line):
    def __init__(self, error):
        super().__init__()
        self.error = error

    def loss(self, model, batch):
        raise self.error


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), RuntimeError("can't allocate memory: you")]
)
def test_full_memory_names_what_to_lower(tmp_path, error):
    """T18: nothing is tried again with other settings."""
    with refused(MachineError, "batch_size=4", "batch_size=2 accumulate=2", "checkpoint_activations=true", code="T18"):
        trainer(tmp_path / "a", Full(error)).fit()
    least = replace(CONFIG, batch_size=1, checkpoint_activations=True)
    with refused(MachineError, "set smaller images", code="T18"):
        trainer(tmp_path / "b", Full(error), least).fit()
    with pytest.raises(RuntimeError, match="something else"):
        trainer(tmp_path / "c", Full(RuntimeError("something else"))).fit()


# Processes that load images


class Hanging:
    def __len__(self):
        return 4

    def __getitem__(self, index):
        time.sleep(60)


def test_a_hanging_worker_has_a_limit(monkeypatch):
    """T12"""
    monkeypatch.setattr(data_loader, "TIMEOUT", 1)
    order = data_loader.InfiniteBatchSampler(4, 2, 1, Processes(0, 1, CPU))
    data = data_loader.Augmented(Hanging(), lambda sample, _: sample, seed=1)
    with refused(MachineError, "1 seconds", "drive", code="T12"):
        next(raise_errors(training_loader(data, order, torch.stack, 1, CPU)))


def test_a_worker_that_dies_while_it_sends(tmp_path):
    """T10: the connection to it breaks, which torch does not explain; errors of other connections stay as they are."""
    from multiprocessing.connection import Pipe

    here, there = Pipe()
    there.close()
    with refused(MachineError, "killed", "batch_size", code="T10"), explain_workers():
        here.recv()
    with pytest.raises(ConnectionResetError), explain_workers():
        raise ConnectionResetError(errno.ECONNRESET, "of a download")


# The clock


def test_a_clock_that_is_set_back(tmp_path, monkeypatch):
    """T17: durations are those of a clock that nobody sets, and the newest checkpoint is that of the last step."""
    trainer(tmp_path / "whole").fit()
    now = [1e9]

    def back():
        now[0] -= 3600
        return now[0]

    monkeypatch.setattr(time, "time", back)
    run = tmp_path / "parts"

    def fall(x):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer(run, Line({15: fall})).fit()
    for age, path in enumerate(sorted((run / "checkpoints").rglob("*"))):
        os.utime(path, (1e9 - 1000 * age, 1e9 - 1000 * age))
    again = trainer(run)
    assert again.resume() and again.progress.step == 12
    again.fit()
    assert same(state_of(tmp_path / "whole")[0], state_of(run)[0])
    assert all(row["seconds"] >= 0 for row in metrics_rows(run))


def metrics_rows(run):
    from regard.training.rows import read_rows

    return [row for row in read_rows(run / "metrics.jsonl") if "seconds" in row]


# The disk


def test_a_full_disk_at_every_write(tmp_path):
    """T05: files may grow to a limit that is raised step by step, as a disk that is nearly full.

    Each run ends with an error that names a file, or is whole; with room it goes on to the same weights.
    """
    resource = pytest.importorskip("resource")
    trainer(tmp_path / "whole").fit()
    expected = state_of(tmp_path / "whole"), metrics_of(tmp_path / "whole")
    largest = max(path.stat().st_size for path in (tmp_path / "whole").rglob("*") if path.is_file())
    failed = 0
    for limit in range(1, largest + 150, 150):
        run = tmp_path / str(limit)
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
                trainer(run).fit()
                code = 0
            except OSError as error:  # of which MachineError is one
                full = error.errno == errno.EFBIG and str(error.filename).startswith(str(run))
                code = 6 if full or (getattr(error, "code", None) == "T05" and str(run) in str(error)) else 2
            finally:
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert code in (0, 6), f"limit of {limit} bytes: {code}"
        failed += code == 6
        again = trainer(run)
        again.resume()
        again.fit()
        found = state_of(run), metrics_of(run)
        assert same(found[0][0], expected[0][0]) and found[1] == expected[1], f"limit of {limit} bytes"
    assert failed > 5


def test_a_full_disk_does_not_hide_the_first_error(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("regard.training.reports.write_csv", full)
    with refused(DivergedError, "step 8", code="T07"):
        trainer(tmp_path, Line({8: to_nan})).fit()
    with pytest.raises(OSError, match="No space"):
        trainer(tmp_path / "b").fit()
