"""Whether an exported file computes what its model does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from regard.errors import CheckpointError
from regard.models.build import Detector, Model
from regard.models.detr_demo import DETRDemo
from regard.models.exported import Run
from regard.structures.image_batch import ImageBatch
from regard.structures.outputs import DetectionOutput

TOLERANCE = 1e-4  # of an output, or of its size where that is above 1


class Agreement(NamedTuple):
    """How far a file is from its model: the largest difference, over so many images of so many sizes."""

    difference: float
    images: int
    sizes: int

    def __str__(self) -> str:
        sizes = f"{self.sizes} size{'s' * (self.sizes != 1)}"
        return f"largest difference {self.difference:.1e} over {self.images} images of {sizes}, allowed {TOLERANCE:.0e}"


@torch.no_grad()
def compare(model: Model, run: Run, batches: Sequence[ImageBatch]) -> Agreement:
    """Compare the outputs of a file with those of its model, which is on the CPU and in evaluation mode.

    Differences are absolute, and relative to the output where that is above 1. NaN counts as infinitely far.
    """
    worst = 0.0
    for batch in batches:
        expected, found = outputs_of(model, batch), run(inputs_of(model, batch))
        for name, value in expected.items():
            far = (found[name] - value).abs() / value.abs().clamp(min=1)
            worst = max(worst, far.nan_to_num(nan=torch.inf).max().item())
    sizes = {tuple(batch.pixels.shape[-2:]) for batch in batches}
    return Agreement(worst, sum(map(len, batches)), len(sizes))


def require_agreement(agreement: Agreement, where: Path) -> None:
    """Refuse a file that disagrees with its model.

    Raises:
        CheckpointError: the difference is above `TOLERANCE` (K21).
    """
    if agreement.difference > TOLERANCE:
        remedy = "no file was written; please report it with the model"
        raise CheckpointError(f"the file disagrees with its model: {agreement}", where=where, remedy=remedy, code="K21")


def inputs_of(model: Model, batch: ImageBatch) -> dict[str, Tensor]:
    """Return the inputs of an exported file for a batch."""
    if not isinstance(model, Detector) or isinstance(model, DETRDemo):
        return {"pixels": batch.pixels}
    padding = batch.padding_mask()
    if padding is None:
        padding = torch.zeros(len(batch), *batch.pixels.shape[-2:], dtype=torch.bool)
    return {"pixels": batch.pixels, "padding": padding}


def outputs_of(model: Model, batch: ImageBatch) -> dict[str, Tensor]:
    """Return what an exported file should compute for a batch."""
    output = model(batch) if isinstance(model, Detector) else model(batch.pixels)
    if not isinstance(output, DetectionOutput):
        return {"logits": output}
    masks = {} if output.masks is None else {"masks": output.masks}
    return {"logits": output.logits, "boxes": output.boxes, **masks}
