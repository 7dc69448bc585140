"""Training images per second and core with a teacher that runs in every step, next to its stored logits.

Both run whole training steps: augmentation, batching, and a student of ImageNet's size with hard distillation and
AdamW. Only the source of the teacher's logits differs; the logits are the same, and so are the losses, which is
checked. The teacher is that of the DeiT paper with random weights, since their values do not matter.
"""

from __future__ import annotations

import importlib.util
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from regard.benchmarks.timing import medians
from regard.data.batches.classification import collate
from regard.data.samples import ClassSample
from regard.data.transforms.classification import imagenet_training
from regard.distillation.options import StorageOptions
from regard.distillation.stored_logits import AugmentedWithLogits, StoredLogits, store_logits
from regard.distillation.teachers import Teacher
from regard.losses import DistillationLoss
from regard.models import VisionTransformer
from regard.models.build import create
from regard.structures.outputs import DistilledLogits
from regard.training.data_loader import Augmented

if TYPE_CHECKING:
    from rich.table import Table

VIEWS = 2  # of each image, in turns


@dataclass(frozen=True)
class DistillationRow:
    """Images per second on one core: medians over the rounds."""

    student: str
    teacher: str
    batch_size: int
    live: float
    stored: float

    @property
    def ratio(self) -> float:
        """How many times as fast training on stored logits is."""
        return self.stored / self.live


def main(rounds: int) -> list[DistillationRow]:
    """Measure and print the table."""
    from rich.console import Console

    row = run(rounds)
    Console().print(table(row))
    return [row]


def run(
    rounds: int = 7,
    *,
    student: str = "deit_tiny_distilled_patch16_224",
    teacher: str | None = None,
    batch_size: int = 8,
) -> DistillationRow:
    """Measure steps of training.

    Args:
        rounds: number of rounds; the two ways alternate.
        student: a named model with a distillation token.
        teacher: a named model, or timm's `regnety_160`, which is the default where timm is installed; `resnet50`
            elsewhere.
        batch_size: images of a step.
    """
    if teacher is None:
        teacher = "regnety_160" if importlib.util.find_spec("timm") else "resnet50"
    torch.manual_seed(0)
    first, second = create(student), create(student)
    assert isinstance(first, VisionTransformer)
    second.load_state_dict(first.state_dict())
    side, classes = first.config.image_size, first.config.num_classes
    teaching = Teacher(_network(teacher, classes))
    images, augmentation = _Images(batch_size, side, classes), imagenet_training(side)
    data = Augmented(images, augmentation, 0)
    losses: tuple[list[float], list[float]] = ([], [])
    with tempfile.TemporaryDirectory() as folder:
        about = {"classes": [str(number) for number in range(classes)]}
        options = StorageOptions(views=VIEWS, batch_size=batch_size, dtype="float32")
        for _ in store_logits(data, teaching, Path(folder), about, options, device=torch.device("cpu"), workers=0):
            pass
        logits = StoredLogits(folder)
        stored = AugmentedWithLogits(images, augmentation, 0, logits)  # type: ignore[arg-type]  # any images do
        ways = [_step(first, data, teaching, losses[0]), _step(second, stored, None, losses[1])]
        live, replayed = (batch_size / seconds for seconds in medians(ways, rounds))
    for a, b in zip(*losses, strict=True):
        assert math.isclose(a, b, rel_tol=1e-4), f"the losses differ: {losses}"
    return DistillationRow(student, teacher, batch_size, live, replayed)


def table(row: DistillationRow) -> Table:
    """Return a table of the row."""
    from rich.table import Table

    result = Table(title=f"Training, {row.batch_size} images a step: images per second and core (higher is better)")
    for header in ("student", "teacher", "live", "stored", "ratio"):
        result.add_column(header, justify="left" if header in ("student", "teacher") else "right", no_wrap=True)
    result.add_row(row.student, row.teacher, f"{row.live:.2f}", f"{row.stored:.2f}", f"{row.ratio:.2f}x")
    return result


class _Images:
    """As many generated images as a step takes, an eighth larger than what a student sees of them."""

    def __init__(self, count: int, side: int, classes: int) -> None:
        g = torch.Generator().manual_seed(0)
        size = side * 9 // 8
        self.samples = [
            ClassSample(torch.randint(256, (3, size, size), generator=g, dtype=torch.uint8), number % classes)
            for number in range(count)
        ]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> ClassSample:
        return self.samples[index]


def _step(model: nn.Module, data: Augmented, teacher: Teacher | None, losses: list[float]) -> Callable[[int], None]:
    """One step of training, on all images in the view of that number; its loss is added to `losses`."""
    criterion = DistillationLoss("hard")
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, weight_decay=0.05)
    model.train()

    def step(number: int) -> None:
        batch = collate([data[number % VIEWS, index] for index in range(len(data.dataset))])
        pixels = batch.images.normalized().pixels
        output = model(pixels)
        assert isinstance(output, DistilledLogits)
        loss = criterion(output, batch.teacher_logits if teacher is None else teacher(pixels), batch.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    return step


def _network(name: str, classes: int) -> nn.Module:
    if name != "regnety_160":
        return create(name, num_classes=classes)
    import timm

    return timm.create_model(name, num_classes=classes)
