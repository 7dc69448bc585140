"""Options of `regard study NAME`. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

STORE = Path("runs/studies/trained")


@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """How a study runs.

    Args:
        data: data as for train; the study's own if not given.
        epochs: passes over the training images; the study's own number if not given.
        train_images: number of training images, taken evenly from all classes; all if not given. For classifiers.
        seeds: number of runs of each row. More of them later train only what is new.
        jobs: runs at the same time; one per core on a CPU and one on a GPU if not given.
        budget: minutes for all runs together, shared fairly; without it they train for their epochs.
        full: the paper's own recipes: prints their commands, and runs them if --data names the data.
        output: folder of the tables; runs/studies/NAME if not given. The same command resumes a stopped study.
        runs: folder of the trained runs, which studies share.
    """

    data: str | None = None
    epochs: int | None = None
    train_images: int | None = None
    seeds: int = 3
    jobs: int | None = None
    budget: float | None = None
    full: bool = False
    output: Path | None = None
    runs: Path = STORE
