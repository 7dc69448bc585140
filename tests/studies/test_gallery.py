"""The gallery: every picture and command of its page, with models that were not trained."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from PIL import Image

from regard.cli import app
from regard.data.coco.dataset import open_detection
from regard.data.coco.panoptic import open_panoptic
from regard.data.generated.shapes import data_folder
from regard.models.build import build, create
from regard.models.catalog import preset
from regard.models.configs.detr import DETRConfig
from regard.models.detr import DETR
from regard.structures.categories import Category
from regard.studies import gallery


@pytest.fixture
def shapes(monkeypatch):
    monkeypatch.setattr(gallery, "DATA", "shapes:size=32,train=4,val=12")


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


def test_the_page_has_its_pictures_and_commands(shapes, monkeypatch, tmp_path):
    folder = data_folder(gallery.DATA)
    things = open_detection(folder, "val").categories
    models = {
        "panoptic": finder("detr_tiny_panoptic", open_panoptic(folder, "val").categories),
        "encoder": finder("detr_tiny", things, encoder_layers=1),
        "augmented": create("aa_resnet20", num_classes=10).eval(),
        "deit": create("deit_nano_distilled_patch4_32", num_classes=10).eval(),
    }
    monkeypatch.setattr(gallery, "train_models", lambda output: {name: name for name in gallery.MODELS})
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


def test_models_are_trained_once(training, tmp_path):
    import json

    folders = gallery.train_models(tmp_path / "runs")
    words = [json.loads(line) for line in training.read_text().splitlines()]
    assert len(words) == len(gallery.MODELS) and all(command.count("--data") == 1 for command in words)
    assert gallery.train_models(tmp_path / "runs") == folders == {n: tmp_path / "runs" / f"{n}-0" for n in folders}
    assert len(training.read_text().splitlines()) == len(words)
