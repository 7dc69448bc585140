"""What keeps a run from being resumed, in the words of its settings."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from refusals import refused
from regard.cli.groups import app
from regard.config import to_mapping
from regard.errors import ConfigError
from regard.recipes import Recipe, recipe_for
from regard.runs.settings import resolve
from regard.training.resumption import check_same_run

STATE = {
    "model_state": {"config": {"num_queries": 10}, "categories": [[1, "cat", True]], "sizes": [32, 32]},
    "units": {"batches_per_epoch": 20, "accumulate": 1},
}


def changed(**units) -> dict:
    return {**STATE, "units": {**STATE["units"], **units}}


@pytest.fixture
def settings(tmp_path) -> Recipe:
    """Of a run in tmp_path."""
    settings = replace(recipe_for("detr_tiny"), data="my data", batch_size=8)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(to_mapping(settings)))
    return settings


def test_the_same_run_passes(settings, tmp_path):
    check_same_run(STATE, STATE, replace(settings, epochs=99, lr=0.5, data="moved"), tmp_path)
    newer = {**STATE, "model_state": {**STATE["model_state"], "panoptic": False}}  # which came later
    check_same_run({**STATE, "progress": {"step": 1}}, newer, settings, tmp_path)


@pytest.mark.parametrize(
    ("change", "says", "words"),
    [
        ({"batch_size": 4}, ["batch_size was 8, is 4"], {"batch_size=4"}),
        ({"accumulate": 2, "batch_size": 4, "lr": 0.5}, ["accumulate was 1, is 2"], {"accumulate=2", "batch_size=4"}),
        ({"data": "other data"}, ["data was my data, is other data"], {"data=other data"}),
        ({"short_side": 48}, ["short_side was", "is 48"], {"short_side=48"}),
    ],
)
def test_settings_are_told_and_the_remedy_is_a_command(settings, tmp_path, change, says, words):
    with refused(ConfigError, tmp_path, *says, code="C13") as caught:
        check_same_run(STATE, changed(batches_per_epoch=40), replace(settings, **change), tmp_path)
    assert "units" not in caught.value.line and "batches" not in caught.value.line
    remedy = shlex.split(caught.value.remedy.partition(": ")[2])
    assert remedy[:2] == ["regard", "train"]
    _, bound, _ = app.parse_args(remedy[1:], exit_on_error=False, print_error=False)
    overrides = [bound.arguments["model"], *bound.arguments["settings"]]
    assert set(overrides) == words | {f"start_from={tmp_path}"}
    config = bound.arguments["options"].config
    assert resolve(None, None, None, None, False, None, config, overrides).start_from == str(tmp_path)


def test_other_processes_need_another_batch_size(settings, tmp_path):
    """Two processes of 8 images were 16 a batch; one process has 16 too if it is told to."""
    before = changed(images_per_batch=16)
    with refused(ConfigError, "images of a batch: 16, now 8", "add batch_size=16", code="C13"):
        check_same_run(before, changed(batches_per_epoch=40, images_per_batch=8), settings, tmp_path)
    check_same_run(before, before, replace(settings, batch_size=16), tmp_path)
    with refused(ConfigError, "images of a batch: 16, now 24", "as many processes as before", code="C13"):
        check_same_run(before, changed(images_per_batch=24), settings, tmp_path)  # three processes


def test_another_model_is_not_started_from_its_weights(settings, tmp_path):
    now = replace(settings, model=replace(settings.model, embed_dim=48))
    state = {**STATE, "model_state": {**STATE["model_state"], "config": {"num_queries": 11}}}
    with refused(ConfigError, "model.embed_dim was", "is 48", code="C13") as caught:
        check_same_run(STATE, state, now, tmp_path)
    assert "start_from" not in caught.value.line


def test_data_that_changed(settings, tmp_path):
    """T19: told with the words that accept it; runs from before that was written go on."""
    before, now = ({**STATE, "data": {"train": one, "val": "a"}} for one in "ab")
    with refused(ConfigError, "train", "--resume data_may_change=true", tmp_path, code="T19"):
        check_same_run(before, now, settings, tmp_path)
    check_same_run(before, now, replace(settings, data_may_change=True), tmp_path)
    check_same_run(STATE, now, settings, tmp_path)
    with refused(ConfigError, "batches of an epoch", code="C13"):
        check_same_run({**changed(batches_per_epoch=9), "data": before["data"]}, now, settings, tmp_path)


def test_other_data_of_the_same_name(settings, tmp_path):
    """Or another number of processes: no setting says so."""
    with refused(ConfigError, "20", "40", "processes", code="C13"):
        check_same_run(STATE, changed(batches_per_epoch=40), settings, tmp_path)
    other = {**STATE, "model_state": {**STATE["model_state"], "categories": [[1, "dog", True], [2, "owl", True]]}}
    with refused(ConfigError, "cat", "dog,owl", code="C13"):
        check_same_run(STATE, other, settings, tmp_path)


@pytest.mark.parametrize("text", [None, "", "[1", "- a list"])
def test_a_spoiled_settings_file(settings, tmp_path, text):
    path = Path(tmp_path, "config.yaml")
    path.unlink() if text is None else path.write_text(text)
    with refused(ConfigError, "20", "40", code="C13"):
        check_same_run(STATE, changed(batches_per_epoch=40), replace(settings, batch_size=4), tmp_path)
