"""One decoded image with its ground truth, on its way from the file to the batch."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sample:
    """A decoded image and its objects.

    Args:
        image: (3, H, W) uint8, RGB.
        boxes: (T, 4) float32, xyxy in pixels of `image`.
        labels: (T,) int64, index into the data set's categories (never the category id).
        masks: (T, H, W) bool, or None for samples without masks.
        image_id: the data set's own id of the image.
        original_size: (height, width) in pixels of the file, as displayed.
        path: of the file.
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
        """Current (height, width) of `image` in pixels."""
        return self.image.shape[-2], self.image.shape[-1]


@dataclass(frozen=True)
class ClassSample:
    """A decoded image and its class.

    Args:
        image: (3, H, W) uint8, RGB.
        label: index into the data set's categories.
        path: of the file.
        teacher_logits: (C,) stored for this image, or None.
    """

    image: Tensor
    label: int
    path: str = ""
    teacher_logits: Tensor | None = None
