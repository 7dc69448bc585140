"""The recipe `auto`: what it decides for data of all kinds, and what it leaves to the user."""

from dataclasses import replace

import pytest

from regard.recipes import recipe_for
from regard.recipes.auto import CPU_MINUTES, UNTIL_TIME_IS_UP, DataSummary, fit_to_data

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
        assert f"5 epochs, {steps} steps" in lines[1]


def test_minutes_are_filled():
    recipe = fitted(PHOTOS, minutes=3.0)
    assert (recipe.minutes, recipe.epochs) == (3.0, UNTIL_TIME_IS_UP)
    assert recipe.evaluate_every == fitted(PHOTOS).evaluate_every


def test_every_decision_is_told_with_its_value():
    recipe, lines = fit_to_data(recipe_for("detr_lite"), NUCLEI, gpu=False)
    text = " ".join(lines)
    for value in (f"short_side={recipe.short_side}", f"batch_size={recipe.batch_size}", f"{recipe.epochs} epochs",
                  f"model.num_queries={recipe.model.num_queries}", "model.feature_maps=3"):  # fmt: skip
        assert value in text


@pytest.mark.parametrize(
    ("changes", "says"),
    [({}, None), ({"images": 8}, "8 images are few"), ({"classes": 80}, "80 classes have 2 objects each")],
)
def test_what_to_expect_is_told(changes, says):
    _, lines = fit_to_data(recipe_for("detr_lite"), replace(PHOTOS, **changes), gpu=True)
    warnings = [line for line in lines if line.startswith("warning")]
    assert len(warnings) == (says is not None) and all(says in line for line in warnings)
