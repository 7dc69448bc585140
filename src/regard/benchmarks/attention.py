"""Time and memory of every attention mechanism on one core, by the size of the map, against other libraries.

One peer is the paper's listing of augmented convolution, which public code follows; it tiles the logits of rows and
columns to all pairs of cells. Its results are checked to equal ours before timing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from regard.attention import (
    AugmentedConv2d,
    AxialAttention,
    CrissCrossAttention,
    LocalRelation2d,
    NonLocalBlock,
    PairwiseVectorAttention2d,
    PatchwiseVectorAttention2d,
    StandAloneAttention2d,
)
from regard.benchmarks.memory import peak_memory
from regard.benchmarks.timing import medians
from regard.errors import MachineError

if TYPE_CHECKING:
    from rich.table import Table

SIDES = (14, 28, 32, 64)
CHANNELS, KEYS, VALUES, HEADS = 160, 160, 16, 8  # the first stage of Wide-ResNet-28-10 (kappa 0.2, upsilon 0.1)
PEERS = 3  # which come first
IMAGES = {14: 4, 28: 4, 32: 4, 64: 1}  # the listing needs 10 GiB for one image of 64 x 64 cells


@dataclass(frozen=True)
class AttentionRow:
    """Medians over the rounds on one core, in milliseconds, and memory on top of inputs and weights in MiB."""

    mechanism: str
    side: int
    forward: float
    both: float
    memory: float


class Listing(nn.Module):
    """The attention of an `AugmentedConv2d` as in the paper's listing, with the same parameters."""

    def __init__(self, layer: AugmentedConv2d) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.layer.project(x)
        b, heads, h, w, _ = query.shape
        relative = self.layer.relative
        assert relative is not None
        logits = query.flatten(2, 3) @ key.flatten(2, 3).transpose(-2, -1)
        columns = _relative_1d(query, relative.width_table).permute(0, 1, 2, 4, 3, 5)
        rows = _relative_1d(query.transpose(2, 3), relative.height_table).permute(0, 1, 4, 2, 5, 3)
        logits = logits + columns.reshape(b, heads, h * w, h * w) + rows.reshape(b, heads, h * w, h * w)
        attended = (logits.softmax(dim=-1) @ value.flatten(2, 3)).unflatten(2, (h, w))
        return self.layer.out(attended.permute(0, 1, 4, 2, 3).flatten(1, 2))


def _relative_1d(query: Tensor, table: Tensor) -> Tensor:
    """Logits of one axis, tiled over the other: (B, heads, H, W, d) -> (B, heads, H, H, W, W)."""
    b, heads, h, w, _ = query.shape
    x = torch.einsum("bhxyd,md->bhxym", query, table).reshape(b, heads * h, w, 2 * w - 1)
    # From relative to absolute places by padding and reading with another row length.
    x = torch.cat((x, x.new_zeros(b, heads * h, w, 1)), dim=3).flatten(2)
    x = torch.cat((x, x.new_zeros(b, heads * h, w - 1)), dim=2)
    x = x.view(b, heads * h, w + 1, 2 * w - 1)[:, :, :w, w - 1 :]
    return x.reshape(b, heads, h, 1, w, w).repeat(1, 1, 1, h, 1, 1)


