"""The recipe `auto`: settings of a detector for your own images, chosen from the data and the device.

The rule was measured on 160 photographs of raccoons, 60 images of nuclei and 100 images of COCO (docs/results). It is
printed with its reasons and written to config.yaml; a setting that is given wins.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

from regard.errors import counted
from regard.models.configs.detr import DETRConfig
from regard.recipes.detection import DetectionRecipe
from regard.training.config import UNTIL_TIME_IS_UP, batches_per_epoch, steps_per_epoch

CELL = 16  # pixels that the side of a small box should have on a GPU; on a CPU half of them
SHORT_SIDES = (256, 512)  # least and greatest short side on a GPU; a CPU stops at CPU_SHORT_SIDE
CPU_SHORT_SIDE = 384
QUERIES_PER_OBJECT = 2.5  # of proposals, several of which are at one object; else 1.2, as other images may have more
IMAGES_TO_SEE = 6400  # of a training with few images: 40 epochs of 160
EPOCHS = (12, 100)  # least and most
CPU_MINUTES = 18.0  # on a CPU, of up to MINUTES_FOR images; more images get more time in proportion
MINUTES_FOR = 200
EVALUATIONS = 10  # in a training of IMAGES_TO_SEE
PATIENCE = 6  # evaluations without a better score; fewer would cut off the end of the cosine, where scores still rise
MANY_OBJECTS = 50
INTRODUCTION = "The recipe auto chose these settings for your data. To change one, add it to the command:"
FEW_IMAGES, FEW_PER_CLASS = 50, 50


@dataclass(frozen=True, kw_only=True)
class DataSummary:
    """What the rule looks at, of the training images.

    images, classes: their numbers.
    short_side, long_side: medians, in pixels.
    max_objects: objects of the image with most of them, in training and validation.
    objects: mean per image.
    box_side, median_box_side: 10th percentile and median of the square root of a box's area, over the short side of its
        image.
    """

    images: int
    classes: int
    short_side: int
    long_side: int
    max_objects: int
    objects: float
    box_side: float
    median_box_side: float


def fit_to_data(
    recipe: DetectionRecipe, data: DataSummary, *, gpu: bool, given: Collection[str] = (), processes: int = 1
) -> tuple[DetectionRecipe, list[str]]:
    """Return the recipe with settings that suit the data, and one line for each decision.

    Args:
        recipe: the defaults of the model, with the settings that the user gave.
        gpu: whether a GPU trains it.
        given: names of the settings that the user gave, which are kept.
        processes: that train together, each on its own batches.
    """
    short_side, max_size, sizes = _sizes(recipe, data, gpu, given)
    batch_size = _unless_given(recipe, given, "batch_size", max(1, min(16 if gpu else 8, data.images // 4)))
    epochs = max(EPOCHS[0], min(EPOCHS[1], round(IMAGES_TO_SEE / data.images)))
    if "minutes" in given and recipe.minutes is not None:  # The clock ends the training, not the epochs.
        epochs = UNTIL_TIME_IS_UP
    epochs = _unless_given(recipe, given, "epochs", epochs)
    free = gpu or "epochs" in given
    minutes = None if free else CPU_MINUTES * max(1.0, data.images / MINUTES_FOR)
    minutes = _unless_given(recipe, given, "minutes", minutes)
    is_asked_for = "epochs" in given or ("minutes" in given and recipe.minutes is not None)  # and is not cut off
    patience = _unless_given(recipe, given, "patience", 0 if is_asked_for else PATIENCE)
    steps = epochs * steps_per_epoch(batches_per_epoch(data.images, batch_size, processes), recipe.accumulate)
    model, why_model = _model(recipe.model, data, short_side, given)
    # Fine maps show the backbone other patterns than ImageNet's photographs.
    lr_backbone = recipe.lr / 3 if model.proposals and recipe.start_from == "backbone" else recipe.lr_backbone
    every = max(1, round(min(epochs, IMAGES_TO_SEE / data.images) / EVALUATIONS))
    fitted = replace(
        recipe, model=model, short_side=short_side, max_size=max_size, batch_size=batch_size, epochs=epochs,
        minutes=minutes, patience=patience, evaluate_every=_unless_given(recipe, given, "evaluate_every", every),
        ema=_unless_given(recipe, given, "ema", _decay(steps)),
        lr_backbone=_unless_given(recipe, given, "lr_backbone", lr_backbone),
        log_every=_unless_given(recipe, given, "log_every", max(1, min(20, steps // 50))),
    )  # fmt: skip
    decisions = [sizes, _length(fitted, data, steps), _average(fitted), why_model, _rates(fitted), _evaluations(fitted)]
    return fitted, [INTRODUCTION, *filter(None, decisions), *_expectations(data)]


def _length(recipe: DetectionRecipe, data: DataSummary, steps: int) -> str:
    """Return the batch and the length of the training, in words."""
    images = counted(data.images, "image")
    minutes = None if recipe.minutes is None else counted(recipe.minutes, "minute")
    if recipe.epochs >= UNTIL_TIME_IS_UP and recipe.minutes is not None:
        settings = f"batch_size={recipe.batch_size} minutes={recipe.minutes:.3g}"
        return f"{settings}: as many steps on {images} as fit into {minutes}"
    limit = "" if recipe.minutes is None else f" minutes={recipe.minutes:.3g}"
    ends = "" if recipe.minutes is None else f", or as many as fit into {minutes}"
    settings = f"batch_size={recipe.batch_size} epochs={recipe.epochs}{limit}"
    return f"{settings}: {counted(steps, 'step')} on {images}{ends}"


def _average(recipe: DetectionRecipe) -> str | None:
    if not recipe.ema:
        return None
    return f"ema={recipe.ema:g}: scored and kept are weights averaged over about {1 / (1 - recipe.ema):.0f} steps"


def _rates(recipe: DetectionRecipe) -> str:
    """Return the weights to start from, the learning rates, and what they leave as it is, in words."""
    if recipe.freeze_detector:
        frozen = "only the mask head learns"
    elif recipe.lr_backbone == 0:
        frozen = "the backbone is frozen"
    elif recipe.model.backbone_norm == "frozen":
        frozen = "batch norm of the backbone is frozen"
    else:
        frozen = "nothing is frozen"
    known = {"none": "random weights", "backbone": "ImageNet weights of the backbone"}
    start = known.get(recipe.start_from, f"the weights of {recipe.start_from}")
    warmup = f"; the rates rise over the first {recipe.warmup_share:.0%}" if recipe.warmup_share else ""
    settings = f"start_from={recipe.start_from} lr={recipe.lr:g} lr_backbone={recipe.lr_backbone:g}"
    return f"{settings}: starts from {start}{warmup}; {frozen}"


def _evaluations(recipe: DetectionRecipe) -> str:
    every = "epoch" if recipe.evaluate_every == 1 else f"{recipe.evaluate_every} epochs"
    stop = f"stops after {recipe.patience} without a better score" if recipe.patience else "does not stop early"
    return f"evaluate_every={recipe.evaluate_every} patience={recipe.patience}: evaluates every {every}, {stop}"


def scale_to_batch(
    recipe: DetectionRecipe, batch_size: int, before: int, given: Collection[str]
) -> tuple[DetectionRecipe, str]:
    """Return the recipe with another batch size and learning rates in proportion (Goyal et al. 2017), and why.

    Args:
        recipe: settings whose learning rates are for batches of `before` images.
        batch_size: images of a batch.
        before: images of a batch until now.
        given: names of the settings that the user gave, which are kept.
    """
    factor = batch_size / before
    rates = {name: getattr(recipe, name) * factor for name in ("lr", "lr_backbone") if name not in given}
    names = " and ".join(rates) or "given learning rates"
    what = f"{names} times {factor:.3g}, in proportion to the batch" if rates else f"{names} are kept"
    return replace(recipe, batch_size=batch_size, **rates), what


def _expectations(data: DataSummary) -> list[str]:
    """Return what keeps a detector from learning, in words."""
    lines = []
    per_class = data.images * data.objects / data.classes
    if data.images < FEW_IMAGES:
        lines.append(f"warning: {data.images} images are few: expect a rough detector, and scores that vary by chance")
    elif per_class < FEW_PER_CLASS:
        what = f"warning: {data.classes} classes have {per_class:.0f} objects each on average"
        lines.append(f"{what}: expect low scores; a class is learned from about {FEW_PER_CLASS} objects on")
    return lines


def _unless_given(recipe: DetectionRecipe, given: Collection[str], name: str, value: Any) -> Any:
    return getattr(recipe, name) if name in given else value


def _sizes(recipe: DetectionRecipe, data: DataSummary, gpu: bool, given: Collection[str]) -> tuple[int, int, str]:
    """Return short_side and max_size, and why: a small box is about one cell wide if the device can train such images.

    On a CPU more steps on smaller images learn more. A size that is given bounds the other.
    """
    wanted = max(SHORT_SIDES[0], (CELL if gpu else CELL / 2) / max(data.box_side, 1e-3))
    chosen = 32 * round(min(wanted, SHORT_SIDES[1] if gpu else CPU_SHORT_SIDE) / 32)
    if "max_size" in given:
        chosen = min(chosen, recipe.max_size)
    short_side = _unless_given(recipe, given, "short_side", chosen)
    aspect = min(2.0, max(1.25, data.long_side / data.short_side))
    max_size = _unless_given(recipe, given, "max_size", 32 * math.ceil(short_side * aspect / 32))
    images = f"images, here of {data.long_side} x {data.short_side} pixels, are resized to this"
    box = f"small objects are then {short_side * data.box_side:.0f} pixels wide"
    return short_side, max_size, f"short_side={short_side} max_size={max_size}: {images}; {box}"


def _model(model: DETRConfig, data: DataSummary, short_side: int, given: Collection[str]) -> tuple[DETRConfig, str]:
    """Return the model with enough queries, and with fine maps for small boxes, and why."""
    changes: dict[str, Any] = {}
    if model.anchors:
        changes["anchor_size"] = round(min(0.9, max(0.02, data.median_box_side)), 2)
    if model.anchors and model.sigmoid and model.backbone != "small" and data.box_side * short_side < 2 * CELL:
        # Cells of 8 pixels, each of which proposes a box. Self-attention over so many would take most of the time.
        changes |= {"feature_maps": 3, "encoder_layers": 0, "proposals": True}
    per_object = QUERIES_PER_OBJECT if changes.get("proposals", model.proposals) else 1.2
    changes["num_queries"] = max(model.num_queries, 10 * math.ceil(per_object * data.max_objects / 10))
    if data.max_objects > MANY_OBJECTS:  # Copies of many objects cost more time than they save.
        changes |= {"query_groups": 1, "denoising_groups": min(model.denoising_groups, 1)}
    changes = {name: value for name, value in changes.items() if f"model.{name}" not in given}
    shown = " ".join(f"model.{name}={value}" for name, value in changes.items() if value != getattr(model, name))
    why = f"for up to {counted(data.max_objects, 'object')} in an image"
    if "anchor_size" in changes:
        why += f"; the median one has {data.median_box_side:.2g} of the image's short side"
    return replace(model, **changes), f"{shown}: {why}" if shown else f"the model stays as it is {why}"


def _decay(steps: int) -> float:
    """Return the decay of the moving average, which looks back over a tenth of the steps, 10 to 5000 of them."""
    return round(1 - 1 / min(5000, max(10, steps / 10)), 4)
