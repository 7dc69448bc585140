"""Attention in the place of a 3x3 convolution, and squeeze-and-excitation behind one: to compare them in a ResNet."""

from __future__ import annotations

from torch import Tensor, nn

from regard.attention import (
    AxialAttention,
    LocalRelation2d,
    PairwiseVectorAttention2d,
    PatchwiseVectorAttention2d,
    StandAloneAttention2d,
)

WINDOW = 7  # side of the windows of local attention, as in the papers


class SqueezeExcitation(nn.Module):
    """Weigh each channel by a small network of the means of all (Hu et al. 2018, section 3).

    Args:
        channels: of the map.
        reduction: channels over those of the hidden layer, which has at least one.
    """

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
        self.squeeze = nn.Conv2d(channels, hidden, 1)
        self.excite = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return x * self.excite(self.squeeze(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


def attention_in_place(
    kind: str, in_channels: int, out_channels: int, stride: int, num_heads: int, side: int
) -> nn.Module:
    """Build the attention of a kind that replaces a convolution: (B, in, H, W) -> (B, out, ceil(H / s), ceil(W / s)).

    Layers without a stride of their own attend first; then 2x2 cells are averaged (Ramachandran et al. 2019). Those
    that keep their number of channels follow a 1x1 convolution where it changes.

    Args:
        kind: `stand_alone`, `local_relation`, `pairwise`, `patchwise` or `axial`.
        side: of the output map, for relative positions.

    Raises:
        ValueError: channels that heads or shared weights do not divide.
    """
    if kind == "stand_alone":
        return StandAloneAttention2d(in_channels, out_channels, WINDOW, num_heads, stride)
    layers: list[nn.Module] = []
    if kind in ("local_relation", "axial"):
        if in_channels != out_channels:
            layers.append(nn.Conv2d(in_channels, out_channels, 1, bias=False))
        size = (side * stride, side * stride)
        layers.append(
            LocalRelation2d(out_channels, WINDOW)
            if kind == "local_relation"
            else AxialAttention(out_channels, num_heads, position="relative", map_size=size)
        )
    else:
        layer = PairwiseVectorAttention2d if kind == "pairwise" else PatchwiseVectorAttention2d
        layers.append(layer(in_channels, out_channels, WINDOW))
    if stride > 1:
        layers.append(nn.AvgPool2d(stride, ceil_mode=True))
    return nn.Sequential(*layers)
