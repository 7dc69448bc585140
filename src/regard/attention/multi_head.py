"""Multi-head attention: Attention(Q, K, V) = softmax(Q K^T / sqrt(d) + mask) V for several heads at once.

Source: Vaswani et al. 2017, section 3.2; parameters are laid out as in `torch.nn.MultiheadAttention`, so that published
weights load. Time O(N M C + (N + M) C^2); memory O(N + M) with the fused kernel, O(heads N M) with weights.

A mask is bool, True where a query may attend, or real, added to the scaled logits with -inf where it may not; gradients
flow into it. It broadcasts to (B, heads, N, M). A masked key has weight exactly 0. A query with all keys masked has
weights 0 and output 0. `regard.attention.masks` builds the usual masks.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def attend(query: Tensor, key: Tensor, value: Tensor, *, mask: Tensor | None = None, dropout: float = 0.0) -> Tensor:
    """Scaled dot-product attention with torch's fused kernels.

    Args:
        query: (B, heads, N, d).
        key: (B, heads, M, d).
        value: (B, heads, M, e).
        mask: bool or real, broadcast to (B, heads, N, M), see above.
        dropout: probability with which attention weights are dropped.

    Returns:
        (B, heads, N, e).

    Raises:
        ValueError: an integer mask.
    """
    if mask is None:
        return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
    mask, blind = _open_blind_rows(mask, query.dtype)
    attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
    return attended.masked_fill(blind, 0.0)


def attention_weights(query: Tensor, key: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Compute the weights that `attend` does not store: (B, heads, N, M). Rows sum to 1, or to 0 if fully masked."""
    logits = (query / math.sqrt(query.shape[-1])) @ key.transpose(-2, -1)
    if mask is None:
        return logits.softmax(dim=-1)
    mask, blind = _open_blind_rows(mask, logits.dtype)
    logits = logits.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else logits + mask
    return logits.softmax(dim=-1).masked_fill(blind, 0.0)


def _open_blind_rows(mask: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Unmask all keys of fully masked queries; return the mask and these queries, bool (..., N, 1).

    An empty softmax is NaN, and kernels treat it differently, forward and backward. The caller replaces the result of
    the full softmax by 0.
    """
    if mask.dtype == torch.bool:
        blind = ~mask.any(dim=-1, keepdim=True)
        return mask | blind, blind
    if not mask.dtype.is_floating_point:
        raise ValueError(f"mask is {mask.dtype}; it must be bool (True = may look) or real (added to the logits)")
    mask = mask.to(dtype)  # before the comparison: what is finite in float64 may be -inf in half precision
    blind = mask.isneginf().all(dim=-1, keepdim=True)
    return mask.masked_fill(blind, 0.0), blind


class MultiHeadAttention(nn.Module):
    """Attention with learned projections of queries, keys and values.

    Args:
        embed_dim: width C of all inputs and of the output; a multiple of `num_heads`.
        num_heads: heads, each of width C / heads.
        dropout: probability with which an attention weight is dropped in training.

    Raises:
        ValueError: a number is below 1, or heads do not divide the width.
    """

    def __init__(self, embed_dim: int, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        if min(embed_dim, num_heads) < 1:
            raise ValueError(f"embed_dim {embed_dim} and num_heads {num_heads} must be at least 1")
        if embed_dim % num_heads:
            raise ValueError(f"embed_dim {embed_dim} is not a multiple of num_heads {num_heads}")
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * embed_dim, embed_dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * embed_dim))
        self.out_proj = nn.Linear(embed_dim, embed_dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Attend from `query` (B, N, C) to `key` and `value` (B, M, C) -> (B, N, C).

        `mask` broadcasts to (B, heads, N, M): bool, True where a query may attend, or real, added to the logits. A
        fully masked query gets the bias of the output projection.
        """
        dropout = self.dropout if self.training else 0.0
        attended = attend(*self.project(query, key, value), mask=mask, dropout=dropout)
        return self.out_proj(attended.transpose(1, 2).flatten(2))

    def weights(self, query: Tensor, key: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Return the attention weights (B, heads, N, M) of `forward` for the same inputs, without dropout."""
        q, k, _ = self.project(query, key, None)
        return attention_weights(q, k, mask=mask)

    def project(self, query: Tensor, key: Tensor, value: Tensor | None) -> tuple[Tensor, ...]:
        """Queries, keys, values as (B, heads, N, d). Identical inputs share one matrix product."""
        c = self.embed_dim
        weight, bias = self.in_proj_weight, self.in_proj_bias
        if query is key:
            q, k = F.linear(query, weight[: 2 * c], bias[: 2 * c]).chunk(2, dim=-1)
        else:
            q = F.linear(query, weight[:c], bias[:c])
            k = F.linear(key, weight[c : 2 * c], bias[c : 2 * c])
        v = k if value is None else F.linear(value, weight[2 * c :], bias[2 * c :])
        return tuple(self.split_heads(x) for x in (q, k, v))

    def split_heads(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, heads, N, d)."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
