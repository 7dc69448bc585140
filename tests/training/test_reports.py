"""Rows of `metrics.jsonl` and `metrics.csv`: means that an interruption does not change, in strict JSON."""

import csv
import io
import os
import re
import signal
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from line_task import CONFIG, Line, metrics_of, strict_rows, trainer
from regard.training import reports
from regard.training.loop import Stopped
from regard.training.reports import Reporter, format_speed


class Terms(Line):
    """Some batches have a loss of their own, as those without objects have none for boxes; one is infinite."""

    def loss(self, model, batch):
        loss, _ = super().loss(model, batch)
        logs = {"plain": torch.tensor(float(batch[0]))}
        if batch[0] % 2:
            logs["odd"] = torch.tensor(float("inf") if batch[0] == 13 else 10.0 * batch[0])
        return loss, logs


def test_rows_are_means_over_the_steps_that_have_a_number(tmp_path):
    trainer(tmp_path, Terms(), replace(CONFIG, log_every=4)).fit()
    rows = {row["step"]: row for row in strict_rows(tmp_path) if "train/loss" in row}
    assert list(rows) == [4, 6, 10, 12, 16, 18]  # a row never spans two epochs
    assert rows[4]["train/plain"] == 1.5 and rows[4]["train/odd"] == 20.0
    assert rows[6]["train/odd"] == 50.0 and rows[6]["epoch"] == 1
    assert rows[16]["train/odd"] == 150.0  # of steps 13 and 15, of which one is infinite
    with (tmp_path / "metrics.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["step"] for row in table] == [str(row["step"]) for row in strict_rows(tmp_path)]
    assert table[0]["train/odd"] == "20.0" and table[0]["val/fit"] == ""


def test_numbers_that_are_never_finite_are_null(tmp_path):
    reporter = Reporter(tmp_path, log_every=1, images_per_step=1, quiet=True)
    with reporter.training(0, 0.0, 4):
        reporter.step(1, 0.1, 0.25, {"loss": torch.tensor(1.0), "grad_norm": torch.tensor(float("inf"))})
    (row,) = strict_rows(tmp_path)
    assert row["train/loss"] == 1.0 and row["train/grad_norm"] is None
    assert (tmp_path / "metrics.csv").read_text().splitlines()[1].startswith("1,0.25,1.0,,10.0")


def test_the_table_is_written_once(tmp_path, monkeypatch):
    """It holds all rows: once a checkpoint would take a time that grows with the square of the training."""
    written = []
    monkeypatch.setattr(reports, "write_csv", lambda source, path: written.append(path.name))
    trainer(tmp_path, Terms(), replace(CONFIG, save_minutes=0.0)).fit()
    assert written == ["metrics.csv"]


def test_accumulated_batches_are_one_number(tmp_path):
    trainer(tmp_path, Terms(), replace(CONFIG, log_every=1, accumulate=3, epochs=1)).fit()
    rows = [row for row in strict_rows(tmp_path) if "train/loss" in row]
    assert [(row["train/plain"], row["train/odd"]) for row in rows] == [(1.0, 10.0), (4.0, 40.0)]


def test_a_row_across_a_restart_counts_both_sides(tmp_path):
    def stop(x):
        os.kill(os.getpid(), signal.SIGTERM)
        return x

    config = replace(CONFIG, log_every=6, epochs=1)
    with pytest.raises(Stopped):
        trainer(tmp_path, Terms({3: stop}), config).fit()
    second = trainer(tmp_path, Terms(), config)
    assert second.resume()
    second.fit()
    (row,) = [row for row in strict_rows(tmp_path) if "train/loss" in row]
    assert (row["step"], row["train/plain"], row["train/odd"]) == (6, 2.5, 30.0)


def test_a_start_before_the_first_checkpoint_starts_the_rows_anew(tmp_path):
    def crash(x):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path / "run", Line({5: crash})).fit()
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "tra')
    second = trainer(tmp_path / "run")
    assert second.resume() is False
    second.fit()
    trainer(tmp_path / "whole").fit()
    assert metrics_of(tmp_path / "run") == metrics_of(tmp_path / "whole")


def test_the_last_steps_have_a_row_when_the_clock_ends_a_run(tmp_path):
    config = replace(CONFIG, epochs=10**6, minutes=0.2 / 60, evaluate_every=10**6, log_every=10**6)
    job = trainer(tmp_path, config=config)
    job.steps_per_epoch = 10**6
    done = job.fit()
    assert [(row["step"], "train/loss" in row) for row in strict_rows(tmp_path)] == [
        (done.step, True),
        (done.step, False),
    ]


@pytest.mark.parametrize(
    ("images_per_second", "text"),
    [(1234.5, "1234 images/s"), (99.96, "100.0 images/s"), (12.34, "12.3 images/s"), (1.0, "1.0 images/s"),
     (0.5, "2.0 s/image"), (0.04, "25.0 s/image"), (0.004, "250 s/image")],
)  # fmt: skip
def test_slow_work_is_told_in_seconds_an_image(images_per_second, text):
    assert format_speed(images_per_second) == text


@pytest.mark.parametrize("width", [80, 120])
def test_the_bar_fits_the_terminal_and_its_numbers_keep_their_places(tmp_path, width):
    reporter = Reporter(tmp_path, log_every=1, images_per_step=16)
    screen = io.StringIO()
    reporter.console = Console(file=screen, width=width, force_terminal=True, color_system=None)
    with reporter.training(0, 0.0, 10):
        reporter.step(10, 40.0, 0.05, {"loss": torch.tensor(12.345), "loss_ce": torch.tensor(1.0)})
        reporter._bar.refresh()
        reporter.evaluation(10, {"AP50": 0.5, "AP": 0.1234, "loss": 2.0}, best=True)
        reporter.step(9990, 90000.0, 0.5, {"loss": torch.tensor(0.5)})
        reporter._bar.refresh()
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    lines = [line for line in re.split(r"[\r\n]+", plain) if " left " in line]
    first, last = lines[0], lines[-1]
    assert {len(line) for line in lines} == {width}
    assert re.match(r" +12:40 left .* 5 %  epoch +1  loss 12\.345 +4\.0 images/s$", first)
    assert re.match(r"25:00:00 left ━+.* 50 %  epoch 999  loss  0\.500  AP 0\.123 +1\.8 images/s$", last)
    assert last.count("━") >= 3 and first.index("images/s") == last.index("images/s")
