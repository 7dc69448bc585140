"""SIGINT, SIGTERM and SIGUSR1: they end a step after it is done, and an evaluation at once.

SLURM sends SIGUSR1 some minutes before the time of a job is over, if it is asked to (`--signal=USR1@120`).
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Interrupted(BaseException):
    """A stop signal within `StopSignals.interrupting`. No `except Exception` may keep it back."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class StopSignals:
    """Notes the first stop signal. A second one ends the process as usual."""

    numbers = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name))

    def __init__(self) -> None:
        self._received: list[int] = []
        self._interrupts = False

    @contextmanager
    def caught(self) -> Iterator[list[int]]:
        """Yield a list that receives the number of a stop signal."""
        previous: dict[signal.Signals, Any] = {}
        self._received = received = []

        def record(number: int, _: object) -> None:
            received.append(number)
            signal.signal(number, previous[signal.Signals(number)])
            if self._interrupts:
                raise Interrupted(number)

        try:
            for number in self.numbers:
                previous[number] = signal.signal(number, record)
        except ValueError:  # Python allows handlers in the main thread only
            pass
        try:
            yield received
        finally:
            for known, handler in previous.items():
                signal.signal(known, handler)

    @contextmanager
    def interrupting(self, wanted: bool) -> Iterator[None]:
        """Raise `Interrupted` within this block as soon as a signal comes, or at its start if one has come."""
        self._interrupts = wanted
        try:
            if wanted and self._received:
                raise Interrupted(self._received[0])
            yield
        finally:
            self._interrupts = False
