"""Local relation layer: weights of the k x k cells around a cell come from the relation of features and places.

    w(p', p) = softmax over p' of ( Phi(q_p, k_p') + G(p' - p) ),    y_p = W^O sum over p' of w(p', p) x_p'

Queries and keys are scalars, one per group of channels that share a weight. Values are the input itself. Source: Hu et
al. 2019, section 3.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from regard.attention.windows import BORDERS, move_windows, sum_windows, unfold_windows, window_border, window_softmax

SIMILARITIES = ("product", "difference", "absolute")
METHODS = ("auto", "unfold", "shift")
SMALL_MAP = 64  # cells; by measurement


class LocalRelation2d(nn.Module):
    """The local relation layer in place of a k x k convolution.

    For N = H W cells, C channels and G = C / share groups: time O(N k^2 (G + C)) and O(N C (C + G)) for the 1x1
    convolutions; memory O(N (k^2 G + C)), with `unfold` O(N k^2 C).

    Args:
        channels: C, of the input and the output.
        kernel_size: side k of the window, odd.
        share: neighbouring channels with one weight; divides C.
        similarity: Phi: `product` q k, `difference` -(q - k)^2, or `absolute` -|q - k|.
        border: handling of cells outside the map. `masked`: they are left out. `zero`: they enter the softmax
            with key 0 and value 0.
        method: `unfold` copies the k x k cells around every cell, `shift` moves the map by one offset at a time;
            `auto` takes the faster one by measurement on CPUs: `shift`, but `unfold` to train on maps of up to 64
            cells. Results are the same.

    Raises:
        ValueError: the kernel is even, `share` does not divide the channels, or a name is unknown.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int = 7,
        share: int = 8,
        similarity: str = "product",
        border: str = "masked",
        method: str = "auto",
    ) -> None:
        super().__init__()
        window_border(kernel_size)
        if share < 1 or channels < 1 or channels % share:
            raise ValueError(f"channels {channels} is no multiple of share {share}")
        for name, given, known in (
            ("similarity", similarity, SIMILARITIES),
            ("border", border, BORDERS),
            ("method", method, METHODS),
        ):
            if given not in known:
                raise ValueError(f"{name} {given!r} is none of {', '.join(known)}")
        self.channels = channels
        self.kernel_size = kernel_size
        self.share = share
        self.similarity = similarity
        self.border = border
        self.method = method
        groups = channels // share
        self.qk = nn.Conv2d(channels, 2 * groups, 1)
        self.prior = GeometricPrior(groups, kernel_size)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W), any H and W from 1 up."""
        weights = self.weights(x)
        if self._method(x) == "unfold":
            windows = unfold_windows(x, self.kernel_size).unflatten(1, (-1, self.share))
            gathered = (weights[:, :, None] * windows).sum(3)
        else:
            gathered = sum_windows(weights, x.unflatten(1, (-1, self.share)))
        return self.out(gathered.flatten(1, 2))

    def weights(self, x: Tensor) -> Tensor:
        """w(p', p) of each group, cell p' of the window and cell p: (B, C, H, W) -> (B, C / share, k*k, H, W)."""
        query, key = self.qk(x).chunk(2, dim=1)
        if self._method(x) == "unfold":
            keys = unfold_windows(key, self.kernel_size)
        else:
            keys = torch.stack(move_windows(key, self.kernel_size), dim=2)
        logits = self._relate(query[:, :, None], keys) + self.prior()[:, :, None, None]
        return window_softmax(logits, self.border)

    def _method(self, x: Tensor) -> str:
        if self.method != "auto":
            return self.method
        if torch.compiler.is_exporting() or not torch.is_grad_enabled():
            return "shift"
        # Gradients of k * k moved maps cost more than copies where a map is small.
        return "unfold" if x.shape[-2] * x.shape[-1] <= SMALL_MAP else "shift"

    def _relate(self, query: Tensor, keys: Tensor) -> Tensor:
        if self.similarity == "product":
            return query * keys
        distance = query - keys
        return -distance.square() if self.similarity == "difference" else -distance.abs()

    def extra_repr(self) -> str:
        return (
            f"{self.channels}, kernel_size={self.kernel_size}, share={self.share}, similarity={self.similarity!r}, "
            f"border={self.border!r}"
        )


class GeometricPrior(nn.Module):
    """G(p' - p): a small network of the offset (rows, columns) within the window, each in -1 .. 1.

    Args:
        groups: numbers per offset.
        kernel_size: side k of the window, odd.
    """

    def __init__(self, groups: int, kernel_size: int) -> None:
        super().__init__()
        self.border = window_border(kernel_size)
        self.hidden = nn.Conv2d(2, groups, 1)
        self.out = nn.Conv2d(groups, groups, 1)

    def forward(self) -> Tensor:
        """(groups, k*k), row by row."""
        return self.out(self.hidden(self.offsets()[None]).relu())[0].flatten(1)

    def offsets(self) -> Tensor:
        """The fixed grid of offsets, as fractions of the reach of the window: (2, k, k), rows first."""
        like = self.hidden.weight
        steps = torch.arange(-self.border, self.border + 1, dtype=like.dtype, device=like.device) / max(self.border, 1)
        return torch.stack(torch.meshgrid(steps, steps, indexing="ij"))
