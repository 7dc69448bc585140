"""Options of `regard predict`. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class PredictionOptions:
    """Which predictions to keep.

    Args:
        threshold: minimum score of an object, 0 to 1; 0.5 if not given, 0.85 or 0.3 for segments.
        segments: published: as in the authors' code; clean: at full resolution, one segment per stuff class.
        top: number of classes that a classifier lists.
    """

    threshold: float | None = None
    segments: Literal["published", "clean"] = "published"
    top: int = 5
