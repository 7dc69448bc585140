"""Square windows around every cell of a map, for attention to k x k cells.

What lies outside the map is zero or a reflection; maps may be smaller than the window. Windows number their cells row
by row: cell m = k (p + a) + (p + b) lies a rows below and b columns right of the centre, p = (k - 1) / 2.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

PADDINGS = ("zero", "reflect")
BORDERS = ("masked", "zero")


def unfold_windows(x: Tensor, kernel_size: int, padding: str = "zero") -> Tensor:
    """The k x k cells around each cell: (B, C, H, W) -> (B, C, k*k, H, W), any H and W from 1 up.

    Time and memory O(B C k^2 H W): each number is copied k^2 times.

    Args:
        x: a map.
        kernel_size: k, odd.
        padding: `zero`, or `reflect` about the border cells, which are not repeated. A map smaller than the border is
            reflected repeatedly (0 1 2 1 0 1 ...), which `torch.nn.ReflectionPad2d` refuses.

    Raises:
        ValueError: k is even, or the padding is unknown.
    """
    if padding not in PADDINGS:
        raise ValueError(f"padding {padding!r} is none of {', '.join(PADDINGS)}")
    border = window_border(kernel_size)
    b, c, h, w = x.shape
    if padding == "zero":
        return F.unfold(x, kernel_size, padding=border).view(b, c, kernel_size**2, h, w)
    reflected = reflect_border(x, border)
    return F.unfold(reflected, kernel_size).view(b, c, kernel_size**2, h, w)


def window_border(kernel_size: int) -> int:
    """Cells p = (k - 1) / 2 that a window reaches beyond its centre; ValueError if no cell is the centre."""
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size {kernel_size} must be odd and positive, so that windows have a centre")
    return kernel_size // 2


def reflect_border(x: Tensor, border: int) -> Tensor:
    """Add `border` reflected cells on all sides: (B, C, H, W) -> (B, C, H + 2 border, W + 2 border)."""
    rows = _reflected(x.shape[-2], border, x.device)
    columns = _reflected(x.shape[-1], border, x.device)
    return x.index_select(-2, rows).index_select(-1, columns)


def _reflected(length: int, border: int, device: torch.device) -> Tensor:
    """Which cell of a side of `length` stands at -border .. length + border - 1."""
    # There and back; one cell reflects to itself. A tensor, as ONNX has no remainder by a size that varies.
    period = torch.full((), torch.sym_max(2 * length - 2, 1), device=device)
    places = torch.arange(-border, length + border, device=device).remainder(period)
    return places.minimum(period - places).remainder(torch.full((), length, device=device))


def cells_inside(height: int, width: int, kernel_size: int, device: torch.device | None = None) -> Tensor:
    """Which cells of each window lie on the map: bool (k*k, H, W)."""
    border = window_border(kernel_size)
    steps = torch.arange(-border, border + 1, device=device)
    y = torch.arange(height, device=device) + steps[:, None]  # (k, H)
    x = torch.arange(width, device=device) + steps[:, None]
    rows, columns = (y >= 0) & (y < height), (x >= 0) & (x < width)
    return (rows[:, None, :, None] & columns[None, :, None, :]).flatten(0, 1)


def window_softmax(logits: Tensor, border: str) -> Tensor:
    """Softmax over the cells of each window: (B, G, k*k, H, W), with `masked` borders over those on the map only."""
    if border not in BORDERS:
        raise ValueError(f"border {border!r} is none of {', '.join(BORDERS)}")
    if border == "masked":
        inside = cells_inside(logits.shape[-2], logits.shape[-1], math.isqrt(logits.shape[2]), logits.device)
        logits = logits.masked_fill(~inside, -math.inf)
    return logits.softmax(dim=2).to(logits.dtype)  # autocast makes it float32


def sum_windows(weights: Tensor, value: Tensor, padding: str = "zero") -> Tensor:
    """Weighted sum of each window: (B, G, k*k, H, W), (B, G, C, H, W) -> (B, G, C, H, W). `padding`: see above.

    The map is moved by one offset at a time and never copied k^2 times: time O(B G C k^2 H W), memory O(B G C H W).
    """
    out = torch.zeros_like(value)
    moves = move_windows(value, math.isqrt(weights.shape[2]), padding)
    for weight, moved in zip(weights.unbind(2), moves, strict=True):
        out = torch.addcmul(out, weight[:, :, None], moved)
    return out


def move_windows(x: Tensor, kernel_size: int, padding: str = "zero") -> list[Tensor]:
    """The map moved by each offset of a window: (..., H, W) -> k*k views of one padded copy."""
    (h, w), border = x.shape[-2:], window_border(kernel_size)
    padded = F.pad(x, (border,) * 4) if padding == "zero" else reflect_border(x, border)
    return [padded[..., a : a + h, b : b + w] for a in range(kernel_size) for b in range(kernel_size)]
