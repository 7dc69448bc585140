"""Milliseconds of DETR's mask head on one core: Regard against transformers, at inference.

Both get the same weights and tensors, those of DETR-R50 for an image of 800 x 1066 pixels with 100 queries, of which 20
are found. transformers, like the authors' code, makes the masks of all 100; ours those of the 20, with the first
convolution split into a part for the image and one for each query. The masks of the 20 have to agree.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from regard.benchmarks.timing import TransformersRow, medians
from regard.errors import MachineError, install_command
from regard.models.panoptic import AttentionMap, MaskHead

if TYPE_CHECKING:
    from rich.table import Table

CHANNELS, HEADS, FINER = 256, 8, (1024, 512, 256)


def main(rounds: int) -> list[TransformersRow]:
    """Measure and print the table."""
    from rich.console import Console

    rows = run(rounds)
    Console().print(table(rows))
    return rows


def run(
    rounds: int = 5, *, queries: int = 100, kept: Sequence[int] = (20, 100), size: tuple[int, int] = (800, 1066)
) -> list[TransformersRow]:
    """Measure the head from queries and features to mask logits.

    Args:
        rounds: number of rounds; the sides alternate.
        queries: of the image.
        kept: how many of them get a mask from ours, a row for each.
        size: (height, width) of the image in pixels.

    Raises:
        MachineError: transformers is missing.
    """
    torch.manual_seed(0)
    looking, head = AttentionMap(CHANNELS, HEADS).eval(), MaskHead(CHANNELS, HEADS, FINER).eval()
    hidden = torch.randn(1, queries, CHANNELS)
    maps = [torch.randn(1, channels, *_cells(size, 16 // 2**i)) for i, channels in enumerate(FINER)]
    memory, projected = (torch.randn(1, CHANNELS, *_cells(size, 32)) for _ in range(2))
    theirs = _transformers(looking, head, hidden, memory, projected, maps)
    ours = [_ours(looking, head, hidden[:, :count], memory, projected, maps) for count in kept]
    expected = theirs(0)
    for count, way in zip(kept, ours, strict=True):
        difference = (way(0) - expected[:count]).abs().max().item()
        assert difference < 1e-3, f"the masks differ by {difference}"
    of_theirs, *of_ours = (1000 * seconds for seconds in medians([theirs, *ours], rounds))
    whole = f"{queries} queries, {size[0]} x {size[1]}"
    return [TransformersRow(f"{whole}, {count} kept", of_theirs, own) for count, own in zip(kept, of_ours, strict=True)]


def table(rows: Sequence[TransformersRow]) -> Table:
    """Return a table of the rows."""
    from rich.table import Table

    table = Table(title="Mask head, ms on one core", title_justify="left")
    table.add_column("what")
    for name in ("transformers", "regard", "ratio"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(row.what, f"{row.transformers:,.0f}", f"{row.regard:,.0f}", f"{row.ratio:.1f}x")
    return table


def _cells(size: tuple[int, int], stride: int) -> tuple[int, int]:
    return -(-size[0] // stride), -(-size[1] // stride)


def _ours(
    looking: AttentionMap, head: MaskHead, hidden: Tensor, memory: Tensor, projected: Tensor, maps: Sequence[Tensor]
) -> Callable[[int], Tensor]:
    image = torch.zeros(hidden.shape[1], dtype=torch.int64)

    @torch.no_grad()
    def way(_: int) -> Tensor:
        attention = looking(hidden[0], memory.flatten(2).transpose(1, 2), image)
        return head(attention.unflatten(2, memory.shape[-2:]), projected, maps, image)

    return way


def _transformers(
    looking: AttentionMap, head: MaskHead, hidden: Tensor, memory: Tensor, projected: Tensor, maps: Sequence[Tensor]
) -> Callable[[int], Tensor]:
    try:
        from transformers.models.detr.modeling_detr import DetrMaskHeadSmallConv, DetrMHAttentionMap
    except ImportError as error:
        what, remedy = "this comparison needs transformers", install_command("transformers")
        raise MachineError(what, remedy=remedy) from error
    their_looking = DetrMHAttentionMap(CHANNELS, HEADS).eval()
    their_head = DetrMaskHeadSmallConv(CHANNELS + HEADS, list(FINER), CHANNELS, "relu").eval()
    their_looking.load_state_dict({k.replace("_linear", "_proj"): v for k, v in looking.state_dict().items()})
    their_head.load_state_dict(dict(zip(their_head.state_dict(), in_passing_order(head), strict=True)))
    bias = torch.zeros(1, 1, 1, *memory.shape[-2:])

    @torch.no_grad()
    def way(_: int) -> Tensor:
        attention = their_looking(hidden, memory, bias)
        return their_head(projected, attention, list(maps))[:, 0]

    return way


def in_passing_order(head: nn.Module) -> list[Tensor]:
    """The tensors of a mask head in the order in which an image passes them, as transformers registers them."""
    order = ["lay1", "gn1", "lay2", "gn2"]
    for number in range(1, 1 + len(FINER)):
        order += [f"adapter{number}", f"lay{number + 2}", f"gn{number + 2}"]
    state = head.state_dict()
    return [state[f"{name}.{kind}"] for name in (*order, "out_lay") for kind in ("weight", "bias")]
