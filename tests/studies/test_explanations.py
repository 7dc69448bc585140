"""The study of explanations: what it counts, and what it makes of the areas."""

from __future__ import annotations

import dataclasses
import io
from statistics import mean

import pytest
import torch
from rich.console import Console

import regard
from command_line import run
from refusals import refused
from regard.data.coco.dataset import open_detection
from regard.data.generated.shapes import data_folder
from regard.errors import ConfigError
from regard.explanations.explain import explain
from regard.models.build import build
from regard.models.configs.detr import DETR_PRESETS
from regard.studies.explanations import measure, table


@pytest.fixture
def net(monkeypatch, tmp_path):
    """An untrained model that finds something everywhere."""
    monkeypatch.setenv("REGARD_HOME", str(tmp_path))
    monkeypatch.setattr("regard.studies.explanations.DATA", "shapes:size=32,train=1,val=3")
    categories = open_detection(data_folder("shapes:size=32,train=1,val=3"), "val").categories
    torch.manual_seed(0)
    config = dataclasses.replace(DETR_PRESETS["detr_tiny"], num_classes=len(categories), num_queries=3)
    net = build(config, "detr_tiny").eval()
    net.card = dataclasses.replace(net.card, categories=categories, short_side=32, max_size=32)
    with torch.no_grad():
        net.class_embed.bias.fill_(3)
    return net


def test_every_detection_counts_once_for_each_map(net):
    dataset = open_detection(data_folder("shapes:size=32,train=1,val=3"), "val", categories=net.card.categories)
    areas = measure(net, 2)
    count = sum(len(explain(net, dataset[i].image, threshold=0.5)) for i in range(2))
    assert count > 2 and {name: len(pairs) for name, pairs in areas.items()} == dict.fromkeys(
        ("decoder", "relevance", "box, uniform", "random"), count
    )
    assert all(0 <= area <= 1 for pairs in areas.values() for pair in pairs for area in pair)
    assert measure(net, 2) == areas


def test_maps_of_a_trained_model_beat_random_ones(monkeypatch, tmp_path):
    """The model of the package on images that it has not seen: what a map calls important is what it sees."""
    monkeypatch.setenv("REGARD_HOME", str(tmp_path))
    monkeypatch.setattr("regard.studies.explanations.DATA", "shapes:train=1,val=4,seed=9")
    areas = measure(regard.load("example").eval(), 4)
    deletion, insertion = ({name: mean(pair[k] for pair in areas[name]) for name in areas} for k in (0, 1))
    for name in ("decoder", "relevance"):  # seen: 0.08 and 0.10 to 0.31, 0.74 and 0.73 to 0.34
        assert deletion[name] < deletion["random"] - 0.1 and insertion[name] > insertion["random"] + 0.2


def test_a_model_that_finds_nothing(net):
    with torch.no_grad():
        net.class_embed.bias.fill_(-9)
    with refused(ConfigError, "0.5", "2 images", "--minutes", code="C09"):
        measure(net, 2)


def test_gains_are_those_over_random_maps():
    """Gains of 0.1 and 0.3: mean 0.2, standard deviation 0.1414, over sqrt(2) 0.1. Insertion: -0.2 and 0."""
    areas = {"decoder": [(0.2, 0.3), (0.1, 0.5)], "random": [(0.3, 0.5), (0.4, 0.5)]}
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(table(areas))
    rows = {cells[1].strip(): [c.strip() for c in cells[2:-1]] for cells in _rows(console.export_text())}
    assert rows["decoder"] == ["0.150", "0.200 ± 0.100", "0.400", "-0.100 ± 0.100"]
    assert rows["random"] == ["0.350", "", "0.500", ""]


def _rows(text: str) -> list[list[str]]:
    return [line.split("│") for line in text.splitlines() if line.startswith("│")]


@pytest.mark.parametrize("words", [["--minutes", "0"], ["--images", "0"]])
def test_numbers_out_of_range(capsys, tmp_path, words):
    run(capsys, "study", "explanations", *words, "--output", tmp_path / "out").refused(2, "C03", "more than 0")
    assert not (tmp_path / "out").exists()
