"""A batch of a classification data set: images of one size and their labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from regard.data.samples import ClassSample
from regard.structures.image_batch import ImageBatch


@dataclass(frozen=True)
class ClassificationBatch:
    """The samples of one step.

    Args:
        images: B images of one size, uint8.
        labels: (B,) int64.
        paths: of the image files.
        number: of the batch in the run, from 0; mixing depends on it.
        teacher_logits: (B, C) stored logits of a teacher, or None.
    """

    images: ImageBatch
    labels: Tensor
    paths: tuple[str, ...]
    number: int = 0
    teacher_logits: Tensor | None = None

    def pin_memory(self) -> ClassificationBatch:
        """Return the batch in page-locked memory. The data loader calls this."""
        logits = None if self.teacher_logits is None else self.teacher_logits.pin_memory()
        images, labels = self.images.pin_memory(), self.labels.pin_memory()
        return replace(self, images=images, labels=labels, teacher_logits=logits)


def collate(samples: Sequence[ClassSample]) -> ClassificationBatch:
    """Make a batch of samples whose images have one size."""
    images = ImageBatch.from_images([sample.image for sample in samples])
    labels = torch.tensor([sample.label for sample in samples])
    logits = [sample.teacher_logits for sample in samples if sample.teacher_logits is not None]
    paths = tuple(sample.path for sample in samples)
    return ClassificationBatch(images, labels, paths, teacher_logits=torch.stack(logits) if logits else None)
