"""A batch of a detection data set: padded images, and targets as the losses read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from regard.data.samples import Sample
from regard.structures.boxes import xyxy_to_cxcywh
from regard.structures.image_batch import ImageBatch


@dataclass(frozen=True)
class DetectionBatch:
    """The samples of one step.

    Args:
        images: B images, uint8, padded to one size.
        targets: of each image, see `target_of`.
        samples: of each image, without pixels and masks: ids, paths and sizes.
    """

    images: ImageBatch
    targets: list[dict[str, Tensor]]
    samples: list[Sample]

    def pin_memory(self) -> DetectionBatch:
        """Return the batch with images and targets in page-locked memory. The data loader calls this."""
        targets = [{name: value.pin_memory() for name, value in target.items()} for target in self.targets]
        return replace(self, images=self.images.pin_memory(), targets=targets)


def collate(samples: Sequence[Sample]) -> DetectionBatch:
    """Make a batch: pad the images and make targets of the objects."""
    images = ImageBatch.from_images([sample.image for sample in samples])
    # Later steps need only names and sizes: the worker must not send the pixels twice.
    light = [replace(sample, image=sample.image.new_zeros(3, 0, 0), masks=None) for sample in samples]
    return DetectionBatch(images, [target_of(sample) for sample in samples], light)


def target_of(sample: Sample) -> dict[str, Tensor]:
    """Return the target of the losses: `labels` (T,), `boxes` (T, 4), and `masks` (T, H, W) where the sample has them.

    Boxes are cxcywh as fractions 0..1 of the sample's image.
    """
    height, width = sample.size
    boxes = xyxy_to_cxcywh(sample.boxes) / torch.tensor([width, height, width, height])
    target = {"labels": sample.labels, "boxes": boxes}
    return target if sample.masks is None else {**target, "masks": sample.masks}
