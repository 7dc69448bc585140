"""Ways to do one thing, measured in turns: what else the machine does slows them all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch


def medians(ways: Sequence[Callable[[int], object]], rounds: int) -> list[float]:
    """Median seconds that each way takes of one core's time; it is called with the number of the round.

    A round runs all ways, in an order that is turned around every time. Round 0 brings files and code into memory and
    is not counted. Time is the processor's, so that other programs count for little.
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
