"""Classifiers from torchvision's files, by name, from runs; and one as the start of another."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torchvision

from refusals import refused
from regard.errors import CheckpointError, ConfigError
from regard.models.build import build, create
from regard.models.catalog import WEIGHTS, Weights, preset, table
from regard.models.configs import FAMILIES
from regard.models.configs.mnasnet import MnasNetConfig
from regard.models.configs.resnet import ResNetConfig
from regard.models.configs.wide_resnet import WideResNetConfig
from regard.models.resnet import ResNet
from regard.structures.categories import Category
from regard.training.checkpoint_writer import save_checkpoint
from regard.weights.classifiers import imagenet_categories, transfer_classifier
from regard.weights.load import load
from regard.weights.model_state import model_state

TINY = ResNetConfig(
    block="basic", layers=(1, 1), widths=(8, 16), stem="cifar", image_size=16, num_classes=3, key_ratio=0.5,
    value_ratio=0.5, num_heads=2, augmented_stages=(2,), pooled_stages=(),
)  # fmt: skip
PETS = (Category(0, "cat"), Category(1, "dog"), Category(2, "owl"))


def tiny(seed: int = 0, categories: tuple[Category, ...] = PETS, **changes) -> ResNet:
    torch.manual_seed(seed)
    net = build(replace(TINY, num_classes=len(categories), **changes), "mine", categories)
    assert isinstance(net, ResNet)
    return net.eval()


@pytest.fixture(scope="module")
def resnet18_file(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "theirs.pth"
    torch.save(torchvision.models.resnet18().state_dict(), path)
    return path


def test_a_file_of_torchvision(resnet18_file):
    net = load(resnet18_file, model="resnet18")
    theirs = torchvision.models.resnet18()
    theirs.load_state_dict(torch.load(resnet18_file))
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(net(images), theirs.eval()(images))
    assert not net.training and net.card.name == "resnet18"
    assert (net.card.short_side, net.card.crop_pct) == (224, 0.875)
    names = [category.name for category in net.card.categories]
    assert names[:2] == ["tench", "goldfish"] and len(set(names)) == 1000


def test_by_name(resnet18_file, tmp_path, monkeypatch):
    digest = hashlib.sha256(resnet18_file.read_bytes()).hexdigest()[:8]
    weights = Weights(f"https://nowhere.invalid/resnet18-{digest}.pth")
    monkeypatch.setitem(WEIGHTS, "resnet18", weights)
    monkeypatch.setenv("REGARD_HOME", str(tmp_path))
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / weights.file_name).write_bytes(resnet18_file.read_bytes())
    assert load("resnet18").config == preset("resnet18")
    with refused(ConfigError, "regard train aa_resnet20", code="K01"):
        load("aa_resnet20")


def test_released_files_are_those_of_torchvision():
    for name, weights in WEIGHTS.items():
        if "pytorch.org" in weights.url and weights.scores.keys() >= {"top-1"}:
            theirs = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"]
            scores = theirs.meta["_metrics"]["ImageNet-1K"]
            assert weights.url == theirs.url
            assert weights.scores == {"top-1": scores["acc@1"], "top-5": scores["acc@5"]}
            assert [c.name for c in imagenet_categories()] == theirs.meta["categories"]
    assert "69.758" in str(list(table("resnet18").columns[3].cells))


def test_files_that_do_not_fit(resnet18_file, tmp_path):
    with refused(CheckpointError, resnet18_file, "165 missing", code="K07"):
        load(resnet18_file, model="resnet50")
    torch.save({"a": torch.ones(2)}, tmp_path / "other.pth")
    with refused(CheckpointError, tmp_path / "other.pth", "classifying", code="K07"):
        load(tmp_path / "other.pth", model="resnet18")


def test_another_number_of_classes(tmp_path):
    net = create("resnet20", num_classes=7)
    torch.save(net.state_dict(), tmp_path / "mine.pth")
    found = load(tmp_path / "mine.pth", model="resnet20")
    assert found.config.num_classes == 7 and [c.name for c in found.card.categories] == [str(i) for i in range(7)]
    assert (found.card.short_side, found.card.crop_pct) == (32, None)


# Runs


@pytest.mark.parametrize(
    "config", [TINY, WideResNetConfig(num_classes=3, depth=10, width_factor=1), MnasNetConfig(num_classes=3, width=0.5)]
)
def test_a_run_gives_the_same_model(tmp_path, config):
    net = build(config, "mine", PETS).eval()
    net.card = replace(net.card, crop_pct=0.7)
    state = {"model_state": model_state(net), "progress": {"best_step": 1}}
    tensors = {"model": net.state_dict()}
    save_checkpoint(tmp_path / "run" / "checkpoints", 1, tensors, json.loads(json.dumps(state)))
    found = load(tmp_path / "run")
    assert found.config == net.config and found.card == net.card and not found.training
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(found(images), net(images))


def test_a_family_of_a_later_version(tmp_path):
    net = tiny()
    state = {"model_state": {**model_state(net), "family": "HyperNetConfig"}, "progress": {"best_step": 1}}
    save_checkpoint(tmp_path / "run" / "checkpoints", 1, {"model": net.state_dict()}, state)
    with refused(CheckpointError, "'HyperNetConfig'", "upgrade", code="K19"):
        load(tmp_path / "run")
    assert type(FAMILIES["DETRConfig"]).__name__ == "DETRConfig"


# One as the start of another


def test_transfer_by_class_name():
    source = tiny(1)
    other = (Category(0, "owl"), Category(1, "fox"), Category(2, "cat"), Category(3, "emu"))
    net = tiny(2, other)
    before = net.fc.weight.clone()
    says = transfer_classifier(source, net)
    assert says == "started from mine; 4 classes, 2 of them known by name"
    assert torch.equal(net.fc.weight[[0, 2]], source.fc.weight[[2, 0]])
    assert torch.equal(net.fc.bias[[0, 2]], source.fc.bias[[2, 0]])
    assert torch.equal(net.fc.weight[[1, 3]], before[[1, 3]])
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(net(images)[:, [0, 2]], source(images)[:, [2, 0]])


def test_transfer_to_the_same_classes():
    source, net = tiny(1), tiny(2)
    transfer_classifier(source, net)
    assert all(torch.equal(tensor, net.state_dict()[name]) for name, tensor in source.state_dict().items())


def test_transfer_of_unknown_classes():
    net = tiny(2, (Category(0, "fox"), Category(1, "emu")))
    assert "0 of them known" in transfer_classifier(tiny(1), net)


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"widths": (8, 24)}, "widths"), ({"num_heads": 4}, "num_heads 2, not 4"), ({"value_ratio": 0.0}, "layer2")],
)
def test_transfer_to_another_model(changes, says):
    with refused(CheckpointError, "mine", says, code="K07"):
        transfer_classifier(tiny(1), tiny(2, **changes))


def test_settings_that_no_tensor_shows_are_compared():
    """A network without positions fits one with fixed ones, tensor by tensor."""
    source, net = tiny(position="none"), tiny(position="sine", seed=1)
    assert source.state_dict().keys() == net.state_dict().keys()
    with refused(CheckpointError, "position none, not sine", code="K07"):
        transfer_classifier(source, net)
    with refused(CheckpointError, "pooled_stages", code="K07"):
        transfer_classifier(tiny(position="none"), tiny(position="none", pooled_stages=(2,)))


@pytest.mark.parametrize("image_size", [8, 32])
@torch.no_grad()
def test_transfer_to_another_image_size(image_size):
    """Relative tables are cut or go on with their last row, as the layer does with maps of another size."""
    source, net = tiny(), tiny(seed=1, image_size=image_size)
    assert "3 of them known" in transfer_classifier(source, net)
    images = torch.randn(2, 3, image_size, image_size)
    torch.testing.assert_close(net(images), source(images))
    assert net.layer2[0].conv1.relative.height_table.shape[0] == image_size - 1
