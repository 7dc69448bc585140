"""Attention masks: True where a query may attend to a key. They broadcast to (B, heads, N, M).

They combine with & and |: `causal_mask(n) & key_padding_mask(padding)`.
"""

from __future__ import annotations

import torch
from torch import Tensor


def causal_mask(length: int, device: torch.device | str | None = None) -> Tensor:
    """Let each token attend to itself and earlier tokens: bool (N, N), row = query. Vaswani et al. 2017, section 3.2.3.

    For the cells of a map, numbered row by row, this is raster order: all rows above, and its own row up to the cell.
    """
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()


def key_padding_mask(padding: Tensor) -> Tensor:
    """Exclude padding tokens: (B, M) or, for maps, (B, h, w) -> bool (B, 1, 1, M), M = h w.

    Args:
        padding: bool, True at padding.
    """
    if padding.dtype != torch.bool or padding.dim() not in (2, 3):
        raise ValueError(
            f"padding is {padding.dtype} with {padding.dim()} dimensions; it must be bool, (B, M) or (B, h, w)"
        )
    return ~padding.flatten(1)[:, None, None]
