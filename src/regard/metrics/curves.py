"""Precision and recall of a detector as curves, and its confusion matrix."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from regard.metrics.detection import Bools, CocoColumns, CocoDetections, Floats, Ints, import_hotcoco


@dataclass(frozen=True)
class DetectionCurves:
    """Precision and recall as fractions 0..1; NaN where undefined.

    names: names of the K classes, in the order of their category ids.
    recall: (101,), COCO's recall points.
    class_precision: (K, 101) at IoU 0.50.
    mean_precision: (101,) over classes, at the IoU thresholds "0.50", "0.75" and "0.50:0.95"; the means of these
        curves are AP50, AP75 and AP.
    thresholds: (201,) score thresholds from 0 to 1.
    threshold_precision, threshold_recall: (201,) at IoU 0.50, of all detections with at least that score, all classes
        together.
    best: the score threshold with the highest F1 at IoU 0.50, of all classes together, and that F1, both 0..1. The
        threshold lies midway between the lowest score that is kept and the next one. None if no detection is right.
    """

    names: tuple[str, ...]
    recall: Floats
    class_precision: Floats
    mean_precision: dict[str, Floats]
    thresholds: Floats
    threshold_precision: Floats
    threshold_recall: Floats
    best: tuple[float, float] | None

    @property
    def f1(self) -> Floats:
        """(201,) harmonic mean of `threshold_precision` and `threshold_recall`; NaN where one is undefined."""
        both = self.threshold_precision + self.threshold_recall
        f1 = np.divide(
            2 * self.threshold_precision * self.threshold_recall, both, out=np.zeros_like(both), where=both > 0
        )
        return np.where(np.isnan(both), np.nan, f1)


class ImageCounts(NamedTuple):
    """One image: objects that were found and missed, and detections that match none."""

    image_id: int
    found: int
    missed: int
    false: int

    @property
    def f1(self) -> float:
        """Return F1, 0..1; 1 for an image with neither objects nor detections."""
        total = 2 * self.found + self.missed + self.false
        return 2 * self.found / total if total else 1.0


def detection_curves(ground_truth: dict[str, Any], detections: CocoDetections) -> DetectionCurves:
    """Compute precision against recall, and both against the score threshold.

    Args:
        ground_truth, detections: as for `evaluate_detections`.

    Raises:
        DataError, MachineError: as for `evaluate_detections`.
    """
    columns = CocoColumns.build(ground_truth, detections)
    precision = columns.evaluator().eval["precision"][:, :, :, 0, -1]  # (IoU thresholds, recall points, K)
    precision = np.where(precision < 0, np.nan, precision)
    mean = np.full(precision.shape[:2], np.nan)
    known = ~np.isnan(precision[0, 0])
    if known.any():
        mean = precision[:, :, known].mean(axis=2)
    thresholds = np.linspace(0, 1, 201)
    scores, correct = _judged(columns)
    objects = int((~columns.truth_crowd).sum())
    threshold_precision, threshold_recall = _against_score(scores, correct, objects, thresholds)
    return DetectionCurves(
        names=columns.names,
        recall=np.linspace(0, 1, 101),
        class_precision=precision[0].T,
        mean_precision={"0.50": mean[0], "0.75": mean[5], "0.50:0.95": mean.mean(axis=0)},
        thresholds=thresholds,
        threshold_precision=threshold_precision,
        threshold_recall=threshold_recall,
        best=_best_threshold(scores, correct, objects),
    )


def _best_threshold(scores: Floats, correct: Floats, objects: int) -> tuple[float, float] | None:
    """Return `DetectionCurves.best` for M detections: scores (M,), whether each is right (M,), number of objects."""
    if not correct.any():
        return None
    order = np.argsort(-scores, kind="stable")
    scores, hits = scores[order], np.cumsum(correct[order])
    f1 = 2 * hits / (np.arange(1, len(hits) + 1) + objects)
    following = np.append(scores[1:], 0.0)
    best = int(np.where(scores > following, f1, -1.0).argmax())  # a threshold cannot part equal scores
    return float(scores[best] + following[best]) / 2, float(f1[best])


def _judged(columns: CocoColumns) -> tuple[Floats, Floats]:
    """Return scores (M,) of the detections that count, those on crowds left out, and whether each is right (M,)."""
    correct = np.zeros(len(columns.scores))
    counts = np.ones(len(columns.scores), bool)
    for detected, truth, overlap in _per_image(columns, np.arange(len(columns.scores))):
        matched, counts[detected] = _match_same_class(columns, detected, truth, overlap, 0.5)
        correct[detected] = matched >= 0
    return columns.scores[counts], correct[counts]


def _against_score(scores: Floats, correct: Floats, objects: int, thresholds: Floats) -> tuple[Floats, Floats]:
    """Return precision and recall (S,) of detections that score at least `thresholds` (S,), at IoU 0.50."""
    order = np.argsort(scores)
    first = np.searchsorted(scores[order], thresholds)
    counted = (len(order) - first).astype(np.float64)
    hits = np.append(np.cumsum(correct[order][::-1])[::-1], 0)[first]
    undefined = np.full(len(thresholds), np.nan)
    precision = np.divide(hits, counted, out=undefined.copy(), where=counted > 0)
    return precision, hits / objects if objects else undefined


def count_per_image(
    ground_truth: dict[str, Any], detections: CocoDetections, *, iou_threshold: float = 0.5, score_threshold: float
) -> list[ImageCounts]:
    """Count right and wrong detections of each image, matched within their class as for AP.

    Args:
        ground_truth, detections: as for `evaluate_detections`.
        iou_threshold: minimum IoU of a match, 0..1.
        score_threshold: minimum score of a detection, 0..1.

    Returns:
        One row per image, in the order of the image ids.

    Raises:
        DataError, MachineError: as for `evaluate_detections`.
    """
    columns = CocoColumns.build(ground_truth, detections)
    rows = []
    kept = np.flatnonzero(columns.scores >= score_threshold)
    for image_id, (detected, truth, overlap) in zip(columns.image_ids, _per_image(columns, kept), strict=True):
        matched, counts = _match_same_class(columns, detected, truth, overlap, iou_threshold)
        found = int((matched >= 0).sum())
        objects = int((~columns.truth_crowd[truth]).sum())
        rows.append(ImageCounts(int(image_id), found, objects - found, int(counts.sum()) - found))
    return rows


def confusion_matrix(
    ground_truth: dict[str, Any],
    detections: CocoDetections,
    *,
    iou_threshold: float = 0.5,
    score_threshold: float = 0.25,
) -> Ints:
    """Count objects by true and predicted class.

    Objects are first matched with detections of their own class, highest score first, as for AP: the diagonal holds
    AP's true positives at that score threshold. The others are then matched across classes. Detections on a crowd of
    their class are ignored. hotcoco's matrix matches regardless of class from the start.

    Args:
        ground_truth, detections: as for `evaluate_detections`.
        iou_threshold: minimum IoU of a match, 0..1.
        score_threshold: minimum score of a detection, 0..1.

    Returns:
        (K+1, K+1) int64, rows truth, columns prediction, in the order of the category ids, background last: missed
        objects in the last column, false positives in the last row.

    Raises:
        DataError, MachineError: as for `evaluate_detections`.
    """
    columns = CocoColumns.build(ground_truth, detections)
    background = len(columns.names)
    matrix = np.zeros((background + 1, background + 1), np.int64)
    for detected, truth, overlap in _per_image(columns, np.flatnonzero(columns.scores >= score_threshold)):
        matched, counts = _match_same_class(columns, detected, truth, overlap, iou_threshold)
        missed = ~columns.truth_crowd[truth]
        missed[matched[matched >= 0]] = False
        unmatched = (matched < 0) & counts
        others = _greedy(np.where(unmatched[:, None] & missed, overlap, 0), iou_threshold)
        matched = np.where(unmatched, others, matched)
        missed[matched[matched >= 0]] = False
        hit = matched >= 0
        predicted, actual = columns.classes[detected], columns.truth_classes[truth]
        np.add.at(matrix, (actual[matched[hit]], predicted[hit]), 1)
        matrix[:, background] += np.bincount(actual[missed], minlength=background + 1)
        matrix[background] += np.bincount(predicted[~hit & counts], minlength=background + 1)
    return matrix


def _per_image(columns: CocoColumns, kept: Ints) -> Iterator[tuple[Ints, Ints, Floats]]:
    """Yield per image its detections among `kept` (D,), highest score first, its objects (G,) and IoU (D, G)."""
    bbox_iou = import_hotcoco().mask.bbox_iou
    kept = kept[np.lexsort((-columns.scores[kept], columns.images[kept]))]
    objects = np.argsort(columns.truth_images, kind="stable")
    borders = np.arange(1, len(columns.image_ids))
    per_image = zip(
        np.split(kept, np.searchsorted(columns.images[kept], borders)),
        np.split(objects, np.searchsorted(columns.truth_images[objects], borders)),
        strict=True,
    )
    for detected, truth in per_image:
        overlap = np.zeros((len(detected), len(truth)))
        if overlap.size:
            boxes, crowd = columns.truth_boxes_xywh[truth], columns.truth_crowd[truth]
            overlap = bbox_iou(columns.boxes_xywh[detected], boxes, crowd)
        yield detected, truth, overlap


def _match_same_class(
    columns: CocoColumns, detected: Ints, truth: Ints, overlap: Floats, threshold: float
) -> tuple[Ints, Bools]:
    """Return for each detection the index in `truth` of its object of the same class or -1, and whether it counts."""
    same = columns.classes[detected][:, None] == columns.truth_classes[truth]
    crowd = columns.truth_crowd[truth]
    matched = _greedy(np.where(same & ~crowd, overlap, 0), threshold)
    on_crowd = ((overlap >= threshold) & same & crowd).any(axis=1)
    return matched, (matched >= 0) | ~on_crowd


def _greedy(overlap: Floats, threshold: float) -> Ints:
    """Assign each row in turn the free column of largest overlap, or -1 if none reaches `threshold`."""
    matched = np.full(len(overlap), -1, np.int64)
    for row in np.flatnonzero((overlap >= threshold).any(axis=1)):
        column = overlap[row].argmax()
        if overlap[row, column] >= threshold:
            matched[row] = column
            overlap[:, column] = 0
    return matched
