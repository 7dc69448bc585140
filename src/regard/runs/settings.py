"""The settings of a run, resolved from recipe, files, arguments and overrides. No torch is imported."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeGuard

from regard.config import apply_mapping, apply_overrides, near_path
from regard.data.paths import GENERATED, WITH_BOXES, check_data, data_text, refuse_address
from regard.errors import ConfigError
from regard.models.catalog import preset
from regard.models.configs import ClassifierConfig
from regard.models.configs.detr import DETRConfig, DETRDemoConfig
from regard.recipes import DetectorRecipe, Recipe, recipe_for, recipe_from_file
from regard.recipes.classification import imagenet_recipe
from regard.recipes.detection import (
    DetectionRecipe,
    default_recipe,
    detection_recipe_for,
    without_backbone_weights,
)
from regard.training.trackers import check_trackers


def resolve(
    model: str | None,
    data: str | Path | None,
    epochs: int | None,
    output: str | Path | None,
    resume: bool,
    recipe: str | None,
    config: str | Path | None,
    overrides: Sequence[str],
) -> Recipe:
    """Return the settings of a run: recipe or file first, then arguments, then `key=value`; later ones win.

    Raises:
        ConfigError: an unknown model, recipe or setting, or a combination that makes no sense.
    """
    given = [("--config", config is not None), ("--resume", resume), ("--recipe", recipe is not None)]
    sources = [name for name, is_given in given if is_given]
    if len(sources) > 1:
        raise ConfigError(f"{' and '.join(sources)} cannot be combined", remedy="leave one of them out", code="C09")
    if recipe is not None and recipe.endswith((".yaml", ".yml")):
        remedy = f"use --config {shlex.quote(recipe)}"
        raise ConfigError(f"a recipe is a name, {recipe!r} is a file", where="--recipe", remedy=remedy, code="C09")
    if resume:
        if output is None:
            raise ConfigError("--resume needs the run's folder", remedy="add --output RUN", code="C09")
        config = Path(output) / "config.yaml"
        if not config.exists():
            remedy = "leave out --resume"
            remedy = remedy if Path(output).exists() else near_path(Path(output), otherwise=remedy)
            raise ConfigError("no run to resume", where=output, remedy=remedy, code="C09")
    if config is not None:
        settings = recipe_from_file(Path(config))
        if model is not None and model != settings.name:
            raise ConfigError(f"the settings are for {settings.name}, not for {model}", where=config, code="C09")
    else:
        folder = next((word.partition("=")[2] for word in reversed(overrides) if word.startswith("data=")), data)
        settings = _recipe_of(model or _model_for(folder), folder, recipe)
    changes: dict[str, Any] = {} if data is None else {"data": data_text(data)}
    if epochs is not None:
        changes["epochs"] = epochs
    resolved = apply_overrides(apply_mapping(settings, changes), overrides)
    if resolved.name != settings.name:
        remedy = "name the run's folder with --output, the model before all settings"
        raise ConfigError("name is that of the model and cannot be set", where="name", remedy=remedy, code="C09")
    if isinstance(resolved, DetectionRecipe):
        resolved = _with_given(resolved, given_settings(epochs, overrides))
    if not resolved.data:
        raise ConfigError("which data?", remedy="add --data FOLDER, or --data shapes", code="C09")
    return resolved


def _with_given(settings: DetectionRecipe, given: Sequence[str]) -> DetectionRecipe:
    """Return settings of which none contradicts one that the user gave."""
    if "start_from" not in given:
        settings = without_backbone_weights(settings)
    if "model.num_queries" in given and "fit_queries" not in given:  # The data may not replace the number.
        settings = replace(settings, fit_queries=False)
    return settings


def _recipe_of(model: str, data: str | Path | None, recipe: str | None) -> Recipe:
    """Return the named recipe of a model; without a name the published one on ImageNet and COCO, else its default."""
    config = preset(model)
    if isinstance(config, (DETRConfig, DETRDemoConfig)):
        return detection_recipe_for(model, recipe, data)
    if isinstance(config, ClassifierConfig) and recipe is None and data is not None:
        from regard.data.class_images.imagenet import is_imagenet  # imports numpy

        recipe = imagenet_recipe(model) if is_imagenet(data) else None
    return recipe_for(model, recipe)


def _model_for(data: str | Path | None) -> str:
    """Return the model for a folder of data, if the user names none: one that small data and a CPU can train.

    Raises:
        ConfigError: no data, or generated ones, which suit many models (C09).
        DataError: there is no such folder.
    """
    if data is None or data_text(data).partition(":")[0] in GENERATED:
        raise ConfigError("which model?", remedy="see: regard models", code="C09")
    check_data(data_text(data))
    from regard.data.coco.layout import has_panoptic
    from regard.data.formats.find import has_detection

    if has_detection(data):
        return "detr_lite"
    return "detr_lite_panoptic" if has_panoptic(data) else "efficientnet_lite0"


def fits_data(settings: Recipe, recipe: str | None, *, is_new: bool) -> TypeGuard[DetectionRecipe]:
    """Return whether settings are to be chosen by the data: a new run of a detector with the recipe `auto`."""
    if not is_new or not isinstance(settings, DetectionRecipe):
        return False
    return (recipe or default_recipe(settings.name, settings.data)) == "auto"


def given_settings(epochs: int | None, overrides: Sequence[str]) -> list[str]:
    """Return the names of the settings that the user gave."""
    names = [word.partition("=")[0] for word in overrides]
    return names if epochs is None else [*names, "epochs"]


def take_automatic_batch(overrides: Sequence[str]) -> tuple[tuple[str, ...], bool]:
    """Return the words without `batch_size=auto`, and whether that was the last word about it."""
    words = [word.removeprefix("--") for word in overrides]
    about_batch = [k for k, word in enumerate(words) if word.partition("=")[0] == "batch_size"]
    if not about_batch or words[about_batch[-1]] != "batch_size=auto":
        return tuple(overrides), False
    return tuple(word for k, word in enumerate(overrides) if k not in about_batch), True


def check_paths(settings: Recipe) -> None:
    """Check that the data folder and the trackers of a run exist, before anything slow.

    Raises:
        ConfigError: no filesystem has the protocol of an address (C01).
        DataError: there is no such folder, or a detector's data are an address (A64).
        MachineError: the package of a tracker (T15) or of a protocol is not installed.
    """
    check_trackers(settings.log_to or ())
    is_detector = isinstance(settings, DetectorRecipe)
    if is_detector:
        refuse_address(settings.data)
    check_data(settings.data, WITH_BOXES if is_detector else GENERATED)
