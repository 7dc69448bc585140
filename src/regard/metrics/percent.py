"""Scores as percent for tables."""

from __future__ import annotations

NOT_AVAILABLE = "n/a"


def percent(fraction: float | None) -> str:
    """Return a fraction as percent with one decimal: `0.421` -> `42.1`; `n/a` for None."""
    return NOT_AVAILABLE if fraction is None else f"{100 * fraction:.1f}"
