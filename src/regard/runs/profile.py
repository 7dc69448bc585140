"""`regard train --profile`: where a training step goes, as a picture and a table in the run's folder."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity

from regard.metrics.charts.style import BLUE, INK, apply, figure, save
from regard.safe_files import replace_text
from regard.structures.spans import Spans, measuring

FIRST, LAST = 3, 13  # steps that are timed, counted from 0; those before warm caches and kernels
OPERATORS = 25  # of the table, the longest


class StepProfile:
    """Times ten steps part by part, then records one with torch's profiler; then it is done and costs nothing.

    Args:
        folder: the run, which gets `profile.txt` and `pictures/profile.png`.
        device: of the model.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.folder = folder
        self.device = device
        self.count = 0  # steps so far
        self._spans = Spans(device)

    @property
    def missing(self) -> int:
        """How many steps are missing for the files to be written."""
        return max(0, LAST + 1 - self.count)

    @contextmanager
    def step(self) -> Iterator[None]:
        """Measure a step, if it is one of those, and write the files after the last one."""
        number, self.count = self.count, self.count + 1
        if FIRST <= number < LAST:
            with measuring(self._spans), self._spans.timed("the rest"):
                yield
        elif number == LAST:
            activities = [ProfilerActivity.CPU]
            if self.device.type == "cuda":
                activities.append(ProfilerActivity.CUDA)
            with torch.profiler.profile(activities=activities) as profiler:
                yield
            longest = "self_cuda_time_total" if self.device.type == "cuda" else "self_cpu_time_total"
            operators = profiler.key_averages().table(sort_by=longest, row_limit=OPERATORS)
            self._write(operators)
        else:
            yield

    def _write(self, operators: str) -> None:
        times = {name: 1000 * seconds / (LAST - FIRST) for name, seconds in self._spans.seconds.items()}
        times = dict(sorted(times.items(), key=lambda item: -item[1]))
        title = f"A training step on {self.device}: {sum(times.values()):.1f} ms, mean of {LAST - FIRST}"
        table = Table("part", title=title, title_justify="left")
        for header in ("ms", "share"):
            table.add_column(header, justify="right")
        for name, each in times.items():
            table.add_row(name, f"{each:.1f}", f"{100 * each / sum(times.values()):.1f} %")
        text = io.StringIO()
        Console(file=text, width=100).print(table)
        replace_text(self.folder / "profile.txt", f"{text.getvalue()}\nOperators of one step\n{operators}\n")
        picture = figure(7, 0.7 + 0.4 * len(times))
        axes = picture.add_subplot()
        bars = axes.barh(list(times), list(times.values()), color=BLUE)
        axes.bar_label(bars, fmt="%.1f", padding=3, color=INK, fontsize=9)
        axes.invert_yaxis()
        axes.set(title=title, xlabel="milliseconds")
        apply(axes)
        save(picture, self.folder / "pictures" / "profile.png")
