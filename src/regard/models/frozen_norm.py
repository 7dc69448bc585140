"""Batch norm of fixed statistics, and ResNets that train with it at the cost of the convolutions alone.

Where scale and shift are constants, a norm behind a convolution is part of it: s (w * x) + t = (s w) * x + t. A step
then passes over every map two times less forward and once less backward, and the convolution's weights get the same
gradients through s w.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.ops.misc import FrozenBatchNorm2d


class FrozenBatchNorm(FrozenBatchNorm2d):
    """torchvision's batch norm of fixed statistics, which keeps half precision: its own result would be float32.

    Under mixed precision, scale and shift are float32 inside of one kernel, and the map before and after is half.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == self.weight.dtype:
            return super().forward(x)
        statistics = self.running_mean, self.running_var
        return F.batch_norm(x, *statistics, self.weight, self.bias, training=False, momentum=0.0, eps=self.eps)


def convolve(conv: nn.Module, norm: nn.Module, x: Tensor) -> Tensor:
    """Return `norm(conv(x))`, (B, C, H, W) -> (B, F, H', W'), in new memory; in one operation if both can be joined."""
    if type(conv) is not nn.Conv2d or type(norm) is not FrozenBatchNorm or not norm.training:
        return norm(conv(x))
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    shift = norm.bias - norm.running_mean * scale
    assert conv.bias is None
    return conv._conv_forward(x, conv.weight * scale[:, None, None, None], shift)


def join_norms(net: ResNet) -> ResNet:
    """Return a ResNet of torchvision with frozen norms, changed in place: its blocks join them with convolutions.

    They do so in training. In evaluation torchvision's own code runs, whose results are those of the released weights.
    """
    for block in net.modules():
        if type(block) in _JOINED:
            block.__class__ = _JOINED[type(block)]
    return net


class JoinedBasicBlock(BasicBlock):
    """Two 3x3 convolutions and a shortcut."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, F, H', W')."""
        if not self.training:
            return super().forward(x)
        out = convolve(self.conv1, self.bn1, x).relu_()
        return convolve(self.conv2, self.bn2, out).add_(_shortcut(self.downsample, x)).relu_()


class JoinedBottleneck(Bottleneck):
    """1x1, 3x3 and 1x1 convolutions and a shortcut."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, F, H', W')."""
        if not self.training:
            return super().forward(x)
        out = convolve(self.conv1, self.bn1, x).relu_()
        out = convolve(self.conv2, self.bn2, out).relu_()
        return convolve(self.conv3, self.bn3, out).add_(_shortcut(self.downsample, x)).relu_()


_JOINED: dict[type[nn.Module], type[nn.Module]] = {BasicBlock: JoinedBasicBlock, Bottleneck: JoinedBottleneck}


def _shortcut(downsample: nn.Module | None, x: Tensor) -> Tensor:
    if not isinstance(downsample, nn.Sequential):
        return x
    conv, norm = downsample
    return convolve(conv, norm, x)
