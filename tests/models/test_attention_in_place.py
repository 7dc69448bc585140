"""Layers in the place of convolutions, and squeeze-and-excitation: shapes, counts, formulas."""

from dataclasses import replace

import pytest
import torch

from regard.models.attention_in_place import SqueezeExcitation, attention_in_place
from regard.models.catalog import preset
from regard.models.resnet import ResNet

KINDS = ("axial", "stand_alone", "local_relation", "pairwise", "patchwise")


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_of_a_convolution(kind):
    for channels, stride, side in (((16, 32), 2, 4), ((32, 32), 1, 7), ((32, 64), 2, 3)):
        layer = attention_in_place(kind, *channels, stride, 4, side)
        height, width = (side * stride - (stride - 1), side * stride)
        out = layer(torch.randn(2, channels[0], height, width))
        assert out.shape == (2, channels[1], -(-height // stride), -(-width // stride))
        out.sum().backward()
        assert all(p.grad is not None for p in layer.parameters())


def test_squeeze_and_excitation_by_its_formula():
    layer, x = SqueezeExcitation(32, 8), torch.randn(2, 32, 5, 6)
    w1, b1, w2, b2 = (p.flatten(1) if p.ndim == 4 else p for p in layer.parameters())
    scale = torch.sigmoid(torch.relu(x.mean((2, 3)) @ w1.T + b1) @ w2.T + b2)
    torch.testing.assert_close(layer(x), x * scale[:, :, None, None])


def test_published_number_of_parameters():
    """SE-ResNet-50 has 28.1 million, SE-ResNet-34 22.0 and SE-ResNet-152 66.8 (Bello et al. 2019, table 2)."""
    for depth, millions in ((50, 28.1), (34, 22.0), (152, 66.8)):
        net = ResNet(replace(preset(f"resnet{depth}"), squeeze=16))
        assert round(sum(p.numel() for p in net.parameters()) / 1e6, 1) == millions


@pytest.mark.parametrize("kind", KINDS)
def test_networks(kind):
    net = ResNet(replace(preset("aa_resnet20"), attention=kind))
    assert net(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    assert not any("conv1" in name and p.shape[-1] == 3 for name, p in net.layer3.named_parameters())
