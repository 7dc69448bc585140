"""Runs: `regard.train`. Torch is imported after settings and paths are checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    overrides: Mapping[str, Any] | Sequence[str] = (),
    quiet: bool = False,
    profile: bool = False,
) -> Run:
    """Train a detector or a classifier.

    Args:
        model: a name from `list_models()`; if None `detr_lite` for images with boxes, `detr_lite_panoptic` for those
            with segments alone, and `efficientnet_lite0` for those with classes.
        data: for a detector a folder of COCO, YOLO, Pascal VOC or CSV data (see `open_detection`), for a classifier one
            with a folder for each class (and other layouts, see `open_classification`) or the address of shards
            (`s3://bucket/folder`); or `shapes` for generated images (`shapes:size=96,classes=5`).
        epochs: passes over the training images; the recipe's number if None.
        output: the run's folder; `runs/MODEL-N` if None.
        resume: resume the run in `output` with its own settings; `overrides` replace some. Restarts do so.
        recipe: `auto` (settings chosen from the data), `paper`, `finetune`, `fast`, `panoptic_boxes`,
            `panoptic_masks` or `small`; for a RetinaNet `paper`, `finetune` or `small`; for classifiers `deit`,
            `deit3`, `resolution`, `transfer`, `augreg`, `imagenet`, `cifar`, `finetune` or `small`; by default that of
            the model, for detectors of the DETR family `auto`, on ImageNet and COCO themselves the published one.
        config: a `config.yaml` of an earlier run to start from, instead of `model` and `recipe`.
        teacher: teacher of a classifier: a model name, run or file, `regnety_160`, `timm/NAME` or
            `torchvision/NAME`.
        overrides: all other settings, which are no keywords of this function: `{"lr": 1e-3, "model.num_queries": 50}`,
            nested or not, or words `["lr=1e-3"]`.
        quiet: print nothing.
        profile: measure a dozen steps: `profile.txt` and `pictures/profile.png` in the run tell where a step goes.

    Returns:
        The finished run.

    Raises:
        RegardError: with one line that says what to do.
    """
    from regard.config import as_words
    from regard.errors import ConfigError
    from regard.runs.settings import check_paths, fits_data, given_settings, resolve, take_automatic_batch

    if not resume and _goes_on(output):
        return train(output=output, resume=True, quiet=quiet, profile=profile)
    words = (*(() if teacher is None else (f"teacher={teacher}",)), *as_words(overrides))
    words, find_batch = take_automatic_batch(words)
    check_paths(settings := resolve(model, data, epochs, output, resume, recipe, config, words))
    is_fitted = fits_data(settings, recipe, is_new=not resume and config is None)
    if find_batch and not is_fitted:
        what = "batch_size=auto is for new runs of detectors with the recipe auto"
        raise ConfigError(what, remedy="give a number, or leave it out", code="C09")
    given = given_settings(epochs, words) if is_fitted else None
    from regard.runs.run import run_training  # imports torch

    return run_training(settings, Path(output) if output else None, resume, quiet, given, find_batch, profile)


def _goes_on(output: str | Path | None) -> bool:
    """Return whether torchrun or SLURM starts a run again that has begun.

    Raises:
        ConfigError: torchrun may do so later, and would not find the run (C09).
    """
    from regard.errors import ConfigError
    from regard.training.launch import is_restarted, may_restart

    if output is None and may_restart():
        raise ConfigError("--max-restarts needs the run's folder", remedy="add --output RUN", code="C09")
    return output is not None and is_restarted() and (Path(output) / "config.yaml").exists()
