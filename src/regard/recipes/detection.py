"""Recipes of DETR: one function per published training, which returns a frozen `DetectionRecipe`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from regard.data.coco.published import is_published_coco
from regard.data.paths import GENERATED, data_text
from regard.errors import ConfigError, unknown_name
from regard.models.catalog import SHORT_SIDES, WEIGHTS, list_models, preset
from regard.models.configs import SMALL_BACKBONES
from regard.models.configs.detr import DETR_PRESETS, DETRConfig
from regard.training.config import TrainingConfig


@dataclass(frozen=True, kw_only=True)
class DetectionRecipe(TrainingConfig):
    """All settings of a training run of a DETR."""

    name: str  # the name of the model
    data: str = ""  # folder of COCO, YOLO, Pascal VOC or CSV data, or `shapes`; required
    model: DETRConfig  # settings of the network; num_classes is taken from the data
    start_from: str = "backbone"  # `backbone`: ImageNet weights; `none`; or a model, run or file, also of the backbone
    short_side: int = 800  # shorter side in pixels at evaluation, and the maximum in training
    max_size: int = 1333  # maximum of the longer side in pixels
    augmentation: Literal["paper", "small", "flip"] = "paper"  # of training images
    no_object_weight: float = 0.1  # weight of the no-object class in the classification loss
    class_weight: float = 1.0  # weight of the classification loss
    bbox_weight: float = 5.0  # weight of the L1 loss of boxes
    giou_weight: float = 2.0  # weight of the GIoU loss of boxes
    mask_weight: float = 1.0  # weight of the focal loss of masks
    dice_weight: float = 1.0  # weight of the dice loss of masks
    auxiliary_losses: bool = True  # losses of all decoder layers, not of the last alone
    # `panoptic`: things and stuff; `instances`: objects; `auto`: panoptic if the model has masks and the data have it
    annotations: Literal["auto", "instances", "panoptic"] = "auto"
    freeze_detector: bool = False  # train only the mask head
    fit_queries: bool = False  # add queries if an image has more objects than queries; otherwise that is an error

    def __post_init__(self) -> None:
        super().__post_init__()
        weights = "no_object_weight", "class_weight", "bbox_weight", "giou_weight", "mask_weight", "dice_weight"
        for name in weights:
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name}={getattr(self, name)}, expected at least 0", code="C03")
        check_sizes(self.short_side, self.max_size)


def check_sizes(short_side: int, max_size: int) -> None:
    """Raise a ConfigError (C03) for sizes of images in pixels that are too small or do not go together."""
    if not 16 <= short_side <= max_size:
        what = f"short_side={short_side} and max_size={max_size}, expected 16 <= short_side <= max_size"
        raise ConfigError(what, code="C03")


LITE = ("detr_lite", "detr_lite_panoptic")  # models for your own images


def paper(name: str) -> DetectionRecipe:
    """Train as in the DETR paper, section 4 and appendix A.4.

    300 epochs of COCO from an ImageNet backbone; the learning rates are divided by 10 after 200 epochs. DETR-R50
    reaches 40.6 AP, and 42.0 with `epochs=500 milestones=0.8`. The paper took 3 days on 16 V100 with 4 images each,
    at the same learning rates.

        torchrun --nproc-per-node 8 -m regard train detr_resnet50 --data coco/ batch_size=8

    A model with masks learns boxes and masks together, of things and stuff if the data have them. float32, as there:
    `amp=auto` is faster on GPUs that have bf16.
    """
    return DetectionRecipe(name=name, model=_config(name), amp="off")


def finetune(name: str) -> DetectionRecipe:
    """Fine-tune COCO detection weights on your own classes: 50 epochs, learning rates divided by 10 after 40.

    Stops early after 15 evaluations without a better score. Use it for fewer than about ten thousand images: DETR
    needs more than that to learn from ImageNet weights alone.

        regard train detr_resnet50 --recipe finetune --data raccoon/
    """
    return replace(
        paper(name), amp="auto", start_from=name, epochs=50, milestones=(0.8,), patience=15, fit_queries=True
    )


def panoptic_boxes(name: str) -> DetectionRecipe:
    """Train the first stage of panoptic segmentation (section 4.4): boxes of things and stuff, no masks.

    300 epochs of COCO as in `paper`.

        regard train detr_resnet50 --recipe panoptic_boxes --data coco/ --output runs/boxes
    """
    return replace(paper(name), annotations="panoptic")


def panoptic_masks(name: str) -> DetectionRecipe:
    """Train the second stage of panoptic segmentation: the mask head on a frozen detector.

    25 epochs of COCO, learning rate divided by 10 after 15; DETR-R50 reaches 43.4 PQ and 31.1 mask AP. The authors
    took 6 hours on 64 V100 (their tracker, #97).

        regard train detr_resnet50_panoptic --recipe panoptic_masks --data coco/ start_from=runs/boxes
    """
    return replace(paper(name), epochs=25, milestones=(0.6,), freeze_detector=True)


def fast(name: str) -> DetectionRecipe:
    """Train DETR with later findings: anchor queries, denoising, query groups, focal loss, pre-norm.

    50 epochs of COCO instead of 300 (DAB-DETR 42.2 AP, DN-DETR 44.4 AP with R50; Group DETR +2 AP).

        regard train detr_resnet50 --recipe fast --data coco/
    """
    model = replace(
        _config(name), norm_first=True, dropout=0.0, sigmoid=True, anchors=True, num_queries=300, query_groups=3,
        denoising_groups=5,
    )  # fmt: skip
    return replace(
        paper(name), amp="auto", model=model, epochs=50, milestones=(0.8,), warmup_steps=1000, class_weight=2.0,
        ema=0.9998, fit_queries=True,
    )  # fmt: skip


def small(name: str) -> DetectionRecipe:
    """Train small detectors on small images from random weights, in minutes on a CPU.

    regard train detr_tiny --data shapes
    regard train detr_tiny_panoptic --data shapes
    """
    short_side, max_size = SHORT_SIDES[name]
    recipe = DetectionRecipe(
        name=name, data="shapes", model=_config(name), start_from="none", short_side=short_side, max_size=max_size,
        augmentation="small", class_weight=2.0, epochs=12, batch_size=32, lr=1e-3, lr_backbone=1e-3,
        schedule="cosine", warmup_steps=100, max_norm=1.0, ema=0.995, workers=1, evaluate_every=4, fit_queries=True,
    )  # fmt: skip
    if not recipe.model.masks:
        return recipe
    # A step with masks takes three times as long. With weights of 1, masks learn far more slowly than boxes.
    masks = replace(recipe, mask_weight=5.0, dice_weight=3.0)
    return replace(masks, epochs=4, batch_size=16, augmentation="flip")


def auto(name: str) -> DetectionRecipe:
    """Train on your own images: input size, batch, steps and queries are chosen from the data and the device.

    `recipes/auto.py` has the rule. It starts from released COCO weights, else from ImageNet weights of the backbone.
    A released detector keeps the learning rates that it was trained with, and the small backbone that `small` gives it.

        regard train detr_lite --data raccoon/
        regard train detr_resnet50 --data raccoon/
    """
    model = _config(name)
    recipe = DetectionRecipe(
        name=name, model=model, lr=3e-4, lr_backbone=3e-5, class_weight=2.0 if model.sigmoid else 1.0,
        schedule="cosine", warmup_share=0.05, max_norm=1.0, short_side=16, max_size=1 << 16, fit_queries=True,
    )  # fmt: skip  # The data choose both sizes; these only leave room for what a user sets.
    if name in WEIGHTS:
        recipe = replace(recipe, start_from=name, lr=1e-4, lr_backbone=1e-5, max_norm=0.1)
    elif name in SHORT_SIDES:
        recipe = replace(recipe, start_from="none", lr=1e-3, lr_backbone=1e-3)
    return replace(recipe, mask_weight=5.0, dice_weight=3.0) if model.masks and model.sigmoid else recipe


DETECTION_RECIPES: Mapping[str, Callable[[str], DetectionRecipe]] = {
    "paper": paper,
    "finetune": finetune,
    "panoptic_boxes": panoptic_boxes,
    "panoptic_masks": panoptic_masks,
    "fast": fast,
    "small": small,
    "auto": auto,
}


def default_recipe(name: str, data: str | Path | None = None) -> str:
    """Return the name of the recipe of a detector that is used if none is named.

    That is `auto` for data of the user's, `paper` for COCO itself, and `small` for a tiny model on generated images.

    Args:
        name: the model.
        data: the folder, or generated data. None: not known, which is taken as COCO, or as generated for a tiny model.
    """
    is_generated = data is not None and data_text(data).partition(":")[0] in GENERATED
    if name in SHORT_SIDES and (data is None or is_generated):
        return "small"
    if name in LITE:
        return "auto"
    return "paper" if data is None or (not is_generated and is_published_coco(data)) else "auto"


def detection_recipe_for(name: str, recipe: str | None = None, data: str | Path | None = None) -> DetectionRecipe:
    """Return the named recipe of a detector, or its default on this data, see `default_recipe`.

    Raises:
        ConfigError: an unknown recipe (C01), or one that does not fit the model (C09).
    """
    recipe = recipe or default_recipe(name, data)
    if recipe not in DETECTION_RECIPES:
        raise unknown_name("recipe", recipe, list(DETECTION_RECIPES), code="C01")
    if recipe == "small" and name not in SHORT_SIDES:
        known = ", ".join(tiny for tiny in SHORT_SIDES if tiny in DETR_PRESETS)
        raise ConfigError(f"recipe small is for {known}, not for {name}", code="C09")
    return DETECTION_RECIPES[recipe](name)


def without_backbone_weights(settings: DetectionRecipe) -> DetectionRecipe:
    """Return settings that train a small backbone from the start: nobody has trained it on ImageNet."""
    if settings.start_from != "backbone" or settings.model.backbone not in SMALL_BACKBONES:
        return settings
    return replace(settings, start_from="none", lr_backbone=settings.lr)


def _config(name: str) -> DETRConfig:
    config = preset(name)
    if not isinstance(config, DETRConfig):
        trained = ", ".join(n for n in list_models("detr*") if isinstance(preset(n), DETRConfig))
        raise ConfigError(f"{name} cannot be trained here", remedy=f"train one of {trained}")
    return config
