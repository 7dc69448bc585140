"""Timing of alternatives in alternating rounds, so that other load on the machine affects all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

CPU = torch.device("cpu")


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
class Spread:
    """Seconds of one way over the rounds: median and quartiles."""

    median: float
    low: float
    high: float


def large_products() -> dict[Callable[[int], object], int]:
    """Return ways to compute nothing but sums of products in float32, with the number of operations of each.

    A product of matrices, and a convolution with channels last: which one runs nearer to what a core can do differs by
    the library and the processor. The better rate gives the time of the arithmetic alone.
    """
    side, channels, rows, columns = 1024, 256, 64, 64
    matrix = torch.randn(side, side)
    maps = torch.randn(1, channels, rows, columns).contiguous(memory_format=torch.channels_last)
    kernels = torch.randn(channels, channels, 3, 3).contiguous(memory_format=torch.channels_last)
    return {
        lambda _: matrix @ matrix: 2 * side**3,
        lambda _: torch.nn.functional.conv2d(maps, kernels, padding=1): 2 * 9 * channels**2 * rows * columns,
    }


def medians(ways: Sequence[Callable[[int], object]], rounds: int) -> list[float]:
    """Return the median seconds of CPU time of each way; see `spreads`."""
    return [spread.median for spread in spreads(ways, rounds)]


def spreads(
    ways: Sequence[Callable[[int], object]], rounds: int, device: torch.device = CPU, threads: int = 1
) -> list[Spread]:
    """Return the seconds of each way, a function of the number of the round.

    Every round runs all ways, in reversed order every other time. Round 0 warms caches and is not counted. On the CPU
    it is CPU time, so that other programs matter little, if torch has one thread, and by the clock if it has more. On a
    GPU it is the time until the device has done all.
    """
    clock = time.process_time if threads == 1 else time.perf_counter
    if device.type != "cpu":
        clock = _device_clock(device)
    seconds: list[list[float]] = [[] for _ in ways]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for number in range(rounds + 1):
            turn = list(zip(ways, seconds, strict=True))
            for way, taken in turn if number % 2 else reversed(turn):
                start = clock()
                way(number)
                seconds_taken = clock() - start
                if number:
                    taken.append(seconds_taken)
    finally:
        torch.set_num_threads(before)
    return [_spread(taken) for taken in seconds]


def _device_clock(device: torch.device) -> Callable[[], float]:
    """Return a clock that waits until the device has done what it was given."""

    def clock() -> float:
        torch.accelerator.synchronize(device)
        return time.perf_counter()

    return clock


def _spread(taken: Sequence[float]) -> Spread:
    if len(taken) == 1:
        return Spread(taken[0], taken[0], taken[0])
    low, median, high = statistics.quantiles(taken, n=4, method="inclusive")
    return Spread(median, low, high)
