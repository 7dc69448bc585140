"""Report the progress of a run: a progress bar, lines of text, `metrics.jsonl`, `metrics.csv` and trackers."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column
from torch import Tensor

from regard.errors import cause, escape
from regard.safe_files import naming, replace_text
from regard.training.rows import read_rows, write_csv
from regard.training.trackers import Tracker, start_trackers

# Shown on the screen; the files have all numbers.
TRAINING_METRICS = ("loss", "loss_ce", "loss_bbox", "loss_giou", "loss_mask", "loss_dice", "class_error", "top1")
EVALUATION_METRICS = ("PQ", "mask_AP", "AP", "AP50", "top1", "top5", "loss")
BAR_METRICS = ("PQ", "AP", "top1")  # the first that an evaluation has stands beside the bar


class Reporter:
    """Collect the numbers of the steps; print and write their means.

    Args:
        run: the run's folder, or None to write no files (processes other than the first).
        log_every: steps between rows of `metrics.jsonl`.
        images_per_step: images of one step in all processes together, for the throughput.
        quiet: print nothing.
        log_to: names of trackers (`regard.training.trackers`).
        settings: of the run, nested, for the trackers.
    """

    def __init__(
        self,
        run: Path | None,
        *,
        log_every: int,
        images_per_step: int,
        quiet: bool = False,
        log_to: Sequence[str] = (),
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.run = run
        self.log_every = log_every
        self.images_per_step = images_per_step
        self.console = Console(file=sys.stderr, quiet=quiet or run is None)
        self._waiting: list[Mapping[str, Tensor]] = []  # numbers of the steps since the last row, on the device
        self._fetched: list[dict[str, float | None]] = []  # the earlier ones of these steps, on the CPU
        self._since = (0, 0.0)  # step and seconds of training at the last row
        self._bar: Progress | None = None
        self._score = ""  # of the last evaluation, for the bar
        self._steps_per_epoch = 1
        self._log_to = log_to
        self._settings = settings or {}
        self._trackers: dict[str, Tracker] = {}

    @contextmanager
    def training(self, step: int, seconds: float, steps_per_epoch: int) -> Iterator[None]:
        """Show a progress bar if the output is a terminal, and write `metrics.csv` at the end.

        Args:
            step: optimizer steps done before.
            seconds: seconds of training done before.
            steps_per_epoch: optimizer steps per epoch.
        """
        self._since, self._steps_per_epoch = (step, seconds), steps_per_epoch
        if self.run is not None:
            self._trackers = start_trackers(self._log_to, self.run, self._settings, step)
        # No redirection: a forked worker process that prints would wait forever for the bar's lock.
        bar = Progress(
            TextColumn("{task.description}", table_column=Column(no_wrap=True)),
            BarColumn(bar_width=None),  # the rest of the line
            TextColumn("{task.percentage:>3.0f} %  {task.fields[numbers]}", table_column=Column(no_wrap=True)),
            console=self.console,
            expand=True,
            redirect_stdout=False,
            redirect_stderr=False,
            disable=not self.console.is_terminal,
        )
        with bar:
            self._bar = bar
            self._task = bar.add_task("first steps", total=1.0, numbers="")
            try:
                yield
            except BaseException:
                with suppress(OSError):  # which would hide why the training ended
                    self._end()
                raise
            self._end()

    def _end(self) -> None:
        self._bar = None
        self._to_trackers(lambda tracker: tracker.close())
        if self.run is not None:  # once, not at every checkpoint: it reads all rows
            write_csv(self.run / "metrics.jsonl", self.run / "metrics.csv")

    def step(self, step: int, seconds: float, share: float, logs: Mapping[str, Tensor]) -> None:
        """Record the numbers of a step.

        Args:
            step: optimizer steps done.
            seconds: seconds of training so far.
            share: fraction of the training that is done, 0..1.
            logs: name -> scalar tensor.
        """
        self._waiting.append(logs)
        count = len(self._fetched) + len(self._waiting)
        if count >= self.log_every or step % self._steps_per_epoch == 0 or share >= 1.0:
            self._flush(step, seconds, share)

    def evaluation(self, step: int, scores: Mapping[str, float], best: bool) -> None:
        """Write and print the numbers of an evaluation."""
        self._write({"step": step, "epoch": self._epoch(step), **{f"val/{k}": v for k, v in scores.items()}})
        self._score = next((f"{name} {scores[name]:.3f}" for name in BAR_METRICS if name in scores), "")
        main = "  ".join(f"{k} {v:.3f}" for k, v in scores.items() if k in EVALUATION_METRICS)
        self.say(f"step {step}, epoch {self._epoch(step):.1f}: {main}{'  (best so far)' if best else ''}")

    def say(self, text: str) -> None:
        """Print a line of text above the progress bar."""
        (self._bar.console if self._bar else self.console).print(text, markup=False, highlight=False, soft_wrap=True)

    def pending(self) -> list[dict[str, float | None]]:
        """Return the numbers of the steps since the last row; a resumed run needs them to write the same rows."""
        if self._waiting:
            # A single transfer from the device for all numbers of all steps.
            values = iter(torch.stack([v.float() for logs in self._waiting for v in logs.values()]).tolist())
            self._fetched += [{name: _finite_or_none(next(values)) for name in logs} for logs in self._waiting]
            self._waiting = []
        return list(self._fetched)

    def rewind(self, step: int, pending: Iterable[Mapping[str, float | None]] = ()) -> None:
        """Remove the rows of steps after `step` and an incomplete last line; restore what `pending` returned."""
        self._waiting, self._fetched = [], [dict(numbers) for numbers in pending]
        if self.run is None or not (self.run / "metrics.jsonl").exists():
            return
        path = self.run / "metrics.jsonl"
        rows = [row for row in read_rows(path) if row["step"] <= step]
        replace_text(path, "".join(json.dumps(row) + "\n" for row in rows))

    def _flush(self, step: int, seconds: float, share: float) -> None:
        means = _means(self.pending())
        steps, time_taken = step - self._since[0], max(1e-9, seconds - self._since[1])
        speed = steps * self.images_per_step / time_taken
        self._fetched, self._since = [], (step, seconds)
        row = {"step": step, "epoch": self._epoch(step), **{f"train/{k}": v for k, v in means.items()}}
        row["images_per_second"], row["seconds"] = round(speed, 2), round(seconds, 3)
        if torch.cuda.is_available():
            row["gpu_memory_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 3)
        self._write(row)
        note = "  ".join(
            f"{k.removeprefix('loss_')} {means[k]:.3f}" for k in TRAINING_METRICS if means.get(k) is not None
        )
        left = seconds * (1 / share - 1) if share else 0.0
        note += f"  {format_speed(speed)}  {format_duration(left)} left"
        if self._bar is not None:
            numbers = _bar_numbers(self._epoch(step), means.get("loss"), self._score, speed)
            self._bar.update(
                self._task, completed=share, description=f"{format_duration(left):>8} left", numbers=numbers
            )
        if not self.console.is_terminal and step % self._steps_per_epoch == 0:
            self.say(f"epoch {self._epoch(step):.0f}  {100 * share:.0f} %  {note}")

    def _epoch(self, step: int) -> float:
        return round(step / self._steps_per_epoch, 4)

    def _write(self, row: dict[str, Any]) -> None:
        if self.run is None:
            return
        path = self.run / "metrics.jsonl"
        with naming(path), path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        hidden = ("step", "epoch", "seconds")
        numbers = {name: value for name, value in row.items() if name not in hidden and value is not None}
        self._to_trackers(lambda tracker: tracker.log(numbers, row["step"]))

    def _to_trackers(self, action: Callable[[Tracker], None]) -> None:
        """Call every tracker. One that fails is left out from then on: the training goes on."""
        for name, tracker in list(self._trackers.items()):
            try:
                action(tracker)
            except Exception as error:  # whatever a package raises, a training of days is worth more
                del self._trackers[name]
                self.say(f"warning: {name} failed ({escape(cause(error))}): no more is logged to it")


def mean_by_name(logs: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the mean of each name over the dictionaries that have it, detached."""
    if len(logs) == 1:
        return {name: value.detach() for name, value in logs[0].items()}
    names = dict.fromkeys(name for numbers in logs for name in numbers)
    return {name: torch.stack([numbers[name].detach() for numbers in logs if name in numbers]).mean() for name in names}


