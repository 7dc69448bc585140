"""The order of the numbers of a map in memory: channel by channel, or the channels of a cell side by side."""

from __future__ import annotations

from typing import Literal, TypeVar

import torch
from torch import nn

from regard.models.backbone import ResNetBackbone
from regard.models.vit import VisionTransformer

Net = TypeVar("Net", bound=nn.Module)


def move_to_device(net: Net, channels_last: Literal["auto", "on", "off"], device: torch.device) -> Net:
    """Return a network on a device, its convolutions with channels last if wanted.

    Their maps follow: a convolution whose weights are channels last gives such maps. Tensor cores of CUDA compute
    convolutions in this order, and turn others around before and after each.

    Args:
        channels_last: `auto`: on CUDA, for networks of more convolutions than the one that cuts patches; on CPUs for
            detectors whose backbone is a ResNet (DETR-R50 trains 1.2 times as fast, others were not measured).
    """
    net = net.to(device)
    if channels_last == "off" or (channels_last == "auto" and not _gains(net, device)):
        return net
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.to(memory_format=torch.channels_last)
    return net


def _gains(net: nn.Module, device: torch.device) -> bool:
    """Return whether a network is known, or expected, to train faster with channels last."""
    if device.type == "cuda":
        return not isinstance(net, VisionTransformer)
    return device.type == "cpu" and isinstance(getattr(net, "backbone", None), ResNetBackbone)
