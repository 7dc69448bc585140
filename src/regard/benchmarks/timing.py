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


def medians(ways: Sequence[Callable[[int], object]], rounds: int) -> list[float]:
    """Return the median seconds of CPU time of each way, a function of the number of the round.

    Every round runs all ways, in reversed order every other time. Round 0 warms caches and is not counted. CPU time is
    measured, so that other programs matter little.
    """
    seconds: list[list[float]] = [[] for _ in ways]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for number in range(rounds + 1):
            turn = list(zip(ways, seconds, strict=True))
            for way, taken in turn if number % 2 else reversed(turn):
                start = time.process_time()
                way(number)
                if number:
                    taken.append(time.process_time() - start)
    finally:
        torch.set_num_threads(threads)
    return [statistics.median(taken) for taken in seconds]
