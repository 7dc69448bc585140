"""Recipes of classifiers: the published numbers, and which model has which."""

import pytest

from refusals import refused
from regard.config import apply_mapping, to_mapping
from regard.errors import ConfigError
from regard.models.catalog import WEIGHTS, list_models, preset
from regard.models.configs import ClassifierConfig
from regard.models.configs.vit import ViTConfig
from regard.recipes import recipe_for
from regard.recipes.classification import CLASSIFICATION_RECIPES

FOR_TRANSFORMERS = ("deit3", "resolution", "transfer", "augreg")
CLASSIFIERS = [name for name in list_models() if isinstance(preset(name), ClassifierConfig)]


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_every_classifier_has_its_recipes(name):
    """Each can be written to a file and read again, and a model's own is one of the four."""
    for recipe in (None, *CLASSIFICATION_RECIPES):
        if recipe == "small" and preset(name).image_size >= 96:
            with refused(ConfigError, "small", "96", name, code="C09"):
                recipe_for(name, recipe)
            continue
        if recipe in FOR_TRANSFORMERS and not isinstance(preset(name), ViTConfig):
            with refused(ConfigError, name, code="C09"):
                recipe_for(name, recipe)
            continue
        settings = recipe_for(name, recipe)
        assert apply_mapping(recipe_for(name), to_mapping(settings)) == settings
        if recipe != "deit3":
            assert (settings.crop_pct is None) == (preset(name).image_size < 96)
    assert (recipe_for(name, "finetune").start_from == name) == (name in WEIGHTS)


def test_published_recipes():
    """Bello et al. 2019, sections 4.1 and 4.2."""
    imagenet = recipe_for("aa_resnet50", "imagenet")
    published = {
        "epochs": 100, "batch_size": 256, "lr": 0.128, "optimizer": "sgd", "momentum": 0.9, "weight_decay": 1e-4,
        "schedule": "step", "warmup_share": 0.05, "label_smoothing": 0.0, "ema": 0.0,
    }  # fmt: skip
    assert {name: getattr(imagenet, name) for name in published} == published
    assert [imagenet.epochs * share for share in imagenet.milestones] == pytest.approx([30, 60, 80, 90])
    cifar = recipe_for("aa_wide_resnet28_10", "cifar")
    published = {"epochs": 500, "lr": 0.2, "batch_size": 256, "weight_decay": 5e-4, "schedule": "cosine"}
    assert {name: getattr(cifar, name) for name in published} == published


def test_published_recipes_of_transformers():
    """DeiT's table 9 and README, DeiT III's README, and the trackers."""
    deit = recipe_for("deit_base_distilled_patch16_224", "deit")
    published = {
        "epochs": 300, "optimizer": "adamw", "weight_decay": 0.05, "decay": "matrices", "schedule": "deit",
        "min_lr": 1e-5, "max_norm": 0.0, "magnitude": 9.0, "erasing": 0.25, "mixup": 0.8, "cutmix": 1.0,
        "label_smoothing": 0.1, "repeated_augmentation": 3, "ema": 0.99996, "color_jitter": 0.0,
        "augmentation": "imagenet",
        "crop_pct": 0.875, "distillation": "hard", "alpha": 0.5, "tau": 1.0, "reduction": "numel", "loss": "softmax",
    }  # fmt: skip
    assert {name: getattr(deit, name) for name in published} == published
    assert deit.lr / deit.batch_size == pytest.approx(5e-4 / 512)
    assert (deit.model.drop_path, deit.model.drop_path_rule, deit.model.dropout) == (0.1, "linear", 0.0)
    for name, lr, side, drop_path in (
        ("deit3_small_patch16_224", 4e-3, 224, 0.05), ("deit3_base_patch16_224", 3e-3, 192, 0.2),
        ("deit3_large_patch16_224", 3e-3, 192, 0.45), ("deit3_huge_patch14_224", 3e-3, 154, 0.6),
    ):  # fmt: skip
        recipe = recipe_for(name, "deit3")
        assert (recipe.lr, recipe.model.image_size, recipe.model.drop_path) == (lr, side, drop_path)
        assert (recipe.optimizer, recipe.loss, recipe.augmentation) == ("lamb", "sigmoid", "three")
        assert (recipe.epochs, recipe.label_smoothing, recipe.erasing, recipe.repeated_augmentation) == (
            800,
            0.0,
            0.0,
            3,
        )
    finer = recipe_for("deit3_base_patch16_384", "resolution")
    assert (finer.start_from, finer.lr, finer.weight_decay, finer.epochs) == ("deit3_base_patch16_224", 1e-5, 0.1, 20)
    assert (finer.model.drop_path, finer.repeated_augmentation, finer.crop_pct) == (0.15, 1, 1.0)
    finer = recipe_for("deit_base_distilled_patch16_384", "resolution")
    assert finer.start_from == "deit_base_distilled_patch16_224" and finer.epochs == 30
    assert (finer.lr, finer.min_lr, finer.weight_decay, finer.model.drop_path) == (5e-6, 5e-6, 1e-8, 0.0)
    moved = recipe_for("deit_base_patch16_224", "transfer")
    assert (moved.start_from, moved.optimizer, moved.lr, moved.epochs) == (moved.name, "sgd", 0.01, 1000)
    assert (moved.erasing, moved.model.drop_path, moved.decay) == (0.0, 0.0, "matrices")
    plain = recipe_for("vit_small_patch16_224", "augreg")
    assert (plain.warmup_steps, plain.mixup, plain.max_norm, plain.weight_decay) == (10_000, 0.2, 1.0, 0.1)
