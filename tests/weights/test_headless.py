"""Files without a class layer: training starts from them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import regard
from refusals import refused
from regard.errors import CheckpointError
from regard.models.build import build
from regard.models.detr import DETR
from regard.structures.categories import Category
from regard.weights.classifiers import transfer_classifier
from regard.weights.detr import official_name, transfer
from regard.weights.load import load_to_train
from run_files import PETS, SMALL

HEADS = ("fc.", "head.", "head_dist.", "classifier.", "class_embed.")


def bare(net) -> dict:
    return {key: tensor for key, tensor in net.state_dict().items() if not key.startswith(HEADS)}


def test_a_detector(tmp_path):
    torch.manual_seed(0)
    config = replace(SMALL, backbone="resnet18", num_heads=8)
    theirs, path = DETR(config), tmp_path / "no-class-head.pth"
    torch.save({"model": {official_name(key): tensor for key, tensor in bare(theirs).items()}}, path)
    with refused(CheckpointError, path, "regard train detr_resnet18", f"start_from={path}", code="K07"):
        regard.load(path)
    net = build(config, "detr_resnet18", PETS)
    drawn = net.class_embed.weight.clone()
    said = transfer(load_to_train(path), net)
    assert "random" in said
    assert torch.equal(net.class_embed.weight, drawn)  # no-object too
    for key, tensor in bare(theirs).items():
        assert torch.equal(net.state_dict()[key], tensor), key


@pytest.mark.parametrize("name", ["resnet20", "vit_tiny_patch16_224", "deit_nano_distilled_patch4_32"])
def test_a_classifier(tmp_path, name):
    torch.manual_seed(0)
    theirs, path = regard.create(name, num_classes=5), tmp_path / "bare.pth"
    torch.save(bare(theirs), path)
    model = None if "patch" in name else name
    with refused(CheckpointError, path, f"regard train {name}", f"start_from={path}", code="K07"):
        regard.load(path, model=model)
    net = regard.create(name, num_classes=3)
    drawn = {key: tensor.clone() for key, tensor in net.state_dict().items() if key.startswith(HEADS)}
    assert drawn and "random" in transfer_classifier(load_to_train(path, model=model), net)
    state = net.state_dict()
    assert all(torch.equal(state[key], tensor) for key, tensor in drawn.items())
    assert all(torch.equal(state[key], tensor) for key, tensor in bare(theirs).items())


def test_a_network_without_classes_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=128, num_hidden_layers=2, num_attention_heads=2, intermediate_size=512, image_size=32, patch_size=8
    )
    transformers.ViTModel(config).save_pretrained(tmp_path)  # with a pooler, which has no place in a classifier
    with refused(CheckpointError, "class layer", code="K07"):
        regard.load(tmp_path)
    assert load_to_train(tmp_path).card.categories == ()


@pytest.mark.usefixtures("blank_charts")
@pytest.mark.parametrize("model", ["resnet20", "deit_nano_patch4_32"])
def test_training_starts(tmp_path, model):
    torch.save(bare(regard.create(model, num_classes=4)), tmp_path / "bare.pth")
    words = ("workers=0", "device=cpu", f"start_from={tmp_path / 'bare.pth'}", "lr=1e-9", "batch_size=8", "ema=0")
    run = regard.train(
        model, "shapes:train=16,val=8,size=32", epochs=1, output=tmp_path / "run", overrides=words, quiet=True
    )
    before, after = torch.load(tmp_path / "bare.pth"), run.load().state_dict()
    kept = [key for key, tensor in before.items() if tensor.ndim > 1 and "running" not in key]
    assert all(torch.allclose(after[key], before[key], atol=1e-5) for key in kept)
    assert Category(0, "0") not in run.load().card.categories
