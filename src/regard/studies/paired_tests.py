"""Tests over seeds: is a difference between two rows more than chance, and if not, how many seeds would tell?

Rows are compared by the same seeds: by the differences of their scores, seed by seed (paired t-test, two-sided).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from types import ModuleType

from regard.errors import MachineError, install_command

ALPHA, POWER = 0.05, 0.8
GRID = 2000  # points of the integral of `power_of`, which then is right to 3 digits
MOST_SEEDS = 1000  # more are not looked for: such a difference is of no use


@dataclass(frozen=True)
class Comparison:
    """A row against the baseline over `pairs` seeds.

    difference: mean of row minus baseline, in the unit of the scores. std: sample standard deviation of the differences
    over the seeds, None for one. p: two-sided probability of a difference of this size by chance, None for one seed.
    seeds_needed: seeds with which a true difference of this size and std would be found with a probability of 0.8
    at a level of 0.05; None where one seed gives no std, there is no difference, or 1000 seeds do not suffice.
    """

    difference: float
    std: float | None
    p: float | None
    pairs: int
    seeds_needed: int | None


def compare(row: Sequence[float], baseline: Sequence[float]) -> Comparison:
    """Compare the scores of the same seeds in the same order.

    Raises:
        ValueError: none, or not as many of one as of the other.
        MachineError: scipy is not installed.
    """
    differences = [one - other for one, other in zip(row, baseline, strict=True)]
    if not differences:
        raise ValueError("no scores to compare")
    mean, count = fmean(differences), len(differences)
    if count < 2:
        return Comparison(mean, None, None, count, None)
    std = stdev(differences)
    return Comparison(mean, std, p_value(mean, std, count), count, seeds_needed(mean, std))


def p_value(mean: float, std: float, count: int) -> float:
    """Two-sided p of the paired t-test, from mean and sample standard deviation of `count` differences."""
    if _is_nothing(std, mean):
        return 1.0 if mean == 0 else 0.0
    return float(2 * _scipy_stats().t.sf(abs(mean) * math.sqrt(count) / std, count - 1))


def seeds_needed(mean: float, std: float, power: float = POWER, alpha: float = ALPHA) -> int | None:
    """Return the least number of pairs with which a paired t-test has the power to see `mean`; at least 2.

    By the noncentral t distribution (Cohen 1988). None if `mean` is 0 or more than 1000 pairs would be needed.
    """
    if mean == 0:
        return None
    if _is_nothing(std, mean):
        return 2
    low, high = 2, MOST_SEEDS
    if power_of(mean, std, high, alpha) < power:
        return None
    while low < high:  # the power rises with the number of pairs
        middle = (low + high) // 2
        low, high = (low, middle) if power_of(mean, std, middle, alpha) >= power else (middle + 1, high)
    return low


def power_of(mean: float, std: float, count: int, alpha: float = ALPHA) -> float:
    """Probability that a two-sided paired t-test of `count` pairs sees a true difference `mean`, of deviation `std`."""
    import numpy as np

    stats = _scipy_stats()
    freedom = count - 1
    limit, shift = stats.t.ppf(1 - alpha / 2, freedom), abs(mean) / std * math.sqrt(count)
    # Over the deviation that a sample may have: scipy's noncentral t is wrong for many pairs and large differences.
    shares = (np.arange(GRID) + 0.5) / GRID
    limits = limit * np.sqrt(stats.chi2.ppf(shares, freedom) / freedom)
    return float((stats.norm.cdf(shift - limits) + stats.norm.cdf(-shift - limits)).mean())


def holm(values: Sequence[float]) -> list[float]:
    """Adjust p values for being several (Holm 1979): the chance of any false find stays below the level."""
    order = sorted(range(len(values)), key=lambda place: values[place])
    adjusted, least = [0.0] * len(values), 0.0
    for rank, place in enumerate(order):
        least = max(least, min(1.0, (len(values) - rank) * values[place]))
        adjusted[place] = least
    return adjusted


def _is_nothing(std: float, mean: float) -> bool:
    """Whether a deviation is no more than rounding."""
    return std <= 1e-12 * max(1.0, abs(mean))


def _scipy_stats() -> ModuleType:
    try:
        from scipy import stats
    except ImportError as error:
        raise MachineError("tests over seeds need the package scipy", remedy=install_command("scipy")) from error
    return stats
