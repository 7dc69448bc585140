"""Checkpointed activations: equal gradients with dropout, equal names, less memory kept."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from refusals import refused
from regard.errors import ConfigError
from regard.models.activations import Checkpointed, checkpoint_activations
from regard.models.build import create


def gradients(net: nn.Module, images: torch.Tensor) -> tuple[list[torch.Tensor], int]:
    """Return the gradients of a step, and how many numbers it kept for them besides the weights."""
    kept: dict[int, int] = {}
    weights = {p.untyped_storage().data_ptr() for p in net.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        place = tensor.untyped_storage()
        if place.data_ptr() not in weights:
            kept[place.data_ptr()] = place.nbytes()
        return tensor

    torch.manual_seed(1)
    net.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = net(images)
    logits = output if isinstance(output, torch.Tensor) else output.logits
    (
        logits.square().mean() if isinstance(output, torch.Tensor) else logits.square().mean() + output.boxes.mean()
    ).backward()
    return [p.grad for p in net.parameters() if p.grad is not None], sum(kept.values())


@pytest.mark.parametrize("name", ["detr_resnet18", "detr_tiny", "deit_nano_patch4_32"])
def test_gradients_are_equal(name: str) -> None:
    torch.manual_seed(0)
    net = create(name, num_classes=4).train()
    images = torch.randn(2, 3, 32, 32) if "deit" in name else torch.randn(2, 3, 64, 96)
    plain, kept = gradients(net, images)
    names = list(net.state_dict())
    checkpoint_activations(net)
    again, less = gradients(net, images)
    assert list(net.state_dict()) == names and len(again) == len(plain)
    for found, expected in zip(again, plain, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    assert less < 0.8 * kept


def test_copies_and_evaluation() -> None:
    """The moving average of the weights is a copy."""
    net = create("deit_nano_patch4_32", num_classes=4).eval()
    images = torch.randn(1, 3, 32, 32)
    plain = net(images)
    checkpoint_activations(net)
    assert torch.equal(net(images), plain) and torch.equal(copy.deepcopy(net)(images), plain)
    assert any(isinstance(module, Checkpointed) for module in net.modules())


def test_batch_norm_is_refused() -> None:
    with refused(ConfigError, "batch norm", "accumulate"):
        checkpoint_activations(create("aa_resnet20"))
