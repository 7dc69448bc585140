"""ResNets that join frozen norms with convolutions in training compute what torchvision's do."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from regard.models.backbone import create_backbone
from regard.models.frozen_norm import FrozenBatchNorm, convolve, join_norms


def spread(net: nn.Module) -> nn.Module:
    """Return a network whose norms have other constants than those that do nothing."""
    torch.manual_seed(0)
    for module in net.modules():
        if isinstance(module, FrozenBatchNorm):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(std=0.1)
    return net


def maps_and_gradients(net: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    net.zero_grad()
    maps = net(images)
    sum((m * torch.linspace(-1, 1, m.numel(), dtype=m.dtype).view_as(m)).mean() for m in maps[1:]).backward()
    return [*(m.detach() for m in maps), *(p.grad for p in net.parameters() if p.grad is not None)]


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d"])
def test_joined_equals_plain(name: str) -> None:
    """In float64: in float32 a sum next to 0 may end on the other side of a ReLU, which changes a gradient by 1e-4."""
    net = spread(create_backbone(name)).double()
    images = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    joined = maps_and_gradients(net.train(), images)
    plain = maps_and_gradients(net.eval(), images)  # torchvision's own forward
    assert len(joined) == len(plain) > 15
    for found, expected in zip(joined, plain, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_frozen_parts_get_no_gradient_and_no_graph() -> None:
    net = create_backbone("resnet18").train()
    fine, *coarse = net(torch.randn(1, 3, 64, 64))
    assert not fine.requires_grad and all(m.requires_grad for m in coarse)


def test_names_and_evaluation_stay() -> None:
    net, plain = create_backbone("resnet18").eval(), create_backbone("resnet18", norm="batch").eval()
    keys = {key for key in plain.state_dict() if "num_batches" not in key}
    assert set(net.state_dict()) == keys
    plain.load_state_dict(spread(net).state_dict(), strict=False)
    images = torch.randn(1, 3, 64, 64)
    for ours, theirs in zip(net(images), plain(images), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_other_norms_are_not_joined() -> None:
    net = create_backbone("resnet18", norm="batch")
    assert {type(m) for m in net.modules()} & {BasicBlock, Bottleneck} == {BasicBlock}
    x, conv, norm = torch.randn(2, 3, 8, 8), nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)
    torch.testing.assert_close(convolve(conv, norm, x), norm(conv(x)))
    assert norm.num_batches_tracked == 2


def test_joining_twice_changes_nothing() -> None:
    net = create_backbone("resnet18")
    kinds = [type(m) for m in net.modules()]
    assert [type(m) for m in join_norms(net.body) and net.modules()] == kinds


def test_half_precision() -> None:
    net = spread(create_backbone("resnet18")).train()
    images = torch.randn(1, 3, 64, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = net(images)[-1]
    assert half.dtype == torch.bfloat16
    full = net(images)[-1]
    assert (half.float() - full).abs().mean() < 0.03 * full.abs().mean()
