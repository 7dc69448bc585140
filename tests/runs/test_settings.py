"""Which recipe a model and data get, and what a setting that is given changes."""

from __future__ import annotations

import shlex

import pytest

import regard
from refusals import refused
from regard.data.coco import published
from regard.errors import ConfigError
from regard.recipes import recipe_for
from regard.runs.settings import fits_data, resolve, take_automatic_batch


def resolved(model, data, *words, recipe=None):
    return resolve(model, data, None, None, False, recipe, None, words)


@pytest.mark.parametrize("model", ["detr_lite", "detr_resnet50", "detr_resnet18", "detr_tiny", "detr_tiny_panoptic"])
def test_a_folder_of_the_user_gets_the_recipe_auto(tmp_path, model):
    for settings in (resolved(model, tmp_path), resolved(model, None, f"data={tmp_path}")):
        assert fits_data(settings, None, is_new=True) and settings.fit_queries
        assert settings.schedule == "cosine" and settings.warmup_share > 0


def test_released_detectors_start_from_their_weights_at_their_rates(tmp_path):
    settings = resolved("detr_resnet50", tmp_path)
    paper = recipe_for("detr_resnet50", "paper")
    assert settings.start_from == "detr_resnet50" and settings.model == paper.model
    assert (settings.lr, settings.lr_backbone, settings.max_norm) == (paper.lr, paper.lr_backbone, paper.max_norm)
    assert resolved("detr_resnet18", tmp_path).start_from == "backbone"
    tiny = resolved("detr_tiny", tmp_path)
    assert tiny.start_from == "none" and tiny.lr == tiny.lr_backbone == recipe_for("detr_tiny", "small").lr


@pytest.mark.parametrize("data", ["shapes", "shapes:size=96"])
def test_tiny_models_keep_their_recipe_for_generated_images(data):
    settings = resolved("detr_tiny", data)
    assert settings.short_side == recipe_for("detr_tiny", "small").short_side
    assert not fits_data(settings, None, is_new=True)


def test_the_published_recipe_is_for_coco_itself_or_by_name(tmp_path, monkeypatch):
    (tmp_path / "train2017").mkdir()
    for number in range(3):
        (tmp_path / "train2017" / f"{number}.jpg").touch()
    by_name = resolved("detr_resnet50", tmp_path, recipe="paper")
    assert by_name.epochs == 300 and not fits_data(by_name, "paper", is_new=True)
    assert resolved("detr_resnet50", tmp_path) != by_name
    monkeypatch.setattr(published, "_MANY", 2)
    assert resolved("detr_resnet50", tmp_path) == by_name
    assert fits_data(resolved("detr_lite", tmp_path), None, is_new=True)


@pytest.mark.parametrize("recipe", ["auto", "small", "finetune"])
def test_a_number_of_queries_that_is_given_stays(tmp_path, recipe):
    assert resolved("detr_tiny", tmp_path, recipe=recipe).fit_queries
    assert not resolved("detr_tiny", tmp_path, "model.num_queries=7", recipe=recipe).fit_queries
    assert resolved("detr_tiny", tmp_path, "model.num_queries=7", "fit_queries=true", recipe=recipe).fit_queries


@pytest.mark.parametrize(
    ("words", "left", "is_automatic"),
    [
        (["lr=1", "batch_size=auto"], ("lr=1",), True),
        (["--batch_size=auto"], (), True),
        (["batch_size=auto", "batch_size=4"], ("batch_size=auto", "batch_size=4"), False),
        (["batch_size=4", "batch_size=auto"], (), True),
        (["model.batch_size=auto"], ("model.batch_size=auto",), False),
    ],
)
def test_the_last_word_about_the_batch_counts(words, left, is_automatic):
    assert take_automatic_batch(words) == (left, is_automatic)


@pytest.mark.parametrize("words", [{"recipe": "paper"}, {"model": "resnet20", "data": "digits"}])
def test_an_automatic_batch_is_for_the_recipe_auto(tmp_path, words):
    call = {"model": "detr_resnet50", "data": tmp_path, "overrides": {"batch_size": "auto"}, **words}
    with refused(ConfigError, "batch_size=auto", code="C09"):
        regard.train(**call)


@pytest.mark.parametrize("name", ["runs/a b/config.yaml", "mine.yml"])
def test_a_file_is_no_recipe(name):
    with refused(ConfigError, "a recipe is a name", f"--config {shlex.quote(name)}", code="C09"):
        resolve("detr_tiny", "shapes", None, None, False, name, None, [])
