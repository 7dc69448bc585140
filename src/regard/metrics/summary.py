"""Means of scores, and their text. A mean may be undefined: None, printed as `n/a`."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

NOT_AVAILABLE = "n/a"


def mean(values: npt.NDArray[np.float64]) -> float | None:
    """Return the mean of an array of any shape, or None if it is empty."""
    return float(values.mean()) if values.size else None


def percent(fraction: float | None) -> str:
    """Return a fraction as percent with one decimal: `0.421` -> `42.1`; `n/a` for None."""
    return NOT_AVAILABLE if fraction is None else f"{100 * fraction:.1f}"
