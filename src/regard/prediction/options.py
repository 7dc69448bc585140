"""Options of `regard predict`. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
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


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """How a job is done: who shares its images, and which kind of file its results are stored in.

    Args:
        shard: I/N, counted from 0: this process takes every N-th image of the list, from image I on; 0/8 to 7/8 for a
            job array of eight. With --json or --parquet it records what it has done, for the same command to go on
            after a failure; in the end the command without --shard joins the records to one file.
        engine: local: this process; ray: all machines of the Ray cluster that runs here or that RAY_ADDRESS names, or
            this machine if there is none.
        parquet: Parquet file for the results, with the columns of --json, instead of it.
    """

    shard: str | None = None
    engine: Literal["local", "ray"] = "local"
    parquet: Path | None = None
