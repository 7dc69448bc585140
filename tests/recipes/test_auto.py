"""The recipe `auto`: what it decides for data of all kinds, and what it leaves to the user."""

from dataclasses import replace

import pytest

from regard.config import apply_overrides
from regard.recipes import recipe_for
from regard.recipes.auto import CPU_MINUTES, DataSummary, fit_to_data
from regard.training.config import UNTIL_TIME_IS_UP

PHOTOS = DataSummary(
    images=160, classes=1, short_side=340, long_side=490, max_objects=3, objects=1.1, box_side=0.45, median_box_side=0.6
)
NUCLEI = DataSummary(
    images=60,
    classes=1,
    short_side=256,
    long_side=256,
    max_objects=60,
    objects=24.3,
    box_side=0.035,
    median_box_side=0.07,
)


def fitted(data, *given, gpu=False, **changes):
    recipe = replace(recipe_for("detr_lite"), data="my", **changes)
    return fit_to_data(recipe, data, gpu=gpu, given=[*given, *changes])[0]


def test_large_boxes_need_small_images_and_small_boxes_fine_maps():
    photos, nuclei, dust = fitted(PHOTOS), fitted(NUCLEI), fitted(replace(NUCLEI, box_side=0.02))
    assert photos.short_side <= nuclei.short_side < dust.short_side
    assert photos.model.feature_maps < nuclei.model.feature_maps and nuclei.model.proposals
    assert (
        nuclei.model.num_queries >= 1.2 * 60 and photos.model.num_queries == recipe_for("detr_lite").model.num_queries
    )
    assert (photos.model.anchor_size, nuclei.model.anchor_size) == (0.6, 0.07)
    assert fitted(NUCLEI, gpu=True).short_side > nuclei.short_side


@pytest.mark.parametrize("images", [1, 3, 7, 60, 1000, 120_000])
@pytest.mark.parametrize("gpu", [False, True])
def test_any_number_of_images_gives_settings_that_hold(images, gpu):
    recipe = fitted(replace(PHOTOS, images=images), gpu=gpu)
    assert 1 <= recipe.batch_size <= max(1, images) and recipe.evaluate_every <= recipe.epochs
    assert 0 < recipe.ema < 1 and recipe.short_side <= recipe.max_size
    assert (recipe.minutes is None) == gpu


def test_a_cpu_gets_more_time_for_more_images():
    assert fitted(PHOTOS).minutes == CPU_MINUTES < fitted(replace(PHOTOS, images=2000)).minutes


def test_what_the_user_gives_is_kept():
    recipe = fitted(PHOTOS, epochs=3, batch_size=5, short_side=640, ema=0.5, evaluate_every=2)
    assert (recipe.epochs, recipe.batch_size, recipe.short_side, recipe.ema, recipe.evaluate_every) == (
        3,
        5,
        640,
        0.5,
        2,
    )
    assert recipe.max_size >= 640 and recipe.minutes is None  # Epochs that are asked for are not cut off.
    model = replace(recipe_for("detr_lite").model, num_queries=7)
    assert fitted(NUCLEI, "model.num_queries", model=model).model.num_queries == 7


@pytest.mark.parametrize(("changes", "wanted"), [({"max_size": 200}, 200), ({"max_size": 640}, 256)])
def test_a_given_size_bounds_the_other(changes, wanted):
    recipe = fitted(PHOTOS, **changes)
    assert recipe.max_size == changes["max_size"] and recipe.short_side == wanted


def test_no_limit_of_time_leaves_the_epochs():
    recipe = fitted(PHOTOS, minutes=None)
    assert recipe.minutes is None and recipe.epochs == fitted(PHOTOS).epochs


def test_steps_are_those_of_the_training_loop():
    few = replace(PHOTOS, images=12)
    for changes, processes, steps in (
        ({"batch_size": 64}, 1, 5),
        ({"batch_size": 4}, 2, 10),
        ({"accumulate": 20}, 1, 5),
    ):
        recipe = replace(recipe_for("detr_lite"), data="my", epochs=5, **changes)
        _, lines = fit_to_data(recipe, few, gpu=False, given=["epochs", *changes], processes=processes)
        assert any(f"epochs=5: {steps} steps on 12 images" in line for line in lines)


