"""Panoptic segments of a detector, counted against the ground truth batch by batch, at one threshold or several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from regard.data.batches.detection import DetectionBatch
from regard.data.coco.panoptic import PanopticDataset
from regard.data.coco.panoptic_writer import PanopticWriter, png_names
from regard.evaluation.detection_pictures import MAX_COMPARISONS
from regard.evaluation.worst_images import WorstSegments, worst_segments
from regard.metrics.panoptic import PanopticCounts
from regard.models.build import MaskedDetector
from regard.models.configs.detr import DETRConfig
from regard.models.configs.retinanet import RetinaNetConfig
from regard.results.postprocess import ImageSizes, panoptic_segments, segment_method, segment_queries, segment_threshold
from regard.structures.outputs import DetectionOutput
from regard.structures.segments import PanopticSegments

# Sigmoid scores of a short training are low, and rise with its length: a training finds its best threshold of these.
THRESHOLDS = (0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5)
MAX_SEARCHED = 500  # images; a set with more is evaluated at one threshold, since each costs time


def thresholds_to_try(config: DETRConfig | RetinaNetConfig, images: int) -> tuple[float, ...]:
    """Return the minimum scores that a training tries: one alone for softmax scores, or if trying takes too long."""
    if config.sigmoid and images <= MAX_SEARCHED:
        return THRESHOLDS
    return (segment_threshold(softmax=not config.sigmoid),)


@dataclass
class SegmentTotals:
    """What was found at one threshold.

    drawn: ground truth and predicted segments of the first images, with labels of the model.
    worst: those of the images of lowest quality.
    is_best: whether the threshold is known to be the best of several: now, or in the training of the model.
    """

    threshold: float
    counts: PanopticCounts
    drawn: list[tuple[PanopticSegments, PanopticSegments]] = field(default_factory=list)
    worst: list[WorstSegments] = field(default_factory=list)
    is_best: bool = False

    def add(self, index: int, truth: PanopticSegments, found: PanopticSegments, image: PanopticCounts) -> None:
        """Add an image, the one at `index` of the data set."""
        self.counts.merge(image)
        if len(self.drawn) < MAX_COMPARISONS:
            self.drawn.append((truth, found))
        worst = WorstSegments(index, truth, found, image.quality, int(image.fn.sum()), int(image.fp.sum()))
        self.worst = worst_segments([*self.worst, worst])


class SegmentCollector:
    """Counts the segments of one process.

    Args:
        net: with a mask head.
        dataset: with the ground truth.
        label_of: label of the model of each category of the data set.
        thresholds: minimum scores of a segment, 0..1, each counted on its own.
        writer: takes the segments of the first threshold.
    """

    def __init__(
        self,
        net: MaskedDetector,
        dataset: PanopticDataset,
        label_of: Sequence[int],
        thresholds: Sequence[float],
        writer: PanopticWriter | None = None,
    ) -> None:
        self.net = net
        self.softmax = not net.config.sigmoid
        self.method = segment_method("auto", softmax=self.softmax)
        self.dataset = dataset
        self.categories = net.card.categories
        self.label_of = label_of
        self.data_label_of = {label: own for own, label in enumerate(label_of)}
        self.writer = writer
        self.totals = [SegmentTotals(threshold, PanopticCounts(dataset.categories)) for threshold in thresholds]
        self.known = net.card.threshold
        self.default = segment_threshold(softmax=self.softmax)
        self.names = png_names(dataset.annotations.images)
        self.index_of = {image_id: index for index, image_id in enumerate(dataset.image_ids)}

    def add(self, output: DetectionOutput, batch: DetectionBatch) -> None:
        """Take the predictions for a batch. Masks are computed once for all thresholds."""
        lowest = min(total.threshold for total in self.totals)
        queries = segment_queries(output, softmax=self.softmax, threshold=lowest)
        logits = self.net.masks(output, queries.image, queries.query)
        for number, (sample, sizes) in enumerate(zip(batch.samples, sizes_of(batch), strict=True)):
            index = self.index_of[sample.image_id]
            truth = self.dataset.segments(index)
            labels = torch.tensor([self.label_of[label] for label in truth.labels.tolist()], dtype=torch.int64)
            as_model = replace(truth, labels=labels, categories=self.categories)
            rows = queries.rows(number)
            for total in self.totals:
                kept = rows[queries.scores[rows] > total.threshold]
                scores, labels = queries.scores[kept], queries.labels[kept]
                found = panoptic_segments(scores, labels, logits[kept], sizes, self.categories, self.method)
                counts = PanopticCounts(self.dataset.categories)
                counts.add(truth, found)
                total.add(index, as_model, found, counts)
                if self.writer is not None and total is self.totals[0]:
                    translated = found.translated(self.dataset.categories, self.data_label_of)
                    self.writer.add(self.dataset.annotations.images[index], translated, self.names[index])

    def best(self, parts: Sequence[Sequence[SegmentTotals]]) -> SegmentTotals:
        """Return what all processes found at the threshold of the highest PQ; the higher one of equals.

        If nothing is right at any, none is best: those of the default threshold are returned, or of the nearest to it.
        """
        merged = []
        for same in zip(*parts, strict=True):
            total = SegmentTotals(same[0].threshold, same[0].counts, same[0].drawn)
            for other in same[1:]:
                total.counts.merge(other.counts)
            total.worst = worst_segments([image for part in same for image in part.worst])
            merged.append(total)
        if not any(total.counts.tp.any() for total in merged):
            return min(merged, key=lambda total: abs(total.threshold - self.default))
        best = max(merged, key=lambda total: (total.counts.scores().stats["PQ"] or 0.0, total.threshold))
        best.is_best = len(merged) > 1 or best.threshold == self.known
        return best


def sizes_of(batch: DetectionBatch) -> list[ImageSizes]:
    """Return the sizes of each image of a batch: with padding, resized and original."""
    padded = batch.images.pixels.shape[-2], batch.images.pixels.shape[-1]
    pairs = zip(batch.images.sizes, batch.samples, strict=True)
    return [ImageSizes(padded, resized, sample.original_size) for resized, sample in pairs]
