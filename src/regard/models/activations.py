"""Activations computed again in the backward pass instead of kept: less memory for one more forward pass."""

from __future__ import annotations

from typing import Any

import torch
import torchvision
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from regard.errors import ConfigError
from regard.models import efficientnet, resnet, transformer, vit, wide_resnet

# The blocks of our networks. A decoder layer with anchors is a `DecoderLayer` too.
_BLOCKS = (
    torchvision.models.resnet.BasicBlock, torchvision.models.resnet.Bottleneck, resnet.BasicBlock, resnet.Bottleneck,
    wide_resnet.PreActivationBlock, efficientnet.DepthwiseSeparable, efficientnet.InvertedResidual,
    transformer.EncoderLayer, transformer.DecoderLayer, vit.Block,
)  # fmt: skip


def block_names(net: nn.Module) -> list[str]:
    """Return the names of the blocks of a network: most of its weights, of which one block's are used at a time."""
    return [name for name, module in net.named_modules() if isinstance(module, _BLOCKS)]


class Checkpointed(nn.Module):
    """What a block has besides its class: in training it keeps only its input. Dropout draws the same numbers again."""

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        if self.training and torch.is_grad_enabled():
            return checkpoint(super().__call__, *inputs, use_reentrant=False, **options)
        return super().__call__(*inputs, **options)


def checkpoint_activations(net: nn.Module) -> None:
    """Let the blocks of a network, changed in place, compute their activations again. Names and gradients stay.

    Blocks with batch norm that is trained stay as they are: its statistics would count every batch twice.

    Raises:
        ConfigError: no block is left (C09).
    """
    found = [block for block in net.modules() if isinstance(block, _BLOCKS) and not _has_statistics(block)]
    if not found:
        what = "checkpoint_activations=true, but every block of this network has batch norm"
        raise ConfigError(what, remedy="leave it out; lower batch_size and raise accumulate", code="C09")
    for block in found:
        kind = type(block)
        block.__class__ = type(kind.__name__, (Checkpointed, kind), {"__module__": kind.__module__})


def _has_statistics(block: nn.Module) -> bool:
    return any(isinstance(module, _BatchNorm) for module in block.modules())