def test_minutes_are_filled():
    recipe = fitted(PHOTOS, minutes=3.0)
    assert (recipe.minutes, recipe.epochs) == (3.0, UNTIL_TIME_IS_UP)
    assert recipe.evaluate_every == fitted(PHOTOS).evaluate_every


def test_every_decision_is_told_with_its_value():
    recipe, lines = fit_to_data(recipe_for("detr_lite"), NUCLEI, gpu=False)
    text = " ".join(lines)
    for value in (f"short_side={recipe.short_side}", f"batch_size={recipe.batch_size}", f"epochs={recipe.epochs}",
                  f"model.num_queries={recipe.model.num_queries}", "model.feature_maps=3"):  # fmt: skip
        assert value in text
    # Each line but the first is settings that can be pasted, and why.
    for line in lines[1:]:
        settings = line.partition(": ")[0].split()
        assert apply_overrides(recipe, settings) == recipe or "lr" in line or "ema" in line, line


@pytest.mark.parametrize(("name", "shown"), [("detr_lite", True), ("detr_resnet50", False), ("detr_tiny", True)])
def test_anchors_are_for_models_that_have_them(name, shown):
    recipe, lines = fit_to_data(recipe_for(name, "auto"), PHOTOS, gpu=False)
    assert recipe.model.anchors == shown == ("anchor_size" in " ".join(lines))
    assert shown or recipe.model.anchor_size == recipe_for(name, "auto").model.anchor_size


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, "800 steps on 160 images, or as many as fit into 18 minutes"),
        ({"minutes": 1.0}, "minutes=1: as many steps on 160 images as fit into 1 minute"),
        ({"minutes": None}, "epochs=40: 800 steps on 160 images"),
        ({"epochs": 1, "batch_size": 160}, "epochs=1: 1 step on 160 images"),
    ],
)
def test_the_length_is_told(changes, says):
    recipe = replace(recipe_for("detr_lite"), data="my", **changes)
    lines = fit_to_data(recipe, PHOTOS, gpu=False, given=changes)[1]
    assert sum(line.endswith(says) for line in lines) == 1


@pytest.mark.parametrize(
    ("changes", "says"),
    [({}, None), ({"images": 8}, "8 images are few"), ({"classes": 80}, "80 classes have 2 objects each")],
)
def test_what_to_expect_is_told(changes, says):
    _, lines = fit_to_data(recipe_for("detr_lite"), replace(PHOTOS, **changes), gpu=True)
    warnings = [line for line in lines if line.startswith("warning")]
    assert len(warnings) == (says is not None) and all(says in line for line in warnings)


@pytest.mark.parametrize(
    ("changes", "stops"), [({}, True), ({"epochs": 30}, False), ({"minutes": 3.0}, False), ({"minutes": None}, True)]
)
def test_a_length_that_is_asked_for_is_not_cut_off(changes, stops):
    recipe = fitted(PHOTOS, **changes)
    assert (recipe.patience > 0) == stops
    assert recipe.patience * recipe.evaluate_every < recipe.epochs  # Otherwise it never stops.
    assert fitted(PHOTOS, patience=3, **changes).patience == 3


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("detr_lite", {}, "start_from=backbone lr=0.0003 lr_backbone=3e-05: starts from ImageNet weights"),
        ("detr_lite", {}, "the rates rise over the first 5%; batch norm"),
        ("detr_lite", {"lr_backbone": 0.0}, "the backbone is frozen"),
        ("detr_tiny", {}, "start_from=none lr=0.001 lr_backbone=0.001: starts from random weights"),
        ("detr_tiny", {}, "nothing is frozen"),
        ("detr_resnet50", {}, "start_from=detr_resnet50 lr=0.0001 lr_backbone=1e-05: starts from the weights of detr_"),
        ("detr_lite_panoptic", {"freeze_detector": True, "start_from": "runs/a"}, "only the mask head learns"),
        ("detr_lite", {"patience": 3}, "stops after 3 without a better score"),
        ("detr_lite", {"epochs": 9}, "patience=0: evaluates every epoch, does not stop early"),
    ],
)
def test_rates_what_is_frozen_and_early_stop_are_told(name, changes, says):
    recipe = replace(recipe_for(name, "auto"), data="my", **changes)
    assert any(says in line for line in fit_to_data(recipe, PHOTOS, gpu=True, given=changes)[1])
