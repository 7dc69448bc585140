"""Linear layers of the engine: weights in the order in which oneDNN's kernel reads them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from regard.engine.convolutions import is_fusable
from regard.models.transformer import DecoderLayer, EncoderLayer
from regard.models.vit import Block, MLPBlock, SelfAttention

# Layers that are called as modules; others, whose weights are read, stay.
_PACKED: dict[type[nn.Module], tuple[str, ...]] = {
    MLPBlock: ("fc1", "fc2"),
    SelfAttention: ("qkv", "proj"),
    EncoderLayer: ("linear1", "linear2"),
    DecoderLayer: ("linear1", "linear2"),
}


class PackedLinear(nn.Module):
    """A linear layer on a CPU; it keeps no other copy of its weights.

    Args:
        linear: of float32 or bfloat16, with bias.
        rows: about how many rows its inputs have; others work too.
    """

    packed: Tensor
    bias: Tensor

    def __init__(self, linear: nn.Linear, rows: int) -> None:
        super().__init__()
        weight = linear.weight.detach().contiguous()
        # No buffer: such a tensor can neither be moved nor saved.
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
        self.bias = linear.bias.detach().clone()

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., D)."""
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")


def pack_linear_layers(module: nn.Module, rows: int) -> None:
    """Pack the linear layers of transformers in place, where oneDNN takes them."""
    blocks = [block for block in module.modules() if isinstance(block, Block)]
    last = blocks[-1].attn if blocks else None  # its queries are projected apart
    for part in module.modules():
        for name in next((names for kind, names in _PACKED.items() if isinstance(part, kind)), ()):
            linear = getattr(part, name, None)
            if type(linear) is nn.Linear and is_fusable(linear.weight) and (part is not last or name != "qkv"):
                setattr(part, name, PackedLinear(linear, rows))
