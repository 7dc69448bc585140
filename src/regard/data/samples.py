"""One image with what is known of it, on its way from the file to the batch."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from regard.structures.categories import Category as Category


@dataclass(frozen=True)
class Sample:
    """A decoded image and its objects.

    image: (3, H, W) uint8, RGB.
    boxes: (T, 4) float32, xyxy in pixels of `image`.
    labels: (T,) int64, index into the data set's categories (never the category id).
    masks: (T, H, W) bool, or None where they are not asked for.
    image_id: the data set's own id of the image.
    original_size: (height, width) in pixels of the file, as displayed.
    """

    image: Tensor
    boxes: Tensor = field(default_factory=lambda: torch.zeros(0, 4))
    labels: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    masks: Tensor | None = None
    image_id: int = 0
    original_size: tuple[int, int] = (0, 0)
    path: str = ""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels of `image` as it is now."""
        return self.image.shape[-2], self.image.shape[-1]


@dataclass(frozen=True)
class ClassSample:
    """A decoded image and its class.

    image: (3, H, W) uint8, RGB. label: index into the data set's categories.
    answer: (C,) logits of a teacher for it, where they are stored.
    """

    image: Tensor
    label: int
    path: str = ""
    answer: Tensor | None = None
