"""Convolutions with channels last: where they are wanted, and that nothing else changes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from regard.models.build import create
from regard.models.memory_order import move_to_device

CPU = torch.device("cpu")


def orders(net):
    """Whether each convolution of more than one number per channel has its channels last."""
    weights = [m.weight for m in net.modules() if isinstance(m, nn.Conv2d) and m.weight.shape[2:].numel() > 1]
    return {w.is_contiguous(memory_format=torch.channels_last) for w in weights if w.shape[1] > 1}


@pytest.mark.parametrize("name", ["resnet18", "aa_resnet20", "san10_pairwise", "deit_tiny_patch16_224"])
@torch.no_grad()
def test_outputs_are_the_same(name):
    net = create(name, num_classes=4).eval()
    images = torch.randn(1, 3, 224 if "deit" in name else 32, 224 if "deit" in name else 32)
    plain, before = net(images), {key: value.clone() for key, value in net.state_dict().items()}
    assert orders(move_to_device(net, "auto", CPU)) <= {False} and orders(move_to_device(net, "off", CPU)) <= {False}
    assert orders(move_to_device(net, "on", CPU)) <= {True}
    torch.testing.assert_close(net(images), plain, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_automatic_on_cuda(monkeypatch):
    """Without a GPU here: the networks stay where they are."""
    monkeypatch.setattr(nn.Module, "to", stay(nn.Module.to))
    device = torch.device("cuda")
    assert orders(move_to_device(create("resnet18"), "auto", device)) == {True}
    assert orders(move_to_device(create("detr_resnet18"), "auto", device)) == {True}
    assert orders(move_to_device(create("resnet18"), "off", device)) == {False}
    assert orders(move_to_device(create("deit_tiny_patch16_224"), "auto", device)) == {False}


def test_automatic_on_a_cpu():
    assert orders(move_to_device(create("detr_resnet18"), "auto", CPU)) == {True}
    assert orders(move_to_device(create("detr_resnet18"), "off", CPU)) == {False}


def stay(to):
    def moved(module, *places, **options):
        return module if places and isinstance(places[0], torch.device) else to(module, *places, **options)

    return moved
