"""Training steps of DETR-R50 next to transformers and of a DeiT next to timm: seconds and memory.

A step is forward, loss, backward, clipping and AdamW. Both sides get the same weights, images, targets and optimizer,
and the same dropout: 0.1 of the paper, of attention too. transformers has its own matching and losses, the authors'.
Before anything is timed, the losses are compared without dropout. Of DETR those of the last layer: for losses of the
earlier layers, transformers 5.24 passes normalised queries on from layer to layer, which the authors do not.

The memory is the peak of two steps above what stood before, in a process for each side. The second step has the
optimizer's state; weights that a step writes count too, as they are shared with this process until then.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.benchmarks.detr import from_transformers, transformers_detr
from regard.benchmarks.memory import peak_memory
from regard.benchmarks.timing import Spread, spreads
from regard.benchmarks.vit import timm_model
from regard.errors import counted
from regard.losses import SetCriterion
from regard.models.build import create
from regard.models.catalog import preset
from regard.models.configs.vit import ViTConfig
from regard.models.memory_order import move_to_device
from regard.structures.image_batch import ImageBatch

if TYPE_CHECKING:
    from rich.table import Table

Side = Literal["theirs", "ours"]
Step = Callable[[int], object]
DROPOUT = 0.1
OBJECTS = 10  # of an image
DEIT = "deit_small_patch16_224"


@dataclass(frozen=True)
class TrainingRow:
    """One model. theirs, ours: seconds of a step. their_memory, our_memory: bytes of two steps."""

    model: str
    peer: str
    threads: int
    theirs: Spread
    ours: Spread
    their_memory: int
    our_memory: int

    @property
    def ratio(self) -> float:
        """How many times as fast Regard is."""
        return self.theirs.median / self.ours.median


def main(rounds: int, threads: int) -> list[TrainingRow]:
    """Measure and print the table."""
    from rich.console import Console

    rows = run(rounds, threads)
    Console().print(table(rows))
    return rows


def run(
    rounds: int = 5, threads: int = 1, *, images: int = 2, size: tuple[int, int] = (480, 640), deit: str = DEIT
) -> list[TrainingRow]:
    """Measure both models in alternating rounds.

    Args:
        rounds: number of rounds.
        threads: of torch on both sides. One is timed by its processor time, several by the clock.
        images: of a batch of the detector; the classifier gets four times as many.
        size: (height, width) of the detector's images in pixels.
        deit: name of the classifier.

    Raises:
        MachineError: transformers or timm is missing.
    """
    found = []
    for what, peer, make in (
        (f"DETR-R50, {images} images of {size[0]} x {size[1]}", "transformers", _DetrSteps(images, size)),
        (f"{deit}, {4 * images} images", "timm", _DeitSteps(deit, 4 * images)),
    ):
        ours, theirs = make.loss("ours"), make.loss("theirs")
        assert math.isclose(ours, theirs, rel_tol=1e-4), f"the losses of {what} differ: {ours} and {theirs}"
        steps = [make.step("theirs"), make.step("ours")]
        memory = [peak_memory(_twice(step)) for step in steps]  # first, as gradients make threads in this process
        theirs_spread, ours_spread = spreads(steps, rounds, threads=threads)
        found.append(TrainingRow(what, peer, threads, theirs_spread, ours_spread, *memory))
    return found


def table(rows: Sequence[TrainingRow]) -> Table:
    """Return a table of the rows, with the quartiles of the seconds in a second line."""
    from rich.table import Table

    threads = ", ".join(dict.fromkeys(counted(row.threads, "thread") for row in rows))
    result = Table(title=f"A training step, {threads}: seconds and MiB", title_justify="left")
    result.add_column("", overflow="fold")
    for header in ("peer", "regard", "ratio", "MiB, peer", "regard", "ratio"):
        result.add_column(header, justify="right", no_wrap=True)
    for row in rows:
        seconds = [f"{time.median:.3g}\n{time.low:.3g}-{time.high:.3g}" for time in (row.theirs, row.ours)]
        memory = [f"{count / 2**20:.0f}" for count in (row.their_memory, row.our_memory)]
        share = f"{row.our_memory / row.their_memory:.2f}x"
        result.add_row(f"{row.model}, {row.peer}", *seconds, f"{row.ratio:.2f}x", *memory, share)
    return result


@dataclass(frozen=True)
class _DetrSteps:
    """Losses and steps of DETR-R50."""

    images: int
    size: tuple[int, int]

    def loss(self, side: Side) -> float:
        """The loss of the last layer without dropout."""
        with torch.no_grad():
            return self._loss(side, self._net(side, 0.0, auxiliary=False), auxiliary=False)().item()

    def step(self, side: Side) -> Step:
        net = self._net(side, DROPOUT)
        return _step(net, self._loss(side, net))

    def _net(self, side: Side, dropout: float, *, auxiliary: bool = True) -> nn.Module:
        theirs = transformers_detr()
        if side == "ours":
            net = create("detr_resnet50")
            net.load_state_dict(from_transformers(theirs.state_dict()))
            net = move_to_device(net, "auto", torch.device("cpu"))
        else:
            net = theirs
            net.config.auxiliary_loss = auxiliary
            for name, parameter in net.named_parameters():
                # The recipe trains all but stem and first stage. transformers 5.24 freezes all of its own ResNet, whose
                # stages have other names than it looks for.
                parameter.requires_grad_("backbone" not in name or any(f"stages.{k}." in name for k in (1, 2, 3)))
        for module in net.modules():
            for name in ("dropout", "attention_dropout", "activation_dropout"):
                if isinstance(getattr(module, name, None), float):
                    setattr(module, name, dropout)
            if isinstance(module, nn.Dropout):
                module.p = dropout
        return net.train()

    def _loss(self, side: Side, net: nn.Module, *, auxiliary: bool = True) -> Callable[[], Tensor]:
        g = torch.Generator().manual_seed(0)
        pixels = torch.randn(self.images, 3, *self.size, generator=g)
        targets: list[dict[str, Tensor]] = []
        for _ in range(self.images):
            boxes = 0.2 + 0.5 * torch.rand(OBJECTS, 4, generator=g)
            targets.append({"labels": torch.randint(0, 91, (OBJECTS,), generator=g), "boxes": boxes})
        if side == "theirs":
            labels = [{"class_labels": target["labels"], "boxes": target["boxes"]} for target in targets]
            mask = torch.ones(self.images, *self.size, dtype=torch.int64)
            return lambda: net(pixel_values=pixels, pixel_mask=mask, labels=labels).loss
        batch, criterion = ImageBatch(pixels, (self.size,) * self.images), SetCriterion(91, auxiliary_losses=auxiliary)
        return lambda: criterion.total(criterion(net(batch, targets), targets))


@dataclass(frozen=True)
class _DeitSteps:
    """Losses and steps of a DeiT, without stochastic depth: neither side has dropout."""

    name: str
    images: int

    def loss(self, side: Side) -> float:
        with torch.no_grad():
            return self._loss(self._net(side))().item()

    def step(self, side: Side) -> Step:
        net = self._net(side)
        return _step(net, self._loss(net))

    def _net(self, side: Side) -> nn.Module:
        theirs = timm_model(self.name)
        if side == "theirs":
            return theirs.train()
        net = create(self.name)
        net.load_state_dict(theirs.state_dict())
        return net.train()

    def _loss(self, net: Any) -> Callable[[], Tensor]:
        config = preset(self.name)
        assert isinstance(config, ViTConfig)
        g, side = torch.Generator().manual_seed(0), config.image_size
        pixels = torch.randn(self.images, 3, side, side, generator=g)
        labels = torch.randint(0, 10, (self.images,), generator=g)
        return lambda: F.cross_entropy(net(pixels), labels)


def _step(net: nn.Module, loss: Callable[[], Tensor]) -> Step:
    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-6, fused=True)

    def step(_: int) -> None:
        loss().backward()
        nn.utils.clip_grad_norm_(trained, 0.1)
        optimizer.step()
        optimizer.zero_grad()

    return step


def _twice(step: Step) -> Step:
    return lambda number: (step(number), step(number))
