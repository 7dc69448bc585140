"""Timing of alternatives in alternating rounds, so that other load on the machine affects all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class TransformersRow:
    """Milliseconds on one core: medians over the rounds."""

    what: str
    transformers: float
    regard: float

    @property
    def ratio(self) -> float:
        """How many times as fast Regard is."""
        return self.transformers / self.regard


@dataclass(frozen=True)
class Timing:
    """Seconds of one way over all rounds."""

    median: float
    least: float
    most: float

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.least:.3g} to {self.most:.3g})"


def medians(ways: Sequence[Callable[[int], object]], rounds: int) -> list[float]:
    """Return the median seconds of `timed` on one thread."""
    return [timing.median for timing in timed(ways, rounds)]


def timed(ways: Sequence[Callable[[int], object]], rounds: int, threads: int = 1) -> list[Timing]:
    """Return the seconds of each way, a function of the number of the round.

    Every round runs all ways, in reversed order every other time. Round 0 warms caches and is not counted. With one
    thread CPU time is measured, so that other programs matter little; with several the clock is read.
    """
    seconds: list[list[float]] = [[] for _ in ways]
    clock = time.process_time if threads == 1 else time.perf_counter
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for number in range(rounds + 1):
            turn = list(zip(ways, seconds, strict=True))
            for way, taken in turn if number % 2 else reversed(turn):
                start = clock()
                way(number)
                if number:
                    taken.append(clock() - start)
    finally:
        torch.set_num_threads(before)
    return [Timing(statistics.median(taken), min(taken), max(taken)) for taken in seconds]
