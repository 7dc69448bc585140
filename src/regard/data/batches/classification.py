"""Samples of a classification data set as a batch: images of one size and their labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from regard.data.samples import ClassSample
from regard.structures.image_batch import ImageBatch


@dataclass(frozen=True)
class ClassificationBatch:
    """Samples of one step.

    images: uint8, all of one size. labels: (B,) int64. paths: where the images come from.
    number: of the batch in the run, from 0: mixing depends on it.
    answers: (B, C) logits of a teacher that were stored, or None.
    """

    images: ImageBatch
    labels: Tensor
    paths: tuple[str, ...]
    number: int = 0
    answers: Tensor | None = None

    def pin_memory(self) -> ClassificationBatch:
        answers = None if self.answers is None else self.answers.pin_memory()
        return replace(self, images=self.images.pin_memory(), labels=self.labels.pin_memory(), answers=answers)


def collate(samples: Sequence[ClassSample]) -> ClassificationBatch:
    """Put images of one size side by side."""
    images = ImageBatch.from_images([sample.image for sample in samples])
    labels = torch.tensor([sample.label for sample in samples])
    known = [sample.answer for sample in samples if sample.answer is not None]
    answers = torch.stack(known) if known else None
    return ClassificationBatch(images, labels, tuple(sample.path for sample in samples), answers=answers)
