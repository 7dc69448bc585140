"""Named parts of a training step, timed where somebody asks for it: `with span("matching"): ...`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Spans:
    """Seconds of named parts of a program, without those of the parts inside of them.

    Args:
        device: it finishes its work before and after each part, so that the clock tells what the part took.
    """

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = {}
        self._device = device
        self._inner: list[float] = []  # seconds of the parts inside of each part that is open

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the seconds of a block to those of `name`."""
        started = self._now()
        self._inner.append(0.0)
        try:
            yield
        finally:
            taken, inner = self._now() - started, self._inner.pop()
            self.seconds[name] = self.seconds.get(name, 0.0) + taken - inner
            if self._inner:
                self._inner[-1] += taken

    def _now(self) -> float:
        if self._device.type != "cpu":
            torch.accelerator.synchronize(self._device)
        return time.perf_counter()


_current: Spans | None = None


@contextmanager
def measuring(spans: Spans) -> Iterator[None]:
    """Let all parts of a block be timed, in this process."""
    global _current
    _current = spans
    try:
        yield
    finally:
        _current = None


@contextmanager
def span(name: str) -> Iterator[None]:
    """Name a part of a program, for `Spans` and for torch's profiler. Costs microseconds where nobody measures."""
    with torch.profiler.record_function(f"regard {name}"):
        if _current is None:
            yield
        else:
            with _current.timed(name):
                yield
