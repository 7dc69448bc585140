"""Axial attention: a cell attends to its row and then to its column instead of to the whole map.

    chain   y = columns(rows(x)): every cell reaches every other
    sum     y = rows(x) + columns(x)

where rows and columns are multi-head attention along one side, each with its own projections. With relative
positions, the logit of a query q for a key that lies t cells on is (q . k + q . r_t) / sqrt(d).

Source: Ho et al. 2019; Wang et al. 2020 (Axial-DeepLab), section 3.1, with its position term
of the query only. Time O(N (H + W) C + N C^2) for N = H W cells; memory O(N C) without positions, by fused kernels, and
O(heads N max(H, W)) with them. No map of N x N pairs is formed.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from regard.attention.multi_head import MultiHeadAttention, attend

COMBINATIONS = ("chain", "sum")
POSITIONS = ("none", "relative")


class AxialAttention(nn.Module):
    """Multi-head attention along the rows and along the columns of a map.

    Args:
        channels: C of input and output, a multiple of `num_heads`.
        num_heads: heads.
        combine: `chain` or `sum`, see above.
        position: `none`, or `relative`: a vector per offset along a side, shared by all heads.
        map_size: height and width for which relative tables are made. Other sizes work too: larger offsets use the
            vector of the largest one in the table.

    Raises:
        ValueError: heads do not divide the channels, a number is below 1, or a name is unknown.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        combine: str = "chain",
        position: str = "none",
        map_size: tuple[int, int] = (14, 14),
    ) -> None:
        super().__init__()
        for name, given, known in (("combine", combine, COMBINATIONS), ("position", position, POSITIONS)):
            if given not in known:
                raise ValueError(f"{name} {given!r} is none of {', '.join(known)}")
        if min(map_size) < 1:
            raise ValueError(f"map_size {map_size} must be at least 1 x 1")
        self.combine = combine
        height, width = map_size if position == "relative" else (None, None)
        self.row = AttentionAlongSide(channels, num_heads, width)
        self.column = AttentionAlongSide(channels, num_heads, height)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W), any H and W from 1 up."""
        rows = self.row(x)
        if self.combine == "sum":
            return rows + self._along_columns(x)
        return self._along_columns(rows)

    def _along_columns(self, x: Tensor) -> Tensor:
        return self.column(x.transpose(2, 3)).transpose(2, 3)

    def extra_repr(self) -> str:
        return f"combine={self.combine!r}"


class AttentionAlongSide(nn.Module):
    """Multi-head attention of each cell to the cells of its row.

    Args:
        channels: C of input and output.
        num_heads: heads.
        length: length of the rows for which the table of relative positions is made; None for no positions.
    """

    def __init__(self, channels: int, num_heads: int, length: int | None = None) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(channels, num_heads)
        self.table: nn.Parameter | None = None
        if length is not None:
            head_dim = channels // num_heads
            self.table = nn.Parameter(torch.empty(2 * length - 1, head_dim))  # row m is for the offset m - (length - 1)
            nn.init.normal_(self.table, std=head_dim**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W); rows are independent."""
        b, c, h, w = x.shape
        rows = x.permute(0, 2, 3, 1).reshape(b * h, w, c)
        query, key, value = self.attention.project(rows, rows, rows)
        attended = attend(query, key, value) if self.table is None else self._positioned(query, key, value)
        attended = self.attention.out_proj(attended.transpose(1, 2).flatten(2))
        return attended.view(b, h, w, c).permute(0, 3, 1, 2)

    def _positioned(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attention with logits (q . (k + r)) / sqrt(d), each (B H, heads, W, d)."""
        query = query * query.shape[-1] ** -0.5
        positions = torch.einsum("nhqd,qkd->nhqk", query, self._vectors(query.shape[2]))
        return (query @ key.transpose(-2, -1) + positions).softmax(dim=-1) @ value

    def _vectors(self, length: int) -> Tensor:
        """Return the vectors of all pairs of cells of a row, by key minus query: (W, W, d)."""
        assert self.table is not None
        farthest = self.table.shape[0] // 2
        places = torch.arange(length, device=self.table.device)
        offset = places[None, :] - places[:, None]
        return self.table[offset.clamp(-farthest, farthest) + farthest]
