"""The model in the package: it loads by its name, finds shapes, and is what `regard serve` shows without a model."""

from __future__ import annotations

from pathlib import Path

import pytest

import regard
from regard.cli.serve import _quickstart
from regard.weights.source import check_source, example_model
from run_files import small_detector, write_run

PICTURES = Path(regard.__file__).parent / "serving/page/examples"


def test_it_finds_the_shapes_of_the_page():
    model = regard.load("example")
    found = [
        sorted(one["label"] for one in regard.predict(model, path).to_dicts())
        for path in sorted(PICTURES.glob("shapes*"))
    ]
    assert found == [
        ["circle", "square", "triangle"], ["circle", "square", "triangle"], ["circle", "square", "square", "triangle"],
    ]  # fmt: skip


def test_it_is_small_and_says_where_it_comes_from():
    files = [path for path in example_model().rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 4e6
    text = (example_model() / "README.md").read_text()
    assert "Apache-2.0" in text and "regard train detr_tiny" in text and "AP 0.744" in text


def test_a_folder_of_that_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_source("example")
    Path("example").mkdir()
    with pytest.raises(regard.errors.CheckpointError):
        regard.load("example")


def test_it_is_served_until_quickstart_has_saved_a_checkpoint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert _quickstart() == "example"
    write_run(Path("runs/quickstart"), small_detector(), {1: 0.5})
    Path("runs/quickstart-2/checkpoints").mkdir(parents=True)  # newer, and stopped before its first
    assert _quickstart() == str(Path("runs/quickstart"))
