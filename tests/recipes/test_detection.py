"""Recipes of detectors: the published numbers, and no setting that takes nonsense."""

from __future__ import annotations

import dataclasses
import string
from typing import Any, get_args, get_type_hints

import pytest
import torch

from refusals import refused
from regard.config import apply_mapping, apply_overrides, to_mapping
from regard.data.samples import Sample
from regard.errors import ConfigError
from regard.evaluation.detection import criterion_of
from regard.models.catalog import list_models
from regard.models.configs.detr import DETRConfig
from regard.recipes import recipe_for
from regard.recipes.detection import DETECTION_RECIPES, LITE, DetectionRecipe
from regard.runs.detection_task import augmentation_of

TRAINED = [name for name in list_models("detr*") if name != "detr_demo"]
LARGE = [name for name in TRAINED if not name.startswith("detr_tiny")]


def test_paper_recipe_is_the_published_one():
    """Section 4 and appendix A.4 of the paper, and the defaults of the authors' main.py."""
    recipe = recipe_for("detr_resnet50", "paper")
    published = {
        "epochs": 300, "lr": 1e-4, "lr_backbone": 1e-5, "weight_decay": 1e-4, "batch_size": 2, "accumulate": 1,
        "schedule": "step", "warmup_steps": 0, "max_norm": 0.1, "ema": 0.0, "amp": "off", "seed": 42, "workers": 2,
        "start_from": "backbone", "short_side": 800, "max_size": 1333, "augmentation": "paper", "minutes": None,
        "no_object_weight": 0.1, "class_weight": 1.0, "bbox_weight": 5.0, "giou_weight": 2.0, "patience": 0,
    }  # fmt: skip
    assert {name: getattr(recipe, name) for name in published} == published
    assert recipe.epochs * recipe.milestones[0] == pytest.approx(200)
    model = {
        "num_classes": 91, "backbone": "resnet50", "backbone_norm": "frozen", "dilation": False, "embed_dim": 256,
        "num_heads": 8, "encoder_layers": 6, "decoder_layers": 6, "feedforward_dim": 2048, "dropout": 0.1,
        "norm_first": False, "position_encoding": "sine", "num_queries": 100, "sigmoid": False, "anchors": False,
        "query_groups": 1, "denoising_groups": 0,
    }  # fmt: skip
    assert {name: getattr(recipe.model, name) for name in model} == model


