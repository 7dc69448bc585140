"""Samples of a detection data set as a batch: padded images, and targets as the losses want them."""

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
    """Samples of one step: images, targets as the losses want them, and where they come from."""

    images: ImageBatch
    targets: list[dict[str, Tensor]]
    samples: list[Sample]

    def pin_memory(self) -> DetectionBatch:
        return replace(self, images=self.images.pin_memory())


def collate(samples: Sequence[Sample]) -> DetectionBatch:
    """Pad the images and make boxes fractions of each image."""
    images = ImageBatch.from_images([sample.image for sample in samples])
    # What comes later needs only names and sizes: pixels are not sent twice from the worker.
    light = [replace(sample, image=sample.image.new_zeros(3, 0, 0), masks=None) for sample in samples]
    return DetectionBatch(images, [target_of(sample) for sample in samples], light)


def target_of(sample: Sample) -> dict[str, Tensor]:
    """`{"labels", "boxes"}` of a sample, boxes cxcywh as fractions 0..1 of its image; `masks` where it has them."""
    height, width = sample.size
    boxes = xyxy_to_cxcywh(sample.boxes) / torch.tensor([width, height, width, height])
    target = {"labels": sample.labels, "boxes": boxes}
    return target if sample.masks is None else {**target, "masks": sample.masks}
