"""Convolutions of the engine: with batch norm folded in, and activation and residual sum in the same kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.ops.misc import FrozenBatchNorm2d

from regard.attention import AugmentedConv2d
from regard.models.efficientnet import DepthwiseSeparable, EfficientNet, InvertedResidual, SameConv2d
from regard.models.frozen_norm import FrozenBatchNorm
from regard.models.resnet import BasicBlock, Bottleneck, ResNet
from regard.models.wide_resnet import PreActivationBlock

Activation = Literal["none", "relu", "relu6"]
_ONEDNN: dict[str, tuple[str, list[float]]] = {
    "none": ("none", []),
    "relu": ("relu", []),
    "relu6": ("hardtanh", [0, 6]),
}
# The norm after a convolution, where both are attributes of one module.
_PAIRS: dict[type[nn.Module], tuple[tuple[str, str], ...]] = {
    ResNet: (("conv1", "bn1"),),
    torchvision.models.ResNet: (("conv1", "bn1"),),
    PreActivationBlock: (("conv1", "bn2"),),
    EfficientNet: (("conv_stem", "bn1"), ("conv_head", "bn2")),
}
_RESIDUAL = (BasicBlock, Bottleneck, torchvision.models.resnet.BasicBlock, torchvision.models.resnet.Bottleneck)


class FusedConv2d(nn.Conv2d):
    """A convolution, then the sum with another map, then an activation, in one pass over memory.

    On a CPU it calls oneDNN's kernel, as torch.compile does; elsewhere torch's functions one after the other.

    Args:
        conv: whose weights it takes over.
        activation: what follows.
    """

    def __init__(self, conv: nn.Conv2d, activation: Activation = "none") -> None:
        nn.Module.__init__(self)
        vars(self).update(vars(conv))
        self.activation: Activation = activation
        self.same = isinstance(conv, SameConv2d) and conv.stride[0] > 1
        self.pads_with_zeros = not isinstance(conv.padding, str) and conv.padding_mode == "zeros"
        self.one_kernel = self.pads_with_zeros and is_fusable(self.weight)
        if self.weight.device.type == "cpu":
            self.weight.data = self.weight.data.contiguous(memory_format=torch.channels_last)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FusedConv2d:
        """Decide anew on a device, or in a precision, to which the weights were moved."""
        super()._apply(fn, recurse)
        self.one_kernel = self.pads_with_zeros and is_fusable(self.weight)
        return self

    def forward(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        """(B, C, H, W) -> (B, F, H', W'); `added` (B, F, H', W') is added before the activation."""
        if self.same:
            x = F.pad(x, same_padding(x, self.kernel_size[0]))
        if not self.one_kernel:
            x = self._conv_forward(x, self.weight, self.bias)
            return _activated(x if added is None else x + added, self.activation)
        settings = (self.weight, self.bias, self.padding, self.stride, self.dilation, self.groups)
        name, numbers = _ONEDNN[self.activation]
        if added is None:
            return torch.ops.mkldnn._convolution_pointwise(x, *settings, name, numbers, "")
        after = None if name == "none" else name
        return torch.ops.mkldnn._convolution_pointwise.binary(x, added, *settings, "add", 1.0, after, numbers, "")


class ResidualBlock(nn.Module):
    """Convolutions one after the other, and a shortcut around them.

    Args:
        layers: all but the last.
        last: the last convolution, whose kernel adds the shortcut and ends with the block's activation.
        shortcut: what the input passes on its way around; None adds the input itself.
        excitation: what follows the last convolution before the sum, or None.
    """

    def __init__(
        self, layers: Sequence[nn.Module], last: FusedConv2d, shortcut: nn.Module | None, excitation: nn.Module | None
    ) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.last = last
        self.shortcut = shortcut
        self.excitation = excitation

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, F, H', W')."""
        bypass = x if self.shortcut is None else self.shortcut(x)
        x = self.layers(x)
        if self.excitation is None:
            return self.last(x, bypass)
        return (self.excitation(self.last(x)) + bypass).relu_()


def fuse_convolutions(module: nn.Module) -> nn.Module:
    """Return `module`, changed in place, with the convolutions of the engine. It has to be in evaluation mode.

    Convolutions and norms are paired where the code of their module says that one follows the other: in sequences and
    in the blocks of our networks and of torchvision's ResNets. Other norms, as in networks of timm, stay.
    """
    if isinstance(module, _RESIDUAL):
        return _residual(module)
    if isinstance(module, (DepthwiseSeparable, InvertedResidual)):
        return _mobile(module)
    for pairs in (found for kind, found in _PAIRS.items() if isinstance(module, kind)):
        for first, second in pairs:
            conv, norm = getattr(module, first, None), getattr(module, second, None)  # a backbone has no head
            if conv is not None and norm is not None and is_foldable(conv, norm):
                setattr(module, first, folded(conv, norm))
                setattr(module, second, nn.Identity())
    if type(module) is nn.Sequential or isinstance(module, torchvision.ops.misc.ConvNormActivation):
        _fuse_sequence(module)
    if type(module) in (nn.Conv2d, SameConv2d):
        assert isinstance(module, nn.Conv2d)
        return FusedConv2d(module)
    for name, child in list(module.named_children()):
        setattr(module, name, fuse_convolutions(child))
    return module


