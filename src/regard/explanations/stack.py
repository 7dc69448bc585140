"""The attention of one place in all layers and heads at once: what a page needs to show any of them without waiting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from regard.errors import ConfigError
from regard.explanations.augmented import cell_attention
from regard.explanations.checks import cell_of, chosen
from regard.explanations.detr import covered
from regard.explanations.explanation import Box
from regard.models.detr import DETR
from regard.models.vit import VisionTransformer
from regard.structures.image_batch import ImageBatch

Point = tuple[float, float]


@dataclass(frozen=True, eq=False)
class LayerAttention:
    """One layer's attention from a place. name: of the layer. weights: (heads, h, w) float32 over the cells."""

    name: str
    weights: Tensor


@dataclass(frozen=True, eq=False)
class AttentionStack:
    """The attention of one place, layer by layer from the input to the output.

    Args:
        source: `query`, `point` or `token`.
        layers: as many heads and cells as each layer has.
        extent: x0, y0, x1, y1 in pixels of the original image, as in `SaliencyMap`: the area of the cells of a layer.
        point: x, y in pixels of the original, of a point.
    """

    source: str
    layers: Sequence[LayerAttention]
    extent: Box
    point: Point | None = None


@torch.no_grad()
def detr_stack(
    net: DETR, batch: ImageBatch, size: tuple[int, int], *, query: int | None, point: Point | None
) -> AttentionStack:
    """Return the cross-attention of a query in each decoder layer, or of a point in each encoder layer.

    Args:
        batch: one image, normalised.
        size: (height, width) of the original image in pixels.

    Raises:
        ConfigError: both are given, or none (C09); no such query or point (C03); no encoder layer (C09).
    """
    if (query is None) == (point is None):
        raise ConfigError("expected a query or a point", where=net.card.name, remedy="name one of them", code="C09")
    if point is not None and net.config.encoder_layers == 0:
        raise ConfigError(f"{net.card.name} has no encoder layer", remedy="name a query", code="C09")
    maps = net.attention(batch, encoder=point is not None)
    grid = maps.feature_size
    extent = covered(net, grid, batch.sizes[0], size)
    if query is not None:
        number = chosen("query", query, maps.decoder_cross.shape[3], 0)
        return AttentionStack("query", _layers("decoder", maps.decoder_cross[:, 0, :, number], grid), extent)
    assert maps.encoder is not None
    y, x = cell_of(point, extent, grid)
    rows = maps.encoder[:, 0, :, y * grid[1] + x]
    return AttentionStack("point", _layers("encoder", rows, grid), extent, point)


@torch.no_grad()
def vit_stack(
    net: VisionTransformer, pixels: Tensor, extent: Box, *, token: int, point: Point | None
) -> AttentionStack:
    """Return the attention of a token in front (0 class, 1 distillation), or of the patch at a point, in each block.

    Args:
        pixels: (1, 3, H, W), normalised.
        extent: the part of the original that they show.

    Raises:
        ConfigError: no such token or point (C03).
    """
    grid = (pixels.shape[-2] // net.config.patch_size, pixels.shape[-1] // net.config.patch_size)
    row = chosen("token", token, net.num_tokens, 0)
    if point is not None:
        y, x = cell_of(point, extent, grid)
        row = net.num_tokens + y * grid[1] + x
    rows = torch.stack([block[0, :, row, net.num_tokens :] for block in net.attention(pixels)])  # (L, heads, N)
    return AttentionStack("token" if point is None else "point", _layers("block", rows, grid), extent, point)


def augmented_stack(net: nn.Module, pixels: Tensor, extent: Box, *, point: Point | None) -> AttentionStack:
    """Return the attention of the cell at a point, or of the middle one, in each attention-augmented convolution.

    Args:
        pixels: (1, 3, H, W) as the network sees them.
        extent: the part of the original that they show.

    Raises:
        ConfigError: no such point (C03), or no such layer (C09).
    """
    point = point or ((extent[0] + extent[2]) / 2, (extent[1] + extent[3]) / 2)
    layers = [LayerAttention(name, weights) for name, weights in cell_attention(net, pixels, extent, point)]
    return AttentionStack("point", layers, extent, point)


def _layers(name: str, rows: Tensor, grid: tuple[int, int]) -> list[LayerAttention]:
    """(L, heads, N) -> a layer for each, (heads, h, w)."""
    return [LayerAttention(f"{name} {i}", row.float().cpu().unflatten(-1, grid)) for i, row in enumerate(rows)]
