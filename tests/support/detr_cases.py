"""Weights and images that anyone can rebuild from a rule, and the transformer written out with softmax and sums."""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.models.configs.detr import DETRConfig
from regard.models.detr import DETR

GOLDEN = Path(__file__).parents[1] / "golden"
SMALL = DETRConfig(
    num_classes=4, backbone="small", embed_dim=16, num_heads=4, encoder_layers=2, decoder_layers=3, feedforward_dim=24,
    dropout=0.0, num_queries=5,
)  # fmt: skip


def reference_weights() -> dict[str, Tensor]:
    """Values for all tensors of the authors' DETR-R50 checkpoint, drawn from the name of each."""
    shapes = json.loads((GOLDEN / "detr_resnet50.shapes.json").read_text())
    return {name: _draw(name, shape) for name, shape in shapes.items()}


def _draw(name: str, shape: list[int]) -> Tensor:
    g = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    if name.endswith("running_var"):
        return 0.5 + torch.rand(shape, generator=g)
    values = torch.randn(shape, generator=g)
    if name.endswith("running_mean"):
        return 0.1 * values
    if name.endswith("bn3.weight"):
        return 0.3 + 0.1 * values
    if len(shape) == 1:
        return 1 + 0.1 * values if name.endswith("weight") else 0.02 * values
    if name.endswith("query_embed.weight"):
        return 2 * values
    values /= math.sqrt(math.prod(shape[1:]))
    if name.endswith("in_proj_weight"):
        values[: 2 * shape[1]] *= 3
    if name.endswith("out_proj.weight"):
        values *= 0.5
    return values


def reference_image(seed: int, height: int, width: int) -> Tensor:
    """A normalised image (3, H, W)."""
    g = torch.Generator().manual_seed(seed)
    coarse = torch.randn(3, -(-height // 32), -(-width // 32), generator=g)
    blocks = coarse.repeat_interleave(32, 1).repeat_interleave(32, 2)[:, :height, :width]
    return 2 * blocks + 0.5 * torch.randn(3, height, width, generator=g)


def randomized(config: DETRConfig, seed: int = 0) -> DETR:
    """A model whose every parameter is random, biases, norms and box head as well, in evaluation mode."""
    torch.manual_seed(seed)
    net = DETR(config)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
            elif name.startswith("bbox_embed"):
                parameter.normal_(std=0.3)
    return net.eval()


# --- the transformer of DETR, figure 10 ---


def plain_attention(m: nn.Module, query: Tensor, key: Tensor, value: Tensor, seen: Tensor | None = None) -> Tensor:
    """Attention with the weights of `m`; `seen` (B, M) bool are the keys that may be looked at."""
    c, heads = query.shape[-1], m.num_heads
    parts = zip((query, key, value), m.in_proj_weight.split(c), m.in_proj_bias.split(c), strict=True)
    q, k, v = ((x @ w.T + b).unflatten(-1, (heads, c // heads)) for x, w, b in parts)
    scores = torch.einsum("bnhd,bmhd->bhnm", q, k) / math.sqrt(c // heads)
    if seen is not None:
        scores = torch.where(seen[:, None, None], scores, torch.tensor(-1e9))
    joined = torch.einsum("bhnm,bmhd->bnhd", scores.softmax(-1), v).flatten(2)
    return joined @ m.out_proj.weight.T + m.out_proj.bias


def plain_norm(m: nn.Module, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * m.weight + m.bias


def plain_feed_forward(m: nn.Module, x: Tensor) -> Tensor:
    return F.relu(x @ m.linear1.weight.T + m.linear1.bias) @ m.linear2.weight.T + m.linear2.bias


def plain_encoder_layer(m: nn.Module, x: Tensor, place: Tensor | int, seen: Tensor | None, pre: bool) -> Tensor:
    if pre:
        y = plain_norm(m.norm1, x)
        x = x + plain_attention(m.self_attn, y + place, y + place, y, seen)
        return x + plain_feed_forward(m, plain_norm(m.norm2, x))
    x = plain_norm(m.norm1, x + plain_attention(m.self_attn, x + place, x + place, x, seen))
    return plain_norm(m.norm2, x + plain_feed_forward(m, x))


def plain_decoder_layer(
    m: nn.Module,
    x: Tensor,
    query: Tensor | int,
    memory: Tensor,
    place: Tensor | int,
    seen: Tensor | None,
    pre: bool,
) -> Tensor:
    if pre:
        y = plain_norm(m.norm1, x)
        x = x + plain_attention(m.self_attn, y + query, y + query, y)
        y = plain_norm(m.norm2, x)
        x = x + plain_attention(m.multihead_attn, y + query, memory + place, memory, seen)
        return x + plain_feed_forward(m, plain_norm(m.norm3, x))
    x = plain_norm(m.norm1, x + plain_attention(m.self_attn, x + query, x + query, x))
    x = plain_norm(m.norm2, x + plain_attention(m.multihead_attn, x + query, memory + place, memory, seen))
    return plain_norm(m.norm3, x + plain_feed_forward(m, x))
