"""Non-local block: every cell adds a weighted sum over all cells of the map.

    y_i = 1/C(x) sum over j of f(x_i, x_j) g(x_j),    z_i = x_i + BN(W_z y_i)

    embedded_gaussian   f = exp(theta_i . phi_j),                C = sum of f: a softmax
    gaussian            f = exp(x_i . x_j),                      C = sum of f
    dot_product         f = theta_i . phi_j,                     C = number of keys
    concatenation       f = ReLU(w . [theta_i; phi_j]),          C = number of keys

theta, phi, g and W_z are 1x1 convolutions. Source: Wang et al. 2018, sections 3.2 and 3.3; details as in the authors'
lib/models/nonlocal_helper.py. For N cells, M keys and inner width C' the pairs cost time O(N M C') and memory O(N C')
with the fused kernels of the softmax forms, whose map is never stored; O(N M) for the concatenation, which is
ReLU(u_i + v_j), one number per cell and key. The dot product needs no pairs: sums over j come first, in O(N C'^2).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PAIRWISE = ("embedded_gaussian", "gaussian", "dot_product", "concatenation")


class NonLocalBlock(nn.Module):
    """Global attention with one head and a residual sum; it starts as the identity.

    It has no positions: without `pool_keys`, permuted cells give permuted results.

    Args:
        channels: C of input and output.
        inner_channels: C' of theta, phi and g; half of `channels` if None.
        pairwise: f, see above.
        pool_keys: take keys and values from the 2x2 maximum of the input: a quarter of the pairs. The authors' code
            drops the last row or column of an odd side; here it is pooled with the cells that exist.
        scale: multiply the logits of the softmax forms by the width of a key to the power -0.5, which the authors'
            configuration does and the paper does not.

    Raises:
        ValueError: widths below 1, an unknown `pairwise`.
    """

    def __init__(
        self,
        channels: int,
        inner_channels: int | None = None,
        pairwise: str = "embedded_gaussian",
        pool_keys: bool = True,
        scale: bool = True,
    ) -> None:
        super().__init__()
        inner = max(1, channels // 2) if inner_channels is None else inner_channels
        if channels < 1 or inner < 1:
            raise ValueError(f"channels {channels} and inner_channels {inner} must be at least 1")
        if pairwise not in PAIRWISE:
            raise ValueError(f"pairwise {pairwise!r} is none of {', '.join(PAIRWISE)}")
        self.channels = channels
        self.inner_channels = inner
        self.pairwise = pairwise
        self.pool_keys = pool_keys
        self.logit_scale = (channels if pairwise == "gaussian" else inner) ** -0.5 if scale else 1.0
        self.theta = self.phi = None
        if pairwise != "gaussian":
            self.theta = nn.Conv2d(channels, inner, 1)
            self.phi = nn.Conv2d(channels, inner, 1)
        self.g = nn.Conv2d(channels, inner, 1)
        self.out = nn.Conv2d(inner, channels, 1, bias=False)  # the normalization has one
        self.norm = nn.BatchNorm2d(channels)
        self.pair_weight = nn.Parameter(torch.empty(2 * inner)) if pairwise == "concatenation" else None
        self._initialize()

    def _initialize(self) -> None:
        """Small weights and a factor 0 at the end, as in the authors' configuration."""
        for conv in (self.theta, self.phi, self.g, self.out):
            if conv is not None:
                nn.init.normal_(conv.weight, std=0.01)
                if conv.bias is not None:
                    nn.init.zeros_(conv.bias)
        if self.pair_weight is not None:
            nn.init.normal_(self.pair_weight, std=0.01)
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W), any H and W from 1 up."""
        query, key, value = self.project(x)
        if self.pairwise == "dot_product":
            y = query @ ((key / key.shape[1]).transpose(1, 2) @ value)
        elif self.pairwise == "concatenation":
            y = self._weights(query, key) @ value
        else:
            y = _fused(query, key, value, self.logit_scale)
        y = y.transpose(1, 2).unflatten(2, x.shape[-2:])
        return x + self.norm(self.out(y))

    def attention_weights(self, x: Tensor) -> Tensor:
        """f(x_i, x_j) / C(x): (B, C, H, W) -> (B, N, M), row = query. M is about N / 4 with pooled keys.

        Cells count row by row; pooled keys as well, ceil(W / 2) in a row. Rows of the softmax forms sum to 1.
        """
        query, key, _ = self.project(x)
        return self._weights(query, key)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """theta (B, N, d), phi (B, M, d), g (B, M, C') of an input (B, C, H, W); d is C for the Gaussian, else C'."""
        pooled = F.max_pool2d(x, 2, ceil_mode=True) if self.pool_keys else x
        query = x if self.theta is None else self.theta(x)
        key = pooled if self.phi is None else self.phi(pooled)
        q, k, v = (t.flatten(2).transpose(1, 2) for t in (query, key, self.g(pooled)))
        return q, k, v

    def _weights(self, query: Tensor, key: Tensor) -> Tensor:
        if self.pair_weight is not None:
            for_query, for_key = self.pair_weight.chunk(2)
            return F.relu((query @ for_query)[:, :, None] + (key @ for_key)[:, None]) / key.shape[1]
        if self.pairwise == "dot_product":
            return query @ (key / key.shape[1]).transpose(1, 2)
        return ((query * self.logit_scale) @ key.transpose(1, 2)).softmax(dim=-1)

    def extra_repr(self) -> str:
        return f"{self.channels}, {self.inner_channels}, pairwise={self.pairwise!r}, pool_keys={self.pool_keys}"


def _fused(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """softmax(scale Q K^T) V without the map: (B, N, d), (B, M, d), (B, M, e) -> (B, N, e)."""
    # Fused kernels need contiguous vectors of one width, on CUDA a multiple of 8; added zeros change nothing.
    width = math.ceil(max(query.shape[-1], value.shape[-1]) / 8) * 8
    q, k, v = (F.pad(t, (0, width - t.shape[-1])).contiguous()[:, None] for t in (query, key, value))
    return F.scaled_dot_product_attention(q, k, v, scale=scale)[:, 0, :, : value.shape[-1]]
