"""A run is scored on its own data if no others are given, and says which these are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

import regard
from command_line import run
from refusals import refused
from regard.config import to_mapping
from regard.data.generated.shapes import ShapesConfig, write_shapes
from regard.errors import ConfigError, DataError
from regard.models.build import build
from regard.recipes import recipe_for
from regard.structures.categories import Category
from run_files import SMALL, small_detector, write_run


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with data and a run on them, whose settings name the data as the training did: from this folder."""
    place = tmp_path_factory.mktemp("place")
    write_shapes(ShapesConfig(size=32, train=4, val=2), place / "my shapes")
    names = ("circle", "square", "triangle")
    net = build(SMALL, "mine", [Category(i + 1, name) for i, name in enumerate(names)], (32, 64))
    write_run(place / "run", net, {1: 0.5, 2: 0.4})
    settings = {**to_mapping(recipe_for("detr_tiny")), "data": "my shapes"}
    (place / "run" / "config.yaml").write_text(yaml.safe_dump(settings))
    return place


@pytest.mark.parametrize("source", ["run", "run/checkpoints/step_2"])
def test_the_same_scores_as_with_the_data_named(place, monkeypatch, capsys, tmp_path, blank_charts, source):
    monkeypatch.chdir(place)
    for number, words in enumerate(([], ["--data", "my shapes"])):
        finished = run(capsys, "evaluate", source, *words, "--workers", "0", "--output", tmp_path / str(number))
        finished.worked()
        assert ("my shapes" in finished.err) == (not words)
    written = [json.loads((tmp_path / str(number) / "metrics.json").read_text()) for number in range(2)]
    assert written[0] == written[1] and written[0]["data"] == "my shapes"


def test_from_python(place, monkeypatch, capsys, tmp_path, blank_charts):
    monkeypatch.chdir(place)
    options = {"workers": 0, "output": tmp_path, "quiet": True}
    assert regard.evaluate("run", **options).stats == regard.evaluate("run", "my shapes", **options).stats
    assert capsys.readouterr().err == ""


def test_data_that_are_gone(place, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with refused(DataError, "my shapes", "--data"):
        regard.evaluate(place / "run")


def test_what_has_no_data_of_its_own(place, monkeypatch, tmp_path):
    monkeypatch.chdir(place)
    write_run(tmp_path / "bare", small_detector(), {1: 0.5})
    (tmp_path / "w.pth").touch()
    for source in (small_detector(), tmp_path / "bare", tmp_path / "w.pth", "detr_resnet50"):
        with refused(ConfigError, "--data", code="C09"):
            regard.evaluate(source)