class _Tokens(nn.Module):
    """torch's multi-head attention on the cells of a map, without positions."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(CHANNELS, HEADS, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        return self.attention(tokens, tokens, tokens, need_weights=False)[0].transpose(1, 2).unflatten(2, x.shape[2:])


class _Attention(nn.Module):
    """The attention of an augmented convolution without its convolution."""

    def __init__(self, layer: AugmentedConv2d) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer.attend(x)


def mechanisms(side: int) -> dict[str, nn.Module]:
    """Layers for maps (B, 160, side, side) by name; the peers first."""
    torch.manual_seed(0)
    layer = AugmentedConv2d(
        CHANNELS, CHANNELS, key_channels=KEYS, value_channels=VALUES, num_heads=HEADS, map_size=(side, side)
    )
    found: dict[str, nn.Module] = {"augmented convolution, the listing": Listing(layer)}
    timm = _timm(side)
    if timm is not None:
        found["timm BottleneckAttn"] = timm
    found |= {
        "torch.nn.MultiheadAttention": _Tokens(),
        "augmented convolution": _Attention(layer),
        "non-local": NonLocalBlock(CHANNELS),
        "criss-cross": CrissCrossAttention(CHANNELS),
        "axial": AxialAttention(CHANNELS, HEADS),
        "stand-alone, 7 x 7": StandAloneAttention2d(CHANNELS, CHANNELS),
        "local relation, 7 x 7": LocalRelation2d(CHANNELS),
        "vector, pairwise, 7 x 7": PairwiseVectorAttention2d(CHANNELS),
        "vector, patchwise, 7 x 7": PatchwiseVectorAttention2d(CHANNELS),
    }
    return found


def _timm(side: int) -> nn.Module | None:
    try:
        from timm.layers.bottleneck_attn import BottleneckAttn
    except ImportError:
        return None
    return BottleneckAttn(
        CHANNELS, CHANNELS, feat_size=(side, side), num_heads=HEADS, qk_ratio=1.0, scale_pos_embed=True
    )


def run(rounds: int, sides: tuple[int, ...] = SIDES) -> list[AttentionRow]:
    """Measure all mechanisms on maps of all sizes.

    Raises:
        MachineError: the listing and ours disagree.
    """
    for side in sides:
        _compare(mechanisms(side), _maps(side))
    # Memory first: torch refuses gradients in forks of a process that has threads for them.
    memory = {side: [peak_memory(_both(layer, _maps(side))) for layer in mechanisms(side).values()] for side in sides}
    rows = []
    for side in sides:
        layers, x = mechanisms(side), _maps(side)
        forward = medians([_forward(layer, x) for layer in layers.values()], rounds)
        both = medians([_both(layer, x) for layer in layers.values()], rounds)
        for name, a, b, peak in zip(layers, forward, both, memory[side], strict=True):
            rows.append(AttentionRow(name, side, 1000 * a, 1000 * b, peak / 2**20))
    return rows


def _maps(side: int) -> Tensor:
    return torch.randn(IMAGES.get(side, 1), CHANNELS, side, side, requires_grad=True)


def _compare(layers: dict[str, nn.Module], x: Tensor) -> None:
    with torch.no_grad():
        ours, listing = (layers[name](x) for name in ("augmented convolution", "augmented convolution, the listing"))
    if not torch.allclose(ours, listing, rtol=1e-3, atol=1e-4):
        raise MachineError(f"augmented convolution differs from the listing by {(ours - listing).abs().max():.2g}")


def _forward(layer: nn.Module, x: Tensor) -> Callable[[int], object]:
    def call(_: int) -> Tensor:
        with torch.no_grad():
            return layer(x)

    return call


def _both(layer: nn.Module, x: Tensor) -> Callable[[int], object]:
    def call(_: int) -> None:
        x.grad = None
        layer.zero_grad()
        layer(x).sum().backward()

    return call


def main(rounds: int, output: Path) -> list[AttentionRow]:
    """Measure, print the tables and draw the picture."""
    from rich.console import Console

    rows = run(rounds)
    Console().print(*tables(rows), sep="\n")
    draw(rows, output)
    print(output)
    return rows


def tables(rows: list[AttentionRow]) -> list[Table]:
    """Return one table per quantity: a row per mechanism, a column per size."""
    from rich.table import Table

    sides = list(dict.fromkeys(row.side for row in rows))
    found = []
    for measured, title in (
        ("forward", "ms forward"), ("both", "ms forward and backward"), ("memory", "MiB forward and backward"),
    ):  # fmt: skip
        table = Table("mechanism", title=f"{title}, one core")
        for side in sides:
            table.add_column(f"{IMAGES.get(side, 1)} x {side}²", justify="right")
        for name in dict.fromkeys(row.mechanism for row in rows):
            mine = {row.side: getattr(row, measured) for row in rows if row.mechanism == name}
            table.add_row(name, *(f"{mine[side]:.0f}" for side in sides))
        found.append(table)
    return found


def draw(rows: list[AttentionRow], path: Path) -> None:
    """Time and memory per image against the cells of the map, on logarithmic axes."""
    from regard.metrics.charts.style import COLORS, apply, figure, save

    picture = figure(11, 4.5)
    axes = [picture.add_subplot(1, 2, place) for place in (1, 2)]
    for number, name in enumerate(dict.fromkeys(row.mechanism for row in rows)):
        mine = [row for row in rows if row.mechanism == name]
        cells = [row.side**2 for row in mine]
        color, form = COLORS[number % len(COLORS)], "o--" if number < PEERS else "o-" if number < len(COLORS) else "o:"
        axes[0].plot(cells, [row.both / IMAGES.get(row.side, 1) for row in mine], form, color=color, label=name)
        memory = [max(row.memory, 0.1) / IMAGES.get(row.side, 1) for row in mine]
        axes[1].plot(cells, memory, form, color=color, label=name)
    for place, label in zip(axes, ("ms forward and backward, per image", "MiB per image"), strict=True):
        place.set(xscale="log", yscale="log", xlabel="cells of the map", ylabel=label)
        place.set_xticks([side**2 for side in SIDES], [f"{side}²" for side in SIDES])
        place.minorticks_off()
        apply(place)
    axes[1].legend(loc="upper left", bbox_to_anchor=(1.02, 1.0), frameon=False, fontsize=8)
    save(picture, path)
