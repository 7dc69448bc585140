"""The progress of an evaluation on stderr: one line that changes on a terminal, else a line for each tenth."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from regard.errors import counted
from regard.training.reports import format_duration, format_speed

T = TypeVar("T")
SECONDS_BETWEEN = 0.2  # on a terminal
_shown = ContextVar("progress of evaluations is shown", default=False)


@contextmanager
def show_progress(shown: bool) -> Iterator[None]:
    """Let `watch` print within this block. A training evaluates outside of such a block: it has a bar of its own."""
    token = _shown.set(shown)
    try:
        yield
    finally:
        _shown.reset(token)


def watch(batches: Iterable[T], sizes: Sequence[int]) -> Iterator[T]:
    """Yield batches, and print how many images are done.

    Args:
        batches: one for each of `sizes`.
        sizes: images in each batch.
    """
    if not _shown.get():
        yield from batches
        return
    total, done, tenth = sum(sizes), 0, 0
    is_terminal = sys.stderr.isatty()
    started = printed = time.monotonic()
    try:
        for batch, size in zip(batches, sizes, strict=True):
            yield batch  # the caller works on it here
            done, now = done + size, time.monotonic()
            if is_terminal and (now - printed >= SECONDS_BETWEEN or done == total):
                print(f"\r{_line(done, total, now - started)}\x1b[K", end="", file=sys.stderr, flush=True)
                printed = now
            elif not is_terminal and 10 * done // total > tenth:
                print(_line(done, total, now - started), file=sys.stderr, flush=True)
                tenth = 10 * done // total
    finally:
        if is_terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _line(done: int, total: int, seconds: float) -> str:
    speed = done / max(seconds, 1e-9)
    left = format_duration((total - done) / speed)
    images = counted(done, "image", of=total)
    return f"evaluation: {done / total:>4.0%}  {left:>8} left  {images}  {format_speed(speed)}"
