"""Milliseconds of vision transformers on one core: Regard against timm with the same weights, and with merged tokens.

Both run as they come, without compilation and with torch's fused attention; their logits have to agree.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from regard.benchmarks.timing import medians
from regard.errors import MachineError, install_command
from regard.models import VisionTransformer, merge_tokens
from regard.models.build import create
from regard.models.engine import optimize

if TYPE_CHECKING:
    from rich.table import Table

MODELS = (
    "deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "deit_small_patch16_224",
    "deit_small_distilled_patch16_224",
)  # fmt: skip
BATCHES = (1, 8)
LEAST = 8  # images of a measurement
MERGED_MODELS = ("deit_tiny_patch16_224", "deit_small_patch16_224")
MERGED = (0, 8, 13, 16)  # tokens of each block; about 16 is the most that 196 patches and 12 blocks have


@dataclass(frozen=True)
class VitRow:
    """Milliseconds on one core: medians over the rounds. `other`: of timm, or of the model with merged tokens."""

    model: str
    what: str
    batch_size: int
    other: float
    regard: float

    @property
    def ratio(self) -> float:
        """How many times as fast Regard is."""
        return self.other / self.regard


def main(rounds: int) -> list[VitRow]:
    """Measure and print the tables."""
    from rich.console import Console

    found = []
    for other, rows in (
        ("timm", run(rounds)),
        ("timm", [row for name in MERGED_MODELS for row in engines(name, rounds)]),
        ("not merged", [row for name in MERGED_MODELS for row in merging(name, rounds)]),
    ):
        Console().print(table(rows, other))
        found += rows
    return found


def run(rounds: int = 7, *, models: Sequence[str] = MODELS, batches: Sequence[int] = BATCHES) -> list[VitRow]:
    """Measure inference, and forward and backward with the largest batch, next to timm, in alternating rounds.

    Args:
        rounds: number of rounds; the two sides alternate.
        models: names that both know.
        batches: images per batch.

    Raises:
        MachineError: timm is missing.
    """
    rows = []
    for name in models:
        ours, theirs = create(name), timm_model(name)
        assert isinstance(ours, VisionTransformer)
        ours.load_state_dict(theirs.state_dict())
        for size in batches:
            rows.append(_inference(name, ours, theirs, _images(ours, size), rounds))
        rows.append(_training(name, ours, theirs, _images(ours, max(batches)), rounds))
    return rows


def engines(model: str, rounds: int = 7, *, batches: Sequence[int] = BATCHES, compiled: bool = True) -> list[VitRow]:
    """Measure the engines of a model (`regard.optimize`) next to timm: exact, bfloat16, and with `torch.compile`.

    The error of bfloat16 is part of its row; the others have to agree.

    Raises:
        MachineError: timm is missing.
    """
    plain, theirs = create(model).eval(), timm_model(model).eval()
    assert isinstance(plain, VisionTransformer)
    plain.load_state_dict(theirs.state_dict())
    nets = {"exact": optimize(plain), "bfloat16": optimize(plain, dtype=torch.bfloat16)}
    rows = []
    for size in batches:
        images = _images(plain, size)
        if compiled:
            nets["compiled"] = optimize(plain, compile=True)
        with torch.inference_mode():
            expected, named = theirs(images), []
            for name, net in nets.items():
                error = ((net(images) - expected).abs().max() / expected.std()).item()
                assert name == "bfloat16" or error < 1e-4, f"the logits of {model}, {name}, differ by {error}"
                named.append(f"bfloat16, error {error:.3f} deviations" if name == "bfloat16" else name)
            ways = [_forward(net, images) for net in (theirs, *nets.values())]
            peer, *ours = (1000 * seconds / _times(images) for seconds in medians(ways, rounds))
        rows += [VitRow(model, name, size, peer, ms) for name, ms in zip(named, ours, strict=True)]
    return rows


def merging(
    model: str, rounds: int = 7, *, batches: Sequence[int] = BATCHES, merged: Sequence[int] = MERGED
) -> list[VitRow]:
    """Measure inference of a model against itself with `merged` tokens merged in each block."""
    torch.manual_seed(0)
    plain = create(model).eval()
    assert isinstance(plain, VisionTransformer)
    rows = []
    for size in batches:
        images = _images(plain, size)
        ways = [_forward(net, images) for net in (plain, *(merge_tokens(plain, r) for r in merged))]
        with torch.inference_mode():
            first, *others = (1000 * seconds / _times(images) for seconds in medians(ways, rounds))
        rows += [VitRow(model, f"r = {r}", size, first, ms) for r, ms in zip(merged, others, strict=True)]
    return rows


def table(rows: Sequence[VitRow], other: str) -> Table:
    """Return a table of the rows; `other`: what ours is compared with."""
    from rich.table import Table

    result = Table(title="Vision transformers: milliseconds a batch on one core (lower is better)")
    for header in ("model", "", "images", other, "regard", "ratio"):
        is_text = header in ("model", "")
        result.add_column(header, justify="left" if is_text else "right", no_wrap=not is_text, overflow="fold")
    for row in rows:
        numbers = (f"{row.other:.1f}", f"{row.regard:.1f}", f"{row.ratio:.2f}x")
        result.add_row(row.model, row.what, str(row.batch_size), *numbers)
    return result


def _inference(name: str, ours: nn.Module, theirs: nn.Module, images: Tensor, rounds: int) -> VitRow:
    ours.eval()
    theirs.eval()
    with torch.inference_mode():
        difference = (ours(images) - theirs(images)).abs().max().item()
        assert difference < 5e-5, f"the logits of {name} differ by {difference}"
        seconds = medians([_forward(theirs, images), _forward(ours, images)], rounds)
    return VitRow(name, "inference", len(images), *(1000 * s / _times(images) for s in seconds))


def _forward(model: nn.Module, images: Tensor) -> Callable[[int], object]:
    return lambda _: [model(images) for _ in range(_times(images))]


def _times(images: Tensor) -> int:
    """How often a batch is repeated in a round: a single image is too fast to time."""
    return -(-LEAST // len(images))


def _training(name: str, ours: nn.Module, theirs: nn.Module, images: Tensor, rounds: int) -> VitRow:
    if hasattr(theirs, "set_distilled_training"):
        theirs.set_distilled_training(True)  # type: ignore[operator]  # or it would give the mean of both heads
    seconds = medians([_backward(theirs.train(), images), _backward(ours.train(), images)], rounds)
    return VitRow(name, "with gradients", len(images), *(1000 * s for s in seconds))


def _backward(model: nn.Module, images: Tensor) -> Callable[[int], None]:
    def backward(_: int) -> None:
        output = model(images)
        heads = output if isinstance(output, tuple) else (output,)
        model.zero_grad()
        torch.stack([logits.logsumexp(1).sum() for logits in heads]).sum().backward()

    return backward


def _images(model: VisionTransformer, count: int) -> Tensor:
    side = model.config.image_size
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def timm_model(name: str) -> nn.Module:
    """Return a model of timm with random weights. Raises MachineError if timm is missing."""
    try:
        import timm
    except ImportError as error:
        raise MachineError("the comparison needs timm", remedy=install_command("timm")) from error
    torch.manual_seed(0)
    return timm.create_model(name)
