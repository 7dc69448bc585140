"""Options of `regard explain`. No torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ExplanationOptions:
    """Which attention to draw.

    Args:
        point: x and y in pixels of the image whose attention is drawn: --point 120 80.
        layer: number of the layer, from 0; the last if not given.
        head: number of the head, from 0; the mean of all if not given.
        threshold: minimum score of a detection to explain, 0 to 1.
        query: number of the query of a DETR to explain, whatever its score; the best detections if not given.
    """

    point: tuple[float, float] | None = None
    layer: int | None = None
    head: int | None = None
    threshold: float | None = None
    query: int | None = None
