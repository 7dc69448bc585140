"""From mask logits to segments and masks of the original image, as the authors' models/segmentation.py does it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from regard.structures.categories import Category
from regard.structures.outputs import DetectionOutput
from regard.structures.segments import PanopticSegments

# Least score of a segment. Sigmoid scores of a focal loss seldom come near 1: 0.3 gives detr_tiny_panoptic the best PQ.
THRESHOLD, SIGMOID_THRESHOLD = 0.85, 0.3  # the first as published
LEAST_AREA = 4  # pixels; segments of no more are dropped

Method = Literal["published", "clean"]


class Sizes(NamedTuple):
    """(height, width) in pixels on the way of one image: all of the batch, its own part of that, the file."""

    padded: tuple[int, int]
    resized: tuple[int, int]
    original: tuple[int, int]


class Chosen(NamedTuple):
    """M queries of a batch: image, query and class (M,) int64, score (M,) 0..1; image after image."""

    image: Tensor
    query: Tensor
    labels: Tensor
    scores: Tensor

    def of(self, image: int) -> tuple[Tensor, Tensor, Tensor]:
        """Which rows an image has, with their labels and scores."""
        rows = (self.image == image).nonzero()[:, 0]
        return rows, self.labels[rows], self.scores[rows]

    def where(self, wanted: Tensor) -> Chosen:
        """Those of the rows for which `wanted` (M,) is True."""
        return Chosen(*(column[wanted] for column in self))


def choose_queries(output: DetectionOutput, *, softmax: bool, threshold: float | None = None) -> Chosen:
    """Queries whose best class is an object with a score above `threshold`; if None 0.85, for sigmoid scores 0.3."""
    if threshold is None:
        threshold = THRESHOLD if softmax else SIGMOID_THRESHOLD
    logits = output.logits.float()
    probabilities = logits.softmax(-1) if softmax else logits.sigmoid()
    scores, labels = probabilities.max(-1)
    kept = scores > threshold
    if softmax:
        kept &= labels != logits.shape[-1] - 1
    image, query = kept.nonzero(as_tuple=True)
    return Chosen(image, query, labels[kept], scores[kept])


def score_queries(output: DetectionOutput, *, softmax: bool) -> Chosen:
    """All queries, Q for each image, with the class and score by which they count as detections: see `postprocess`."""
    logits = output.logits.float()
    num_images, num_queries, num_classes = logits.shape
    image = torch.arange(num_images, device=logits.device).repeat_interleave(num_queries)
    if softmax:
        scores, labels = logits.softmax(-1)[..., :-1].max(-1)
        query = torch.arange(num_queries, device=logits.device).repeat(num_images)
    else:
        best, places = logits.flatten(1).topk(num_queries)
        scores, labels, query = best.sigmoid(), places % num_classes, (places // num_classes).flatten()
    return Chosen(image, query, labels.flatten(), scores.flatten())


def panoptic_segments(
    scores: Tensor,
    labels: Tensor,
    masks: Tensor,
    sizes: Sizes,
    categories: Sequence[Category],
    method: Method = "published",
) -> PanopticSegments:
    """Cut an image into segments: each pixel goes to the query with the greatest mask logit.

    `published` is PostProcessPanoptic. Segments of one stuff class are merged into their first; the result is resized
    by nearest neighbours, as Pillow does. While there are segments of at most 4 pixels, they are left out and the
    pixels given anew. That is done without merging: queries that were merged into another count as empty and lose
    their pixels to the next best mask, of whatever class.

    In a batch, the authors squeeze the padding into the image with the mask. Here the mask is enlarged to the padded
    size and then cut, which is the same for a single image.

    `clean` enlarges the logits right to the original size, and segments of stuff stay merged.

    Args:
        scores, labels: (M,), of M queries of one image.
        masks: (M, h, w) logits.
        categories: of the model.
    """
    rows, owner = torch.arange(len(labels), device=labels.device), _first_of_stuff(labels, categories)
    logits = _enlarged(masks, sizes, to_original=method == "clean")
    while True:
        ids = _nearest(_owners(logits, owner), sizes.original)
        areas = torch.bincount(ids.flatten(), minlength=len(labels) + 1)[1:]
        kept = areas[owner if method == "clean" else rows] > LEAST_AREA
        if kept.all():
            break
        rows, logits, owner = rows[kept], logits[kept], owner[kept]
        if method == "published":
            owner = rows
    left = areas.nonzero()[:, 0]
    numbers = ids.new_zeros(len(labels) + 1)
    numbers[left + 1] = torch.arange(1, len(left) + 1, device=ids.device)
    return PanopticSegments(numbers[ids], labels[left], scores[left], tuple(categories))


def instance_masks(masks: Tensor, sizes: Sizes) -> Tensor:
    """Mask logits (M, h, w) -> masks (M, H, W) bool of the original image, where the logit is above 0 (0.5).

    PostProcessSegm of the authors: enlarged to the size of the batch, cut, and resized by nearest neighbours.
    """
    if not len(masks):
        return torch.zeros(0, *sizes.original, dtype=torch.bool, device=masks.device)
    inside = _enlarged(masks, sizes) > 0
    return F.interpolate(inside[:, None].to(torch.uint8), sizes.original, mode="nearest")[:, 0].bool()


def _enlarged(masks: Tensor, sizes: Sizes, *, to_original: bool = False) -> Tensor:
    """Logits (M, H, W) of the image without its padding, bilinear."""
    height, width = sizes.resized
    if not len(masks):
        return masks.new_zeros(0, *(sizes.original if to_original else sizes.resized))
    logits = F.interpolate(masks[:, None].float(), sizes.padded, mode="bilinear", align_corners=False)
    logits = logits[:, :, :height, :width]
    if to_original:
        logits = F.interpolate(logits, sizes.original, mode="bilinear", align_corners=False)
    return logits[:, 0]


def _first_of_stuff(labels: Tensor, categories: Sequence[Category]) -> Tensor:
    """(M,) for each query the first one of its class, if that is stuff, and else itself."""
    places = torch.arange(len(labels), device=labels.device)
    if not len(labels):
        return places
    is_stuff = torch.tensor([not category.is_thing for category in categories], device=labels.device)[labels]
    first = (labels[:, None] == labels).long().argmax(1)
    return torch.where(is_stuff, first, places)


def _owners(logits: Tensor, owner: Tensor) -> Tensor:
    """(M, H, W) -> (H, W): 1 + the owner of the greatest logit; 0 where there is none at all."""
    if not len(logits):
        return torch.zeros(logits.shape[-2:], dtype=torch.long, device=logits.device)
    return owner[logits.argmax(0)] + 1


def _nearest(ids: Tensor, size: tuple[int, int]) -> Tensor:
    """(h, w) -> (H, W) by Pillow itself: it adds up positions in floating point, which decides ties."""
    if tuple(ids.shape) == tuple(size):
        return ids
    picture = Image.fromarray(ids.cpu().numpy().astype(np.int32))
    resized = np.array(picture.resize((size[1], size[0]), Image.Resampling.NEAREST), dtype=np.int64)
    return torch.from_numpy(resized).to(ids.device)
