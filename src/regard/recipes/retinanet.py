"""Recipes of RetinaNet: one function per training, which returns a frozen `RetinaNetRecipe`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from regard.config import unknown_name
from regard.errors import ConfigError
from regard.models.catalog import SHORT_SIDES, preset
from regard.models.configs.retinanet import RetinaNetConfig
from regard.recipes.detection import check_sizes
from regard.training.config import TrainingConfig


@dataclass(frozen=True, kw_only=True)
class RetinaNetRecipe(TrainingConfig):
    """All settings of a training run of a RetinaNet."""

    name: str  # the name of the model
    data: str = ""  # folder of COCO, YOLO, Pascal VOC or CSV data, or `shapes`; required
    model: RetinaNetConfig  # settings of the network; num_classes is taken from the data
    start_from: str = "none"  # `none`; `backbone`: ImageNet weights; or a model, run or file, also of the backbone
    short_side: int = 640  # shorter side in pixels at evaluation
    max_size: int = 640  # maximum of the longer side in pixels, and side of the squares of augmentation=jitter
    augmentation: Literal["jitter", "small", "flip"] = "jitter"  # of training images
    class_weight: float = 1.0  # weight of the focal loss
    bbox_weight: float = 1.0  # weight of the L1 loss of boxes

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("class_weight", "bbox_weight"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name}={getattr(self, name)}, expected at least 0", code="C03")
        check_sizes(self.short_side, self.max_size)


def retinanet_paper(name: str) -> RetinaNetRecipe:
    """Train RetinaNet from random weights as in Bello et al. 2019, section 4.3.

    150 epochs of COCO at 640 pixels, 64 images a step, SGD with rates divided by 10 after 120 and 140 epochs. The paper
    reports 36.8 AP with ResNet-50 and 38.2 with attention in it. Warm-up, jitter and the weight of boxes are not in
    the text; here they are those of public code.

        torchrun --nproc-per-node 8 -m regard train retinanet_aa_resnet50 --data coco/ amp=bf16
    """
    return RetinaNetRecipe(
        name=name, model=_config(name), epochs=150, batch_size=8, optimizer="sgd", lr=0.08, lr_backbone=0.08,
        milestones=(0.8, 140 / 150), warmup_steps=500, max_norm=0.0, workers=8,
    )  # fmt: skip


def retinanet_finetune(name: str) -> RetinaNetRecipe:
    """Fine-tune COCO weights on your own classes: 50 epochs, learning rates divided by 10 after 40.

    torchvision has released such weights for `retinanet_resnet50`; name your own for others. Stops early after 15
    evaluations without a better score.

        regard train retinanet_resnet50 --recipe finetune --data raccoon/
    """
    model = replace(_config(name), backbone_norm="frozen")
    return RetinaNetRecipe(
        name=name, model=model, start_from=name, short_side=800, max_size=1333, augmentation="flip", epochs=50,
        milestones=(0.8,), patience=15, batch_size=2, warmup_steps=100, max_norm=1.0,
    )  # fmt: skip


def retinanet_small(name: str) -> RetinaNetRecipe:
    """Train small networks on small images from random weights, in minutes on a CPU.

    The first has no attention, the second has: all else is equal.

        regard train retinanet_tiny --data shapes
        regard train retinanet_aa_tiny --data shapes
    """
    short_side, max_size = SHORT_SIDES[name]
    return RetinaNetRecipe(
        name=name, data="shapes", model=_config(name), short_side=short_side, max_size=max_size, augmentation="small",
        epochs=12, batch_size=32, lr=1e-3, lr_backbone=1e-3, schedule="cosine", warmup_steps=100, max_norm=1.0,
        ema=0.995, workers=1, evaluate_every=4,
    )  # fmt: skip


RETINANET_RECIPES: Mapping[str, Callable[[str], RetinaNetRecipe]] = {
    "paper": retinanet_paper,
    "finetune": retinanet_finetune,
    "small": retinanet_small,
}


def retinanet_recipe_for(name: str, recipe: str | None = None) -> RetinaNetRecipe:
    """Return the named recipe of a RetinaNet, or its default: `small` for the tiny ones, else `paper`.

    Raises:
        ConfigError: an unknown recipe (C01), or one that does not fit the model (C09).
    """
    recipe = recipe or ("small" if name in SHORT_SIDES else "paper")
    if recipe not in RETINANET_RECIPES:
        raise unknown_name("recipe", recipe, list(RETINANET_RECIPES), code="C01")
    if recipe == "small" and name not in SHORT_SIDES:
        raise ConfigError(f"recipe small is for retinanet_tiny and retinanet_aa_tiny, not for {name}", code="C09")
    return RETINANET_RECIPES[recipe](name)


def _config(name: str) -> RetinaNetConfig:
    config = preset(name)
    assert isinstance(config, RetinaNetConfig)
    return config
