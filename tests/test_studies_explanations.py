"""The study of maps and the gallery: what they measure and draw, with models that were not trained."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from PIL import Image
from rich.console import Console

from regard.categories import Category
from regard.cli import app
from regard.data.formats import open_detection
from regard.data.panoptic import open_panoptic
from regard.data.shapes import data_folder
from regard.models.catalog import build, create, preset
from regard.models.detr import DETR, DETRConfig
from regard.studies import explanations, gallery


@pytest.fixture
def shapes(monkeypatch):
    for study in (explanations, gallery):
        monkeypatch.setattr(study, "DATA", "shapes:size=32,train=4,val=12")


def finder(name: str, categories: Sequence[Category], **settings: int) -> DETR:
    """A detector with random weights that is sure of everything."""
    torch.manual_seed(0)
    config = preset(name)
    assert isinstance(config, DETRConfig)
    net = build(replace(config, num_classes=len(categories), **settings), name, categories, (32, 64))
    assert isinstance(net, DETR)
    with torch.no_grad():
        net.class_embed.bias.fill_(2)
    return net.eval()


def test_areas_of_all_maps(shapes, capsys):
    net = finder("detr_tiny", open_detection(data_folder(explanations.DATA), "val").categories)
    areas = explanations.measure(net, 2)
    assert list(areas) == ["decoder", "relevance", "box, uniform", "random"]
    assert len({len(pairs) for pairs in areas.values()}) == 1 and len(areas["random"]) > 2
    assert all(0 <= value <= 1 for pairs in areas.values() for pair in pairs for value in pair)
    Console(width=140).print(explanations.table({"decoder": [(0.1, 0.7), (0.3, 0.8)], "random": [(0.4, 0.5)] * 2}))
    row = next(line for line in capsys.readouterr().out.splitlines() if "decoder" in line)
    assert re.findall(r"[\d.]+", row) == ["0.200", "0.200", "0.100", "0.750", "0.250", "0.050"]


def test_the_page_has_its_pictures_and_commands(shapes, monkeypatch, tmp_path):
    folder = data_folder(gallery.DATA)
    things = open_detection(folder, "val").categories
    models = {
        "panoptic": finder("detr_tiny_panoptic", open_panoptic(folder, "val").categories),
        "encoder": finder("detr_tiny", things, encoder_layers=1),
        "augmented": create("aa_resnet20", num_classes=10).eval(),
        "deit": create("deit_nano_distilled_patch4_32", num_classes=10).eval(),
    }
    monkeypatch.setattr(gallery, "train_all", lambda rows, seeds, output: {name: [name] for name in rows})
    monkeypatch.setattr(gallery.regard, "load", models.__getitem__)
    gallery.gallery(tmp_path / "runs", tmp_path / "docs" / "page.md")
    text = (tmp_path / "docs" / "page.md").read_text()
    pictures = re.findall(r"!\[.+?\]\((.+?)\)", text)
    assert len(pictures) == text.count("\n## ") == len(set(pictures)) > 8
    for name in pictures:
        with Image.open(tmp_path / "docs" / name) as picture:
            assert picture.width > 200
    for command in re.findall(r"^regard .+$", text, re.M):
        app.parse_args(shlex.split(command)[1:], exit_on_error=False, print_error=False)
