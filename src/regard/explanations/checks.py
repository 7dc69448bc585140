"""Checks of the options of an explanation: kinds, layers, heads, points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from regard.errors import ConfigError, unknown_name
from regard.explanations.explanation import Box


def check_kind(what: str, kinds: Mapping[str, Sequence[str]], model: str, **given: object) -> None:
    """Check a kind of explanation and that it uses the given options.

    Args:
        what: kind of explanation.
        kinds: kinds of the model, each with the options that it uses.
        model: name of the model.
        given: options by name; None if not given.

    Raises:
        ConfigError: there is no such kind (C01), or it does not use an option (C09).
    """
    if what not in kinds:
        raise unknown_name(f"kind of explanation of {model}", what, list(kinds), code="C01")
    for name, value in given.items():
        if value is not None and name not in kinds[what]:
            readers = [kind for kind, options in kinds.items() if name in options]
            remedy = f"leave it out, or take what={' or '.join(readers)}"
            raise ConfigError(f"{name} does not apply to {what} of {model}", remedy=remedy, code="C09")


def chosen(name: str, number: int | None, count: int, default: int) -> int:
    """Return a layer or head by its number from 0; negative ones count from the end.

    Raises:
        ConfigError: there is no such number (C03).
    """
    number = default if number is None else number
    if not -count <= number < count:
        raise ConfigError(f"{name}={number}, there are {count}: 0 to {count - 1}", code="C03")
    return number % count


def cell_of(point: tuple[float, float] | None, extent: Box, grid: Sequence[int]) -> tuple[int, int]:
    """Return row and column of the cell that contains a point (x, y); the middle cell if None.

    Raises:
        ConfigError: the point lies outside the area that the model sees (C03).
    """
    x0, y0, x1, y1 = extent
    x, y = ((x0 + x1) / 2, (y0 + y1) / 2) if point is None else point
    if not (x0 <= x < x1 and y0 <= y < y1):
        seen = f"x {x0:.0f} to {x1:.0f} and y {y0:.0f} to {y1:.0f}"
        raise ConfigError(f"point {x:g} {y:g} lies outside the area that the model sees: {seen}", code="C03")
    return int((y - y0) / (y1 - y0) * grid[0]), int((x - x0) / (x1 - x0) * grid[1])
