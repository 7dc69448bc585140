"""Runs: `regard.train`. Torch is imported when settings and paths are known to be right."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from regard.runs.run import Run


def train(
    model: str | None = None,
    data: str | Path | None = None,
    *,
    epochs: int | None = None,
    output: str | Path | None = None,
    resume: bool = False,
    recipe: str | None = None,
    config: str | Path | None = None,
    teacher: str | Path | None = None,
    overrides: Sequence[str] = (),
    quiet: bool = False,
) -> Run:
    """Train a detector or a classifier.

    Args:
        model: a name of `list_models()`.
        data: for a detector a folder in COCO's layout, for a classifier one with a folder for each class (and other
            layouts, see `open_classification`); or `shapes` for generated images (`shapes:size=96,classes=5`).
        epochs: passes over the training images; the recipe's number if None.
        output: the run's folder; `runs/MODEL-N` if None.
        resume: go on with the run in `output`; its own settings apply, `overrides` on top.
        recipe: `paper`, `finetune`, `fast`, `panoptic_boxes`, `panoptic_masks` or `small`; of classifiers `deit`,
            `deit3`, `resolution`, `transfer`, `augreg`, `imagenet`, `cifar`, `finetune` or `small`; the model's own if
            None: on ImageNet itself the published one.
        config: a `config.yaml` of an earlier run to start from, instead of `model` and `recipe`.
        teacher: what a classifier learns from beside the labels: a model, run or file, `regnety_160`, `timm/NAME` or
            `torchvision/NAME`.
        overrides: settings as `key=value`.
        quiet: print nothing.

    Raises:
        ConfigError, DataError, CheckpointError, DivergedError, MachineError: with one line that says what to do.
    """
    from regard.runs.settings import check_paths, resolve

    words = overrides if teacher is None else (f"teacher={teacher}", *overrides)
    settings = resolve(model, data, epochs, output, resume, recipe, config, words)
    check_paths(settings)
    from regard.runs.run import run_training  # imports torch

    return run_training(settings, Path(output) if output else None, resume, quiet)
