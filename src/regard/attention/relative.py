"""Relative positions in two dimensions: a query also scores the horizontal and vertical offset of a key.

    logit(i, j) = q_i . k_j + q_i . r^W[x_j - x_i] + q_i . r^H[y_j - y_i]

Source: Bello et al. 2019, section 3.2 and the listing of its appendix; after Shaw et al. 2018. Offsets are key minus
query. The tables are shared by all heads but not by layers.

`relative_attention` computes this in several ways with the same result (N = H W, d and e widths of a head):

    broadcast   the sum of three products, softmax, product with values. Time O(N^2 (d + e)), memory O(heads N^2).
    fused       queries extended by their logits per row and column, keys by one-hot coordinates: an ordinary dot
                product, which fused kernels compute without the map. Time O(N^2 (d + e + H + W)), memory O(N (H + W)).
    chunked     broadcast for some queries at a time, computed again in the backward pass. Memory O(heads N chunk).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

METHODS = ("auto", "broadcast", "fused", "chunked")
# Logits at once in `chunked`: 16 MiB of float32, which stay in the cache of a server.
CHUNK = 2**22


class RelativePosition2d(nn.Module):
    """A learned vector for every row offset and every column offset between a key and a query.

    The tables are made for maps of one size and work for any other: smaller maps use the central rows, and offsets
    beyond the tables use the vector of the largest offset.

    Args:
        height: height in cells of the maps for which the tables are made.
        width: width in cells of these maps.
        head_dim: width d of a query.
    """

    def __init__(self, height: int, width: int, head_dim: int) -> None:
        super().__init__()
        if min(height, width, head_dim) < 1:
            raise ValueError(f"height {height}, width {width} and head_dim {head_dim} must be at least 1")
        # Row m is for the offset m - (L - 1). The listing passes d^-0.5 where TensorFlow takes the mean; a mean adds
        # the same number to all logits of a query, so only the deviation counts, and that was surely meant.
        self.height_table = nn.Parameter(torch.empty(2 * height - 1, head_dim))
        self.width_table = nn.Parameter(torch.empty(2 * width - 1, head_dim))
        for table in (self.height_table, self.width_table):
            nn.init.normal_(table, std=head_dim**-0.5)

    def forward(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """What each query (B, heads, H, W, d) adds to keys of each row (..., H) and of each column (..., W)."""
        b, heads, h, w = query.shape[:4]
        # One product per row of queries, all of whose keys in a row lie equally far up or down; then per column.
        by_row = query.permute(2, 0, 1, 3, 4).contiguous().flatten(1, 3)
        rows = by_row @ _by_offset(self.height_table, h).transpose(1, 2)
        by_column = query.permute(3, 0, 1, 2, 4).contiguous().flatten(1, 3)
        columns = by_column @ _by_offset(self.width_table, w).transpose(1, 2)
        rows = rows.view(h, b, heads, w, h).permute(1, 2, 0, 3, 4)
        columns = columns.view(w, b, heads, h, w).permute(1, 2, 3, 0, 4)
        return rows, columns


def _by_offset(table: Tensor, length: int) -> Tensor:
    """The vectors between all pairs of cells: table (2L - 1, d) -> (length queries, length keys, d)."""
    farthest = table.shape[0] // 2
    places = torch.arange(length, device=table.device)
    offset = places[None, :] - places[:, None]
    return table[offset.clamp(-farthest, farthest) + farthest]


def relative_logits(query: Tensor, key: Tensor, position: RelativePosition2d | None) -> Tensor:
    """Scores of all keys for all queries, each (B, heads, H, W, d) -> (B, heads, N, N), before softmax."""
    b, heads, h, w, _ = query.shape
    logits = query.flatten(2, 3) @ key.flatten(2, 3).transpose(-2, -1)
    if position is None:
        return logits
    rows, columns = position(query)
    by_cell = logits.view(b, heads, h, w, h, w) + rows[..., :, None] + columns[..., None, :]
    return by_cell.view(b, heads, h * w, h * w)


def relative_attention(
    query: Tensor, key: Tensor, value: Tensor, position: RelativePosition2d | None, method: str = "auto"
) -> Tensor:
    """Attend over all cells of a map, with relative positions or, if `position` is None, without.

    Args:
        query: (B, heads, H, W, d), already scaled by d^-0.5: the scale applies to both kinds of logits.
        key: (B, heads, H, W, d).
        value: (B, heads, H, W, e).
        position: shared by all heads.
        method: `broadcast`, `fused`, `chunked`, or `auto`, the fastest by measurement for the size.

    Returns:
        (B, heads, H, W, e).
    """
    if method not in METHODS:
        raise ValueError(f"method {method!r} is none of {', '.join(METHODS)}")
    if method == "auto":
        method = _fastest(query)
    if method == "chunked":
        return _chunked(query, key, value, position)
    if method == "fused":
        attended = _fused(query, key, value, position)
    else:
        attended = relative_logits(query, key, position).softmax(dim=-1) @ value.flatten(2, 3)
    return attended.unflatten(2, query.shape[2:4])


def _fastest(query: Tensor) -> str:
    """Return the fastest method by measurement (docs/results/attention.md), or for export one for all sizes."""
    if torch.compiler.is_exporting():
        return "fused"
    h, w, d = query.shape[2:]
    on_cpu = query.device.type == "cpu"
    if h * w <= (128 if on_cpu and not torch.is_grad_enabled() else 256):
        return "broadcast"
    # Coordinates make the vectors long on large maps; CUDA's fused kernels end at 256 numbers.
    return "fused" if d + h + w <= (128 if on_cpu else 256) else "chunked"


def _fused(query: Tensor, key: Tensor, value: Tensor, position: RelativePosition2d | None) -> Tensor:
    """q' = [q; a; b], k' = [k; one-hot row; one-hot column]: q' . k' = q . k + a[y_j] + b[x_j], without the map."""
    b, heads, h, w, _ = key.shape
    q, k, v = query, key, value
    if position is not None:
        rows, columns = position(query)
        q = torch.cat((query, rows, columns), dim=-1)
        cell_rows = torch.eye(h, dtype=key.dtype, device=key.device)[:, None].expand(b, heads, h, w, h)
        cell_columns = torch.eye(w, dtype=key.dtype, device=key.device).expand(b, heads, h, w, w)
        k = torch.cat((key, cell_rows, cell_columns), dim=-1)
    # Kernels that do not store the map need one width for all three, on CUDA a multiple of 8; zeros change nothing.
    # Not -(-n // 8): torch 2.15 exports the division of negative sizes to ONNX with the wrong rounding.
    width = (max(q.shape[-1], v.shape[-1]) + 7) // 8 * 8
    q, k, v = (F.pad(x.flatten(2, 3), (0, width - x.shape[-1])) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, scale=1.0)[..., : value.shape[-1]]


def _chunked(query: Tensor, key: Tensor, value: Tensor, position: RelativePosition2d | None) -> Tensor:
    """Some rows of queries at a time. Their part of the map is small and is computed again for the gradient."""
    b, heads, h, w, _ = query.shape
    k, v = key.flatten(2, 3).transpose(-2, -1), value.flatten(2, 3)
    rows, columns = (None, None) if position is None else position(query)

    def attend_rows(q: Tensor, a: Tensor | None = None, c: Tensor | None = None) -> Tensor:
        logits = q.flatten(2, 3) @ k
        if a is not None and c is not None:
            logits = (
                logits.unflatten(-1, (h, w)) + a.flatten(2, 3)[..., None] + c.flatten(2, 3)[..., None, :]
            ).flatten(3)
        return (logits.softmax(dim=-1) @ v).unflatten(2, (-1, w))

    size = max(1, CHUNK // max(1, b * heads * w * h * w))
    parts = []
    for start in range(0, h, size):
        here = slice(start, start + size)
        pieces = [x[:, :, here] for x in (query, rows, columns) if x is not None]
        if torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad):
            parts.append(checkpoint(attend_rows, *pieces, use_reentrant=False, preserve_rng_state=False))
        else:
            parts.append(attend_rows(*pieces))
    return torch.cat(parts, dim=2)
