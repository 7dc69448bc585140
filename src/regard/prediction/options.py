"""Options of `regard predict`. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Precision = Literal["auto", "fp32", "tf32", "bf16", "fp16"]


@dataclass(frozen=True, kw_only=True)
class PredictionOptions:
    """Which predictions to keep, and how to look for them.

    Args:
        threshold: minimum score, 0 to 1; if not given the best of the run, else 0.5, and 0.85 or 0.3 for segments.
        segments: published: as in the authors' code; clean: at full resolution, one segment per stuff class; scored:
            by score, without objects that are found twice; auto: published, or scored if scores are sigmoids.
        multi_label: give an object several labels; for detectors with sigmoid scores.
        tile_size: side of tiles in pixels; finds small objects of large images, by tiles and by the whole image.
        tile_overlap: part of a tile that the next one shares, 0 to 0.9; objects should fit into it.
        flip: look at the mirror image too, and merge the boxes.
        top: number of classes that a classifier lists.
        labels: names in pictures: auto leaves them out where they would hide the boxes.
        precision: of the model: fp32; tf32 on GPUs; bf16 or fp16, mixed precision; auto: tf32 on CUDA, else fp32.
    """

    threshold: float | None = None
    segments: Literal["auto", "published", "clean", "scored"] = "auto"
    multi_label: bool = False
    tile_size: int | None = None
    tile_overlap: float = 0.2
    flip: bool = False
    top: int = 5
    labels: Literal["auto", "on", "off"] = "auto"
    precision: Precision = "auto"
