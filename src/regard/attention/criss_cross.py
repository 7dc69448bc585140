"""Criss-cross attention: a cell attends to its row and its column; applied twice, it covers the whole map.

    A_i,u = softmax over i of Q_u . K_i, i in the row and the column of u,    x'_u = gamma sum over i of A_i,u V_i + x_u

with no factor 1/sqrt(d), the cell u counted once, and one softmax over these H + W - 1 keys. Source: Huang et al.
2019 (CCNet), sections 3.2 and 3.3. Time O(N (H + W)(C' + C)) per pass for N = H W cells and keys of width C';
memory O(N (H + W)): rows and columns are batched products, and no map of N x N pairs is formed.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class CrissCrossAttention(nn.Module):
    """Criss-cross attention with a residual sum, applied `recurrence` times with the same weights.

    Queries and keys have an eighth of the channels, values all of them. gamma is 0 at first: the layer starts as the
    identity.

    Args:
        channels: C of input and output.
        recurrence: number of passes R; with two or more, every cell reaches every other.

    Raises:
        ValueError: numbers below 1.
    """

    def __init__(self, channels: int, recurrence: int = 2) -> None:
        super().__init__()
        if channels < 1 or recurrence < 1:
            raise ValueError(f"channels {channels} and recurrence {recurrence} must be at least 1")
        self.channels = channels
        self.recurrence = recurrence
        key_channels = max(1, channels // 8)
        self.query = nn.Conv2d(channels, key_channels, 1)
        self.key = nn.Conv2d(channels, key_channels, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W), any H and W from 1 up."""
        for _ in range(self.recurrence):
            x = self.gamma * criss_cross_attention(self.query(x), self.key(x), self.value(x)) + x
        return x

    def extra_repr(self) -> str:
        return f"{self.channels}, recurrence={self.recurrence}"


def criss_cross_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """One pass without the residual: (B, d, H, W), (B, d, H, W), (B, e, H, W) -> (B, e, H, W)."""
    row, column = criss_cross_weights(query, key)
    from_row = torch.einsum("bhwv,bchv->bchw", row, value)
    from_column = torch.einsum("bhwg,bcgw->bchw", column, value)
    return from_row + from_column


def criss_cross_weights(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weights of the keys in the row of each cell, (B, H, W, W), and in its column, (B, H, W, H).

    Both together sum to 1 for a cell; its weight for itself is in the row, and 0 in the column.

    Args:
        query, key: (B, d, H, W).
    """
    h, w = query.shape[-2:]
    row = torch.einsum("bchw,bchv->bhwv", query, key)
    column = torch.einsum("bchw,bcgw->bhwg", query, key)
    # The row already contains the cell itself, so no softmax is empty, even for H = 1.
    itself = torch.eye(h, dtype=torch.bool, device=query.device)[:, None]
    column = column.masked_fill(itself, -math.inf)
    row, column = torch.cat((row, column), dim=-1).softmax(dim=-1).split((w, h), dim=-1)
    return row, column
