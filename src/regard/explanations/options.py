"""What a user may choose of an explanation, checked: kinds, layers, heads, points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from regard.config import unknown_name
from regard.errors import ConfigError
from regard.explanations.explanation import Box


def check_kind(what: str, kinds: Mapping[str, Sequence[str]], model: str, **given: object) -> None:
    """Check a kind of explanation, and that it reads the options that are given.

    Args:
        kinds: of the model, with the options that each reads.
        given: options by name, None where one is not given.

    Raises:
        ConfigError: there is no such kind (C01), or it does not read an option (C09).
    """
    if what not in kinds:
        raise unknown_name(f"kind of explanation of {model}", what, list(kinds), code="C01")
    for name, value in given.items():
        if value is not None and name not in kinds[what]:
            readers = [kind for kind, options in kinds.items() if name in options]
            remedy = f"leave it out, or take what={' or '.join(readers)}"
            raise ConfigError(f"{name} does not go with {what} of {model}", remedy=remedy, code="C09")


def chosen(name: str, number: int | None, count: int, default: int) -> int:
    """A layer or head by its number, from 0; negative ones count from the end. Raises ConfigError (C03)."""
    number = default if number is None else number
    if not -count <= number < count:
        raise ConfigError(f"{name}={number}, there are {count}: 0 to {count - 1}", code="C03")
    return number % count


def cell_of(point: tuple[float, float] | None, extent: Box, grid: Sequence[int]) -> tuple[int, int]:
    """Row and column of the cell in which a point (x, y) lies; of the middle one if None.

    Raises:
        ConfigError: the point lies outside of what the model sees (C03).
    """
    x0, y0, x1, y1 = extent
    x, y = ((x0 + x1) / 2, (y0 + y1) / 2) if point is None else point
    if not (x0 <= x < x1 and y0 <= y < y1):
        seen = f"x {x0:.0f} to {x1:.0f} and y {y0:.0f} to {y1:.0f}"
        raise ConfigError(f"point {x:g} {y:g} lies outside of what the model sees: {seen}", code="C03")
    return int((y - y0) / (y1 - y0) * grid[0]), int((x - x0) / (x1 - x0) * grid[1])