def is_fusable(weight: Tensor) -> bool:
    """Return whether oneDNN's kernels take this weight."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32


def same_padding(x: Tensor, size: int) -> tuple[int, int, int, int]:
    """Return the padding left, right, above and below of a `SameConv2d` of stride 2."""
    rows, columns = (size - 2 + side % 2 for side in x.shape[-2:])
    return columns // 2, columns - columns // 2, rows // 2, rows - rows // 2


def is_foldable(conv: nn.Module, norm: nn.Module) -> bool:
    """Return whether `folded` can join both: constants of a norm that follows a convolution, plain or augmented."""
    if type(norm) is nn.BatchNorm2d:
        return type(conv) in (nn.Conv2d, SameConv2d, AugmentedConv2d) and norm.running_mean is not None
    return type(norm) in (FrozenBatchNorm2d, FrozenBatchNorm) and type(conv) in (nn.Conv2d, SameConv2d, AugmentedConv2d)


def folded(conv: nn.Module, norm: nn.Module) -> nn.Module:
    """Return `conv` with the norm behind it in its weights: w s and b s + t, with s = gamma / sqrt(var + eps).

    Of an augmented convolution, the channels of attention end with a linear layer, and averages and interpolation,
    which may follow it, keep a constant: so the norm folds into that layer.
    """
    scale, shift = _constants(norm)
    if isinstance(conv, nn.Conv2d):
        return _scaled(conv, scale, shift)
    assert isinstance(conv, AugmentedConv2d)
    rest = conv.out_channels - conv.value_channels
    if conv.conv is not None:
        conv.conv = _scaled(conv.conv, scale[:rest], shift[:rest])
    if conv.value_channels:
        conv.out = _scaled(conv.out, scale[rest:], shift[rest:])
    return conv


def _constants(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Return scale and shift of a batch norm, float64."""
    if not isinstance(norm, (nn.BatchNorm2d, FrozenBatchNorm2d)):
        raise TypeError(type(norm).__name__)
    assert norm.running_mean is not None and norm.running_var is not None
    scale = (_double(norm.running_var) + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * _double(norm.weight)
    shift = -_double(norm.running_mean) * scale
    return scale, shift if norm.bias is None else shift + _double(norm.bias)


def _scaled(conv: nn.Conv2d, scale: Tensor, shift: Tensor) -> nn.Conv2d:
    weight, bias = _double(conv.weight) * scale[:, None, None, None], shift
    if conv.bias is not None:
        bias = bias + _double(conv.bias) * scale
    place = conv.weight.detach()
    conv.weight = nn.Parameter(weight.to(place), requires_grad=False)
    conv.bias = nn.Parameter(bias.to(place), requires_grad=False)
    return conv


def _double(tensor: Tensor) -> Tensor:
    """In float64, on the CPU: not every device has it."""
    return tensor.detach().cpu().double()


def _layer(conv: nn.Module, norm: nn.Module, activation: Activation) -> nn.Module:
    """Return a convolution, its norm and its activation as one module."""
    if not is_foldable(conv, norm):
        return nn.Sequential(fuse_convolutions(conv), norm, _Activated(activation))
    joined = folded(conv, norm)
    if isinstance(joined, nn.Conv2d):
        return FusedConv2d(joined, activation)
    return nn.Sequential(fuse_convolutions(joined), _Activated(activation))


def _residual(block: nn.Module) -> nn.Module:
    """A block of a ResNet, ours or torchvision's."""
    numbers = [number for number in (1, 2, 3) if hasattr(block, f"conv{number}")]
    *pairs, last = [(block.get_submodule(f"conv{n}"), block.get_submodule(f"bn{n}")) for n in numbers]
    excitation = getattr(block, "excitation", None)
    if not _ends_fused(*last):  # before anything is folded: the block stays
        return block
    end = _layer(*last, "none" if excitation is not None else "relu")
    assert isinstance(end, FusedConv2d)
    downsample = block.downsample
    shortcut = fuse_convolutions(downsample) if isinstance(downsample, nn.Module) else None
    return ResidualBlock([_layer(conv, norm, "relu") for conv, norm in pairs], end, shortcut, excitation)


def _mobile(block: DepthwiseSeparable | InvertedResidual) -> nn.Module:
    """A block of an EfficientNet-Lite: the activation comes before the last convolution only."""
    if isinstance(block, DepthwiseSeparable):
        return nn.Sequential(_layer(block.conv_dw, block.bn1, "relu6"), _layer(block.conv_pw, block.bn2, "none"))
    if block.has_bypass and not _ends_fused(block.conv_pwl, block.bn3):
        return block
    layers = [_layer(block.conv_pw, block.bn1, "relu6"), _layer(block.conv_dw, block.bn2, "relu6")]
    last = _layer(block.conv_pwl, block.bn3, "none")
    if not block.has_bypass:
        return nn.Sequential(*layers, last)
    assert isinstance(last, FusedConv2d)
    return ResidualBlock(layers, last, None, None)


def _ends_fused(conv: nn.Module, norm: nn.Module) -> bool:
    """Return whether both become one convolution, to whose result a shortcut can be added."""
    return isinstance(conv, nn.Conv2d) and is_foldable(conv, norm)


def _fuse_sequence(sequence: nn.Sequential) -> None:
    """Join convolution, norm and ReLU that follow each other. Places stay: what is joined leaves an identity."""
    layers = list(sequence)
    for number, conv in enumerate(layers[:-1]):
        norm = layers[number + 1]
        if not is_foldable(conv, norm):
            continue
        after = layers[number + 2] if number + 2 < len(layers) else None
        activation: Activation = "relu" if type(after) is nn.ReLU else "relu6" if type(after) is nn.ReLU6 else "none"
        sequence[number] = _layer(conv, norm, activation)
        sequence[number + 1] = nn.Identity()
        if activation != "none":
            sequence[number + 2] = nn.Identity()


class _Activated(nn.Module):
    """An activation in place."""

    def __init__(self, activation: Activation) -> None:
        super().__init__()
        self.activation: Activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return _activated(x, self.activation)


def _activated(x: Tensor, activation: Activation) -> Tensor:
    if activation == "none":
        return x
    return x.relu_() if activation == "relu" else F.relu6(x, inplace=True)
