"""A bar with images a second, on a terminal alone."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TimeRemainingColumn
from rich.text import Text


@contextmanager
def progress_bar(images: int) -> Iterator[Callable[[], None]]:
    """Show a bar on stderr within this block if it is a terminal; yield what to call after each of several images.

    Lines that are printed meanwhile stand above the bar, and go where they would go without it.
    """
    console = Console(stderr=True)
    shown = console.is_terminal and images > 1
    columns = (BarColumn(), MofNCompleteColumn(), _Speed(), TimeRemainingColumn(compact=True))
    # Lines on another stream than the terminal, such as a file, are left alone.
    with Progress(
        *columns, console=console, transient=True, disable=not shown, redirect_stdout=sys.stdout.isatty()
    ) as bar:
        task = bar.add_task("", total=images)
        yield lambda: bar.advance(task)


class _Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if not speed else f"{speed:.1f} images/s" if speed >= 1 else f"{1 / speed:.1f} s/image")