def test_paper_loss_and_augmentation():
    recipe = recipe_for("detr_resnet50")
    assert recipe == recipe_for("detr_resnet50", "paper")  # the model's own
    criterion = criterion_of(recipe)
    weights = {name: criterion.weights[name] for name in ("loss_ce", "loss_bbox", "loss_giou")}
    assert weights == {"loss_ce": 1.0, "loss_bbox": 5.0, "loss_giou": 2.0}
    _, choice = augmentation_of(recipe).steps
    assert choice.first.short_sides == (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
    assert choice.first.max_size == 1333
    scale, crop, scale_again = choice.second.steps
    assert scale.short_sides == (400, 500, 600) and (crop.min_size, crop.max_size) == (384, 600)
    assert scale_again == choice.first


def test_the_second_stage_is_the_published_one():
    """25 epochs, rates to a tenth after 15 (the authors' README); both mask losses weigh 1."""
    recipe = recipe_for("detr_resnet50_panoptic", "panoptic_masks")
    assert (recipe.epochs, recipe.freeze_detector, recipe.batch_size, recipe.lr) == (25, True, 2, 1e-4)
    assert recipe.epochs * recipe.milestones[0] == pytest.approx(15)
    weights = criterion_of(recipe).weights
    assert weights["loss_mask"] == weights["loss_dice"] == 1.0
    assert recipe_for("detr_resnet50", "panoptic_boxes") == dataclasses.replace(
        recipe_for("detr_resnet50"), annotations="panoptic"
    )


def test_flip_resizes_what_is_large_and_leaves_the_rest():
    recipe = recipe_for("detr_tiny_panoptic")
    assert recipe.augmentation == "flip"
    augmentation, g = augmentation_of(recipe), torch.Generator().manual_seed(0)
    large = Sample(torch.zeros(3, 640, 960, dtype=torch.uint8), torch.tensor([[0.0, 0, 96, 64]]), torch.tensor([0]))
    found = augmentation(large, g)
    assert found.size == (64, 96) and found.boxes[0, 3] == pytest.approx(6.4)
    pixels = torch.randint(255, (3, 64, 64), dtype=torch.uint8, generator=g)
    found = augmentation(Sample(pixels), g).image
    assert torch.equal(found, pixels) or torch.equal(found, pixels.flip(-1))


def test_dc5_and_deeper_backbones():
    assert recipe_for("detr_resnet101").model == DETRConfig(backbone="resnet101")
    assert recipe_for("detr_resnet50_dc5").model == DETRConfig(dilation=True)


@pytest.mark.parametrize("name", TRAINED)
def test_all_recipes_of_all_models(name):
    for recipe in DETECTION_RECIPES:
        if recipe == "small" and name in LARGE:
            with refused(ConfigError, "small", name, code="C09"):
                recipe_for(name, recipe)
            continue
        made = recipe_for(name, recipe)
        assert made.name == name
        assert apply_mapping(made, to_mapping(made)) == made  # what is written can be read
    own = recipe_for(name)
    assert own == recipe_for(name, "auto" if name in LITE else "paper" if name in LARGE else "small")


def test_finetune_and_fast():
    finetune = recipe_for("detr_resnet50", "finetune")
    assert (finetune.start_from, finetune.epochs) == ("detr_resnet50", 50)
    assert finetune.epochs * finetune.milestones[0] == pytest.approx(40)
    assert finetune.model == DETRConfig()  # or the weights would not fit
    fast = recipe_for("detr_resnet50", "fast")
    assert fast.epochs == 50 and fast.model.anchors and fast.model.sigmoid and fast.model.denoising_groups
    small = recipe_for("detr_tiny")
    assert (small.start_from, small.short_side, small.data) == ("none", 64, "shapes")


@pytest.mark.parametrize(
    "words",
    [["short_side=1600", "max_size=2000"], ["model.anchors=false", "model.denoising_groups=0"],
     ["model.embed_dim=90", "model.num_heads=5", "model.embed_dim=100"]],
)  # fmt: skip
def test_settings_that_fit_together_come_in_any_order(words):
    made = apply_overrides(recipe_for("detr_tiny"), words)
    assert made == apply_overrides(recipe_for("detr_tiny"), [*words[::-1], *words[-1:]])
    (key, value), *_ = (word.split("=") for word in words[-1:])
    assert str(getattr(made.model if "." in key else made, key.rpartition(".")[2])) == value


def test_a_group_is_no_setting():
    for words in (["model=3", "model.dropout=0"], ["model.dropout=0", "model=3"]):
        with refused(ConfigError, "model", "'3'", code="C02"):
            apply_overrides(recipe_for("detr_tiny"), words)


def test_unknown_names():
    with refused(ConfigError, "'fats'", "'fast'", code="C01"):
        recipe_for("detr_resnet50", "fats")
    with refused(ConfigError, "'detr_resnet5'", "'detr_resnet50'", code="C01"):
        recipe_for("detr_resnet5")
    with refused(ConfigError, "detr_demo", "detr_resnet101"):
        recipe_for("detr_demo")


# Every setting, from the schema: new ones are held to the same.


def settings() -> dict[str, Any]:
    """Dotted path -> type of every setting of a recipe."""
    found = {}
    for config, prefix in ((DetectionRecipe, ""), (DETRConfig, "model.")):
        hints = get_type_hints(config)
        for field in dataclasses.fields(config):
            if not dataclasses.is_dataclass(hints[field.name]):
                found[prefix + field.name] = hints[field.name]
    return found


SETTINGS = settings()
NUMBERS = {path: kind for path, kind in SETTINGS.items() if kind in (int, float) or float in get_args(kind)}
WORDS = {path: kind for path, kind in SETTINGS.items() if isinstance((*get_args(kind), None)[0], str)}
LISTS = ["log_to"]  # of words
ANY_TEXT = [path for path, kind in SETTINGS.items() if kind is str]


def refusal_of(path: str, value: object) -> ConfigError:
    """The error for a value; both ways to give it refuse it with one line that names the setting."""
    recipe = recipe_for("detr_resnet50")
    nested: Any = value
    for name in reversed(path.split(".")):
        nested = {name: nested}
    with pytest.raises(ConfigError) as caught:
        apply_mapping(recipe, nested)
    errors = [caught.value]
    if isinstance(value, (str, int, float)) and not isinstance(value, bool) and path not in ANY_TEXT:
        with pytest.raises(ConfigError) as caught:
            apply_overrides(recipe, [f"{path}={value}"])
        errors.append(caught.value)
    for error in errors:
        assert "\n" not in error.line and path.rpartition(".")[2] in error.line
        assert error.code in ("C01", "C02", "C03", "C05", "C08", "C09") and error.exit_code == 2
    return errors[0]


def test_the_schema_is_covered():
    assert len(SETTINGS) > 40
    truth = [path for path, kind in SETTINGS.items() if kind is bool]
    assert sorted([*NUMBERS, *WORDS, *LISTS, *ANY_TEXT, *truth]) == sorted(SETTINGS)


@pytest.mark.parametrize("path", SETTINGS)
def test_wrong_types(path):
    for value in ([1, 2], {"a": 1}, object()):
        refusal_of(path, value)
    if type(None) not in get_args(SETTINGS[path]):
        refusal_of(path, None)
    if path not in ANY_TEXT:
        refusal_of(path, "nonsense")
        refusal_of(path, "")
    if path in NUMBERS:
        refusal_of(path, True)
    else:
        refusal_of(path, 2.5)
    if SETTINGS[path] is int:
        refusal_of(path, 2.5)


@pytest.mark.parametrize("path", NUMBERS)
def test_numbers_out_of_range(path):
    for value in (float("nan"), float("inf"), float("-inf"), "nan", "1e999", -1, -1e30):
        refusal_of(path, value)


POSITIVE = (
    "epochs", "batch_size", "accumulate", "lr", "evaluate_every", "log_every", "minutes", "short_side", "max_size",
    "model.num_classes", "model.num_queries", "model.num_heads", "model.embed_dim", "model.decoder_layers",
    "model.query_groups",
)  # fmt: skip


@pytest.mark.parametrize("path", POSITIVE)
def test_zero_is_too_little(path):
    refusal_of(path, 0)


@pytest.mark.parametrize(
    ("path", "value"),
    [("ema", 1), ("milestones", 1.5), ("model.dropout", 1), ("model.label_noise", 1.1), ("model.box_noise", 2),
     ("short_side", 2000), ("model.embed_dim", 250), ("model.num_heads", 7), ("model.denoising_groups", 2),
     ("seed", 2**70)],
)  # fmt: skip
def test_too_much(path, value):
    refusal_of(path, value)


@pytest.mark.parametrize("path", SETTINGS)
def test_misspelt(path):
    """A letter less, more, or another one: the right name is offered."""
    name = path.rpartition(".")[2]
    for wrong in (path[:-1], path + "s", path[:-2] + string.ascii_letters[len(name)] + path[-1]):
        if wrong in SETTINGS or wrong == "cr":  # half of two letters is too little to go by
            continue
        error = refusal_of(wrong, 1)
        assert error.code == "C01" and repr(path) in error.remedy, error.line


def test_a_million_digits():
    error = refusal_of("epochs", "9" * 1_000_000)
    assert len(error.line) < 200
