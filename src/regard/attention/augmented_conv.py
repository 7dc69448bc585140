"""Attention-augmented convolution: some output channels come from a convolution, the others from attention.

    AAConv(X) = concat(Conv(X), W^O concat_h(softmax(Q_h K_h^T + S_rel) V_h)),    Q scaled by d^-0.5

Source: Bello et al. 2019, section 3.1 and the listing of the appendix. Time of the attention for N = H W cells:
O(N^2 (d_k + d_v)); memory: see `regard.attention.relative`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.attention.positions import LearnedPositionEncoding, SinePositionEncoding, coordinate_channels
from regard.attention.relative import METHODS, RelativePosition2d, relative_attention, relative_logits

POSITIONS = ("relative", "none", "sine", "learned", "coord")
REDUCTIONS = ("pool", "subsample", "pool_after")
LEAST_KEY_WIDTH = 20  # per head; section 3.2


def attention_channels(out_channels: int, key_ratio: float, value_ratio: float, num_heads: int) -> tuple[int, int]:
    """Compute the channels of keys and values by the rule that gives the parameter counts of the paper.

    Both are rounded down to a multiple of `num_heads`; a head has at least 20 key channels and one value channel.

    Args:
        out_channels: F of the layer.
        key_ratio: kappa = d_k / F.
        value_ratio: upsilon = d_v / F, at most 1.
        num_heads: number of heads.
    """
    if num_heads < 1:
        raise ValueError(f"num_heads {num_heads} must be at least 1")
    if not key_ratio >= 0 or not 0 < value_ratio <= 1:
        raise ValueError(f"key_ratio {key_ratio} must not be negative and value_ratio {value_ratio} lie in (0, 1]")
    # A ratio such as 0.1 is not exact in binary: 0.3 * 10 must not become 2.
    keys = int(key_ratio * out_channels / num_heads + 1e-9)
    values = int(value_ratio * out_channels / num_heads + 1e-9)
    return max(keys, LEAST_KEY_WIDTH) * num_heads, max(values, 1) * num_heads


class AugmentedConv2d(nn.Module):
    """A convolution with some of its output channels replaced by multi-head attention over the whole map.

    Args:
        in_channels: channels of the input.
        out_channels: F, of the convolution and the attention together.
        kernel_size: side of the convolution kernel.
        key_channels: d_k of all heads together, a multiple of `num_heads`; see `attention_channels`.
        value_channels: d_v of all heads together, a multiple of `num_heads`. F for attention alone, without a
            convolution; 0 for the convolution alone.
        num_heads: number of heads.
        map_size: height and width of the map at the attention, for which the tables of relative positions are made.
            Other sizes work too: see `RelativePosition2d`.
        stride: of the convolution.
        padding: of the convolution; None keeps the size for odd kernels.
        dilation: of the convolution.
        groups: of the convolution.
        bias: whether all four convolutions have biases, as in the listing; ResNets have none.
        position: `relative`; `none`; `sine` or `learned` encodings added to the input of the attention, which has an
            even number of channels then, learned ones for maps of up to 50 x 50 cells or `map_size`; `coord`, two
            additional channels of coordinates (CoordConv).
        reduction: how a stride applies to the attention (the paper does not say): `pool` its input (average
            over 3x3), `subsample` its input, or `pool_after`, its output (2x2, as in stand-alone attention).
        pool_attention: attend at half the size, on an average over 3x3, and enlarge the result (bilinear), as the
            paper does on large maps.
        method: see `relative_attention`.

    Raises:
        ValueError: heads or groups do not divide the channels, or a name is unknown.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int] = 3,
        *,
        key_channels: int,
        value_channels: int,
        num_heads: int = 8,
        map_size: tuple[int, int] = (14, 14),
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | None = None,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        position: str = "relative",
        reduction: str = "pool",
        pool_attention: bool = False,
        method: str = "auto",
    ) -> None:
        super().__init__()
        _check(out_channels, key_channels, value_channels, num_heads, groups)
        _check_names(in_channels, position, reduction, method)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size, self.stride, self.dilation = _pair(kernel_size), _pair(stride), _pair(dilation)
        same = [d * (k - 1) // 2 for d, k in zip(self.dilation, self.kernel_size, strict=True)]
        self.padding = (same[0], same[1]) if padding is None else _pair(padding)
        self.key_channels = key_channels
        self.value_channels = value_channels
        self.num_heads = num_heads
        self.position = position
        self.reduction = reduction
        self.pool_attention = pool_attention
        self.method = method
        self.conv = None
        if value_channels < out_channels:
            self.conv = nn.Conv2d(
                in_channels, out_channels - value_channels, self.kernel_size, self.stride, self.padding, self.dilation,
                groups, bias,
            )  # fmt: skip
        self.relative: RelativePosition2d | None = None
        self.encoding: SinePositionEncoding | LearnedPositionEncoding | None = None
        if value_channels == 0:
            return
        head_dim = key_channels // num_heads
        if position == "relative":
            self.relative = RelativePosition2d(*map_size, head_dim)
        elif position == "sine":
            self.encoding = SinePositionEncoding(in_channels)
        elif position == "learned":
            self.encoding = LearnedPositionEncoding(in_channels, max(50, *map_size))
        wide = in_channels + 2 if position == "coord" else in_channels
        # One projection; its channels are keys, queries, values, in the order of the listing.
        self.kqv = nn.Conv2d(wide, 2 * key_channels + value_channels, 1, bias=bias)
        self.out = nn.Conv2d(value_channels, value_channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, F, H', W'): channels of the convolution, then those of the attention."""
        if self.value_channels == 0:
            return self.conv(x)  # type: ignore[misc]
        attended = self.attend(x)
        return attended if self.conv is None else torch.cat((self.conv(x), attended), dim=1)

    def attend(self, x: Tensor) -> Tensor:
        """Return only the channels of the attention: (B, C, H, W) -> (B, d_v, H', W')."""
        query, key, value = self.project(x)
        heads = relative_attention(query, key, value, self.relative, self.method)
        attended = self.out(heads.permute(0, 1, 4, 2, 3).flatten(1, 2))  # channel = head * e + c
        if self.reduction == "pool_after" and self.stride != (1, 1):
            attended = F.avg_pool2d(attended, self.stride, ceil_mode=True)
        size = self.output_size(x.shape[-2], x.shape[-1])
        if self.pool_attention or tuple(attended.shape[-2:]) != size:
            attended = F.interpolate(attended, size=size, mode="bilinear", align_corners=False)
        return attended

    def attention_logits(self, x: Tensor) -> Tensor:
        """Return the scaled logits of all keys for all queries before softmax: (B, C, H, W) -> (B, heads, N, N).

        N is the number of cells at the attention: fewer than H W with a stride or `pool_attention`.
        """
        query, key, _ = self.project(x)
        return relative_logits(query, key, self.relative)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return scaled queries, keys and values of an input (B, C, H, W), each (B, heads, h, w, d or e)."""
        x = self._attention_input(x)
        key, query, value = self.kqv(x).split((self.key_channels, self.key_channels, self.value_channels), dim=1)
        query = query * (self.key_channels // self.num_heads) ** -0.5  # before both products, as in the listing
        q, k, v = (t.unflatten(1, (self.num_heads, -1)).permute(0, 1, 3, 4, 2) for t in (query, key, value))
        return q, k, v

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Return H' and W' for an input of H and W."""
        h, w = (
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, p, d, k, s in zip(
                (height, width), self.padding, self.dilation, self.kernel_size, self.stride, strict=True
            )
        )
        return h, w

    def _attention_input(self, x: Tensor) -> Tensor:
        if self.stride != (1, 1) and self.reduction == "pool":
            x = _average(x, self.stride)
        elif self.stride != (1, 1) and self.reduction == "subsample":
            x = x[:, :, :: self.stride[0], :: self.stride[1]]
        if self.pool_attention:
            x = _average(x, (2, 2))
        if self.encoding is not None:
            padding = torch.zeros(1, *x.shape[-2:], dtype=torch.bool, device=x.device)
            return x + self.encoding(padding).permute(0, 3, 1, 2).to(x.dtype)
        if self.position == "coord":
            return torch.cat((x, coordinate_channels(x)), dim=1)
        return x

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, key_channels={self.key_channels}, "
            f"value_channels={self.value_channels}, num_heads={self.num_heads}, position={self.position!r}"
        )


def _average(x: Tensor, stride: tuple[int, int]) -> Tensor:
    """Average over 3x3 cells inside the map at every `stride`; sides become ceil(side / stride)."""
    return F.avg_pool2d(x, 3, stride, padding=1, count_include_pad=False)


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _check_names(in_channels: int, position: str, reduction: str, method: str) -> None:
    for name, given, known in (
        ("position", position, POSITIONS),
        ("reduction", reduction, REDUCTIONS),
        ("method", method, METHODS),
    ):
        if given not in known:
            raise ValueError(f"{name} {given!r} is none of {', '.join(known)}")
    if position in ("sine", "learned") and in_channels % 2:
        raise ValueError(f"in_channels {in_channels} must be even for position {position!r}")


def _check(out_channels: int, key_channels: int, value_channels: int, num_heads: int, groups: int) -> None:
    if num_heads < 1:
        raise ValueError(f"num_heads {num_heads} must be at least 1")
    if not 0 <= value_channels <= out_channels:
        raise ValueError(f"value_channels {value_channels} must lie in 0 .. out_channels {out_channels}")
    for name, count in (("key_channels", key_channels), ("value_channels", value_channels)):
        if count % num_heads or (name == "key_channels" and count < num_heads):
            fitting = max(1, round(count / num_heads)) * num_heads
            raise ValueError(f"{name} {count} is not a multiple of num_heads {num_heads}; {fitting} is")
    if (out_channels - value_channels) % groups:
        raise ValueError(
            f"{out_channels - value_channels} channels of the convolution are no multiple of {groups} groups"
        )
