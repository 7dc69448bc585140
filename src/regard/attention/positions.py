"""Position encodings for images: what tells attention where a token lies."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.errors import ConfigError

# Sine encodings map positions 0..1 to 0..2 pi (DETR, models/position_encoding.py).
SCALE = 2 * math.pi


def sine_embedding(positions: Tensor, num_features: int, temperature: float = 10000.0) -> Tensor:
    """Sines and cosines of `positions` at geometrically spaced frequencies: (...) -> (..., num_features).

    Even features are sines, odd ones cosines: sin(p / T^(2i/n)), cos(p / T^(2i/n)). (Vaswani et al. 2017, 3.5.)
    """
    i = torch.arange(num_features, device=positions.device, dtype=positions.dtype) // 2
    angles = positions[..., None] / temperature ** (2 * i / num_features)
    return torch.stack((angles[..., 0::2].sin(), angles[..., 1::2].cos()), dim=-1).flatten(-2)


class SinePositionEncoding(nn.Module):
    """Fixed 2-D sine encoding: half of the features for y, then half for x. (DETR, appendix A.4.)

    Positions count the cells of the visible part of an image from 1 and are divided by their number, so that 1 is
    always the last visible row or column.

    Args:
        embed_dim: width C of the encoding, a multiple of 4.
        temperature: ratio between the slowest and the fastest wave.
        centered: the position of a cell is its centre, as boxes measure it (Deformable DETR), not its far end.
    """

    def __init__(self, embed_dim: int, temperature: float = 10000.0, centered: bool = False) -> None:
        super().__init__()
        if embed_dim % 4:
            raise ValueError(f"embed_dim {embed_dim} is not a multiple of 4")
        self.embed_dim = embed_dim
        self.temperature = temperature
        self.shift = 0.5 if centered else 0.0

    def forward(self, padding: Tensor) -> Tensor:
        """Mask (B, h, w) bool, True where there is padding -> encoding (B, h, w, C)."""
        valid = (~padding).to(torch.float32)
        y, x = valid.cumsum(dim=1), valid.cumsum(dim=2)
        y = (y - self.shift) / (y[:, -1:, :] + 1e-6) * SCALE
        x = (x - self.shift) / (x[:, :, -1:] + 1e-6) * SCALE
        return torch.cat([sine_embedding(p, self.embed_dim // 2, self.temperature) for p in (y, x)], dim=-1)


class LearnedPositionEncoding(nn.Module):
    """Learned 2-D encoding: a vector per column, then a vector per row. (DETR, models/position_encoding.py.)

    Args:
        embed_dim: width C of the encoding, even.
        max_size: largest height and width in cells; the authors' tables hold 50.
    """

    def __init__(self, embed_dim: int, max_size: int = 50) -> None:
        super().__init__()
        self.row_embed = nn.Embedding(max_size, embed_dim // 2)
        self.col_embed = nn.Embedding(max_size, embed_dim // 2)
        nn.init.uniform_(self.row_embed.weight)
        nn.init.uniform_(self.col_embed.weight)

    def forward(self, padding: Tensor) -> Tensor:
        """Mask (B, h, w) bool, of which only the shape counts -> encoding (B, h, w, C)."""
        b, h, w = padding.shape
        largest = self.row_embed.num_embeddings
        if max(h, w) > largest:
            raise ConfigError(
                f"the feature map is {h} x {w} cells but learned positions end at {largest}",
                remedy="use smaller images, or sine positions",
                code="C03",
            )
        rows = self.row_embed.weight[:h, None].expand(-1, w, -1)
        columns = self.col_embed.weight[None, :w].expand(h, -1, -1)
        return torch.cat((columns, rows), dim=-1).expand(b, -1, -1, -1)


def coordinate_channels(x: Tensor) -> Tensor:
    """The row and the column of every cell, -1 at the first and 1 at the last: (B, C, H, W) -> (B, 2, H, W).

    Concatenated to a map, they tell convolutions and attention where they are (CoordConv, Liu et al. 2018).
    """
    b, _, h, w = x.shape
    rows, columns = (2 * torch.arange(n, device=x.device, dtype=x.dtype) / max(n - 1, 1) - 1 for n in (h, w))
    return torch.stack((rows[:, None].expand(h, w), columns.expand(h, w))).expand(b, -1, -1, -1)


def resize_positions(
    table: Tensor, size: tuple[int, int], new_size: tuple[int, int], antialias: bool = False
) -> Tensor:
    """Learnt positions of a grid for a grid of another size: (1, h w, C) -> (1, h' w', C), row by row.

    Bicubic, in float32. `antialias` off: as the authors of DeiT do (main.py, `--finetune`); on: as timm does, whose
    kernel is another one also where the grid grows.
    """
    if not torch.compiler.is_exporting() and size == new_size:  # an exported graph serves all sizes
        return table
    grid = table.float().transpose(1, 2).unflatten(2, size)
    resized = F.interpolate(grid, new_size, mode="bicubic", align_corners=False, antialias=antialias)
    return resized.flatten(2).transpose(1, 2).to(table.dtype)
