"""Vector self-attention: every group of channels has its own weights, computed from the features by a small network.

    pairwise    y_i = sum over j of softmax over j of ( gamma(delta(x_i, x_j), p_i - p_j) ) * beta(x_j)
    patchwise   y_i = sum over j of gamma(delta(x_R(i)))_j * beta(x_j)

j runs over the k x k cells R(i) around cell i, * multiplies channel by channel, phi, psi and beta are 1x1 convolutions
to r, r and C' channels. Beyond the map cells are reflected about the border cells, which are not repeated; a map
smaller than the reach (k - 1) / 2 is reflected repeatedly, where the authors' code fails. Relations delta:

    pairwise    subtraction phi_i - psi_j, summation phi_i + psi_j, product phi_i * psi_j, dot phi_i . psi_j,
                concatenation [phi_i, psi_j]
    patchwise   concatenation [phi_i, psi_j for all j], star [phi_i . psi_j for all j],
                clique [phi_j . psi_l for all j and l]

Source: Zhao, Jia and Koltun 2020 (SAN), section 3. Sizes, names of parameters and the sharing of weights are those of
the authors' model/san.py and its kernels: value channel c has weight channel c mod (C' / share). Their code has the
first relation of each kind alone, and the softmax, which the paper's formula leaves out; the others follow the paper.

For N cells and G = C' / share: time O(N k^2 (r^2 + C')) pairwise and O(N k^2 (r + G) G) patchwise, memory
O(N k^2 (r + G) + N C').
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from regard.attention.windows import sum_windows, unfold_windows, window_border

PAIRWISE_RELATIONS = ("subtraction", "summation", "product", "dot", "concatenation")
PATCHWISE_RELATIONS = ("concatenation", "star", "clique")


class _VectorAttention2d(nn.Module):
    """Base of both kinds: three convolutions and the weighted sum."""

    def __init__(
        self,
        channels: int,
        out_channels: int | None,
        kernel_size: int,
        relation: str,
        relation_channels: int | None,
        share: int,
        known: tuple[str, ...],
    ) -> None:
        super().__init__()
        window_border(kernel_size)
        if relation not in known:
            raise ValueError(f"relation {relation!r} is none of {', '.join(known)}")
        self.channels = channels
        self.out_channels = channels if out_channels is None else out_channels
        self.relation_channels = max(1, channels // 16) if relation_channels is None else relation_channels
        self.kernel_size = kernel_size
        self.relation = relation
        self.share = share
        if min(channels, self.relation_channels, share) < 1 or self.out_channels < 1 or self.out_channels % share:
            raise ValueError(
                f"channels {channels}, relation_channels {self.relation_channels} and share {share} must be at least "
                f"1, and out_channels {self.out_channels} a multiple of share"
            )
        self.conv1 = nn.Conv2d(channels, self.relation_channels, 1)  # phi
        self.conv2 = nn.Conv2d(channels, self.relation_channels, 1)  # psi
        self.conv3 = nn.Conv2d(channels, self.out_channels, 1)  # beta

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H, W), any H and W from 1 up."""
        value = self.conv3(x).unflatten(1, (self.share, -1)).transpose(1, 2)
        return sum_windows(self.weights(x), value, padding="reflect").transpose(1, 2).flatten(1, 2)

    def weights(self, x: Tensor) -> Tensor:
        """Weight of each cell of the window around each cell: (B, C, H, W) -> (B, C' / share, k*k, H, W)."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        return (
            f"{self.channels}, {self.out_channels}, kernel_size={self.kernel_size}, relation={self.relation!r}, "
            f"share={self.share}"
        )


class PairwiseVectorAttention2d(_VectorAttention2d):
    """Vector attention with weights from pairs of cells: a softmax over the window.

    Args:
        channels: C of the input.
        out_channels: C' of the output; C if None.
        kernel_size: side k of the window, odd.
        relation: delta, see above.
        relation_channels: r; C / 16 if None.
        share: value channels with one weight; divides C'.

    Raises:
        ValueError: the window is even, a number is below 1, `share` does not divide, or the relation is unknown.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int | None = None,
        kernel_size: int = 7,
        relation: str = "subtraction",
        relation_channels: int | None = None,
        share: int = 8,
    ) -> None:
        super().__init__(channels, out_channels, kernel_size, relation, relation_channels, share, PAIRWISE_RELATIONS)
        r = self.relation_channels
        width = {"dot": 1, "concatenation": 2 * r}.get(relation, r)
        self.conv_w = _gamma(width + 2, r, self.out_channels // share)
        self.conv_p = nn.Conv2d(2, 2, 1)

    def weights(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        features = self._relate(self.conv1(x)[:, :, None], unfold_windows(self.conv2(x), self.kernel_size, "reflect"))
        places = self.conv_p(_places(h, w, x))
        offsets = places[:, :, None] - unfold_windows(places, self.kernel_size, "reflect")
        relations = torch.cat((features, offsets.expand(b, -1, -1, -1, -1).to(features.dtype)), dim=1)
        logits = self.conv_w(relations.flatten(3)).unflatten(3, (h, w))
        return logits.softmax(dim=2).to(logits.dtype)  # autocast makes it float32

    def _relate(self, phi: Tensor, psi: Tensor) -> Tensor:
        """(B, r, 1, H, W) and (B, r, k*k, H, W) -> (B, width, k*k, H, W)."""
        if self.relation == "subtraction":
            return phi - psi
        if self.relation == "summation":
            return phi + psi
        if self.relation == "concatenation":
            return torch.cat((phi.expand_as(psi), psi), dim=1)
        product = phi * psi
        return product.sum(dim=1, keepdim=True) if self.relation == "dot" else product


class PatchwiseVectorAttention2d(_VectorAttention2d):
    """Vector attention with weights from all cells of a window at once; they need not sum to 1.

    It distinguishes places without position encodings and includes convolution as a special case. `clique` computes
    k^4 numbers per cell.

    Args:
        channels: C of the input.
        out_channels: C' of the output; C if None.
        kernel_size: side k of the window, odd.
        relation: delta, see above.
        relation_channels: r; C / 16 if None.
        share: value channels with one weight; divides C'.

    Raises:
        ValueError: the window is even, a number is below 1, `share` does not divide, or the relation is unknown.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int | None = None,
        kernel_size: int = 7,
        relation: str = "concatenation",
        relation_channels: int | None = None,
        share: int = 8,
    ) -> None:
        super().__init__(channels, out_channels, kernel_size, relation, relation_channels, share, PATCHWISE_RELATIONS)
        cells, groups = kernel_size**2, self.out_channels // share
        width = {"star": cells, "clique": cells**2}.get(relation, self.relation_channels * (cells + 1))
        self.conv_w = _gamma(width, groups, cells * groups)

    def weights(self, x: Tensor) -> Tensor:
        relations = self._relate(self.conv1(x), unfold_windows(self.conv2(x), self.kernel_size, "reflect"))
        return self.conv_w(relations).unflatten(1, (-1, self.kernel_size**2))

    def _relate(self, phi: Tensor, psi: Tensor) -> Tensor:
        """(B, r, H, W) and (B, r, k*k, H, W) -> (B, width, H, W)."""
        if self.relation == "concatenation":
            return torch.cat((phi, psi.flatten(1, 2)), dim=1)
        if self.relation == "star":
            return (phi[:, :, None] * psi).sum(dim=1)
        around = unfold_windows(phi, self.kernel_size, "reflect")
        return torch.einsum("brjhw,brlhw->bjlhw", around, psi).flatten(1, 2)


def _gamma(width: int, hidden: int, out: int) -> nn.Sequential:
    """Build the small network that computes weights from relations."""
    return nn.Sequential(
        nn.BatchNorm2d(width), nn.ReLU(inplace=True), nn.Conv2d(width, hidden, 1, bias=False),
        nn.BatchNorm2d(hidden), nn.ReLU(inplace=True), nn.Conv2d(hidden, out, 1),
    )  # fmt: skip


def _places(height: int, width: int, like: Tensor) -> Tensor:
    """Return the coordinates of each cell, -1 .. 1 from side to side, columns first: (1, 2, H, W)."""
    y, x = (_steps(length, like) for length in (height, width))
    return torch.stack((x.expand(height, width), y[:, None].expand(height, width)))[None]


def _steps(length: int, like: Tensor) -> Tensor:
    """-1 .. 1 in equal steps; -1 for a single one. As arithmetic, so that an exported graph serves all lengths."""
    places = torch.arange(length, device=like.device, dtype=torch.promote_types(like.dtype, torch.float32))
    return places.mul(2 / torch.sym_max(length - 1, 1)).sub(1).to(like.dtype)
