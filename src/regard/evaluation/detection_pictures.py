"""Pictures of a training run: batches and predictions of a detector."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from regard.data.samples import Sample
from regard.drawing.boxes import class_color, compare, draw_boxes, grid
from regard.drawing.masks import draw_segments
from regard.structures.boxes import cxcywh_to_xyxy
from regard.structures.categories import Category
from regard.structures.image_batch import ImageBatch
from regard.structures.segments import PanopticSegments

MAX_IMAGES = 16  # of a batch
MAX_COMPARISONS = 6  # images of an evaluation
MIN_SCORE = 0.3  # of predictions that are drawn


def draw_batch(images: ImageBatch, targets: Sequence[dict[str, Tensor]], categories: Sequence[Category]) -> Image.Image:
    """Draw a batch as the model receives it, augmented, with its targets. Pixels are uint8, boxes fractions 0..1."""
    drawn = []
    for pixels, (height, width), target in list(zip(images.pixels, images.sizes, targets, strict=True))[:MAX_IMAGES]:
        boxes = cxcywh_to_xyxy(target["boxes"]) * torch.tensor([width, height, width, height])
        drawn.append(_draw(pixels[:, :height, :width], boxes, target["labels"], categories))
    return grid(drawn, columns=min(4, len(drawn)))


def draw_comparison(
    samples: Sequence[Sample],
    found: Sequence[tuple[Tensor, Tensor, Tensor]],
    categories: Sequence[Category],
) -> Image.Image:
    """Draw truth and prediction side by side; found: (scores, labels, boxes xyxy in pixels) of each sample."""
    pairs = []
    for sample, (scores, labels, boxes) in zip(samples, found, strict=True):
        image = sample.image  # not read again: boxes may be those of the pixels before an EXIF rotation
        sure = scores >= MIN_SCORE
        truth = _draw(image, sample.boxes, sample.labels, categories)
        pairs.append(compare(truth, _draw(image, boxes[sure], labels[sure], categories, scores[sure])))
    return grid(pairs, columns=min(2, len(pairs)), longest=960)


def draw_segment_comparison(
    samples: Sequence[Sample], found: Sequence[tuple[PanopticSegments, PanopticSegments]]
) -> Image.Image:
    """Draw true and predicted segments side by side, with labels of the same classes, for samples with pixels."""
    pairs = []
    for sample, (truth, prediction) in zip(samples, found, strict=True):
        pairs.append(
            compare(
                draw_panoptic(sample.image, truth, with_scores=False),
                draw_panoptic(sample.image, prediction, with_scores=True),
            )
        )
    return grid(pairs, columns=min(2, len(pairs)), longest=960)


def draw_panoptic(image: Tensor, segments: PanopticSegments, *, with_scores: bool) -> Image.Image:
    """Draw segments over an image (3, H, W) uint8."""
    colors = [class_color(label) for label in segments.labels.tolist()]
    scores = segments.scores.tolist() if with_scores else None
    return draw_segments(image, segments.ids, segments.names, colors, scores)


def _draw(
    image: Tensor, boxes: Tensor, labels: Tensor, categories: Sequence[Category], scores: Tensor | None = None
) -> Image.Image:
    names = [categories[label].name for label in labels.tolist()]
    colors = [class_color(label) for label in labels.tolist()]
    return draw_boxes(image, boxes, names, colors, None if scores is None else scores.tolist())