def _means(numbers: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    """Return the mean of each name over the steps that have it: a batch without objects has fewer losses."""
    known: dict[str, list[float]] = {}
    for step in numbers:
        for name, value in step.items():
            known.setdefault(name, []).extend([] if value is None else [value])
    return {name: sum(values) / len(values) if values else None for name, values in known.items()}


def _finite_or_none(value: float) -> float | None:
    """Return None for a value that JSON cannot hold, such as an infinite gradient norm, whose step fp16 skips."""
    return value if math.isfinite(value) else None


def _bar_numbers(epoch: float, loss: float | None, score: str, images_per_second: float) -> str:
    """Return the numbers beside the bar: they fit 80 columns with it, and keep their places."""
    speed, unit = format_speed(images_per_second).split()
    shown = "" if loss is None else f"{loss:.{3 if loss < 100 else 1}f}"
    return f"epoch {math.ceil(epoch):>3}  loss {shown:>6}  {score:<10}  {speed:>5} {unit:<8}"


def format_speed(images_per_second: float) -> str:
    """Return a speed as `12.3 images/s`, and below one image a second as `2.5 s/image`."""
    slow = images_per_second < 1
    number = 1 / max(images_per_second, 1e-9) if slow else images_per_second
    return f"{number:.{1 if number < 100 else 0}f} {'s/image' if slow else 'images/s'}"


def format_duration(seconds: float) -> str:
    """Return seconds as `m:ss` or `h:mm:ss`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
