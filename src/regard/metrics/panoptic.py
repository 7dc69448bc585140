"""Panoptic quality: PQ, SQ and RQ over all classes, over things, over stuff, and per class.

Kirillov et al. 2019, "Panoptic Segmentation", section 4. Segments of one class match where their IoU is above 0.5,
so a segment has at most one match. With TP matches of a class, FP unmatched predictions and FN unmatched segments of
the ground truth,

    PQ = sum of the IoU of the matches / (TP + FP / 2 + FN / 2) = SQ * RQ,
    SQ = sum of the IoU / TP,  RQ = TP / (TP + FP / 2 + FN / 2).

Void and crowds are treated as in panopticapi (evaluation.py); see `PanopticCounts.add`. This is our own code, tested
against hotcoco: it needs no PNG files, and counts of several processes can be added.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from regard.errors import IS, DataError, counted, escape
from regard.metrics.summary import NOT_AVAILABLE, mean, percent
from regard.structures.categories import Category, labels_by_name
from regard.structures.segments import PanopticSegments

if TYPE_CHECKING:
    from rich.table import Table

Floats = npt.NDArray[np.float64]

_GROUPS = {"": "all", "_th": "things", "_st": "stuff"}


class ClassQuality(NamedTuple):
    """Scores of one class: fractions 0..1, or None if absent from truth and predictions; and the counts."""

    name: str
    category_id: int
    is_thing: bool
    pq: float | None
    sq: float | None
    rq: float | None
    tp: int
    fp: int
    fn: int


@dataclass(frozen=True)
class PanopticScores:
    """Panoptic quality on a data set.

    stats: PQ, SQ, RQ, the same with _th over things and with _st over stuff, as fractions 0..1: means over the
        classes that the truth or the predictions have. None if there is no such class.
    per_class: in the order of the category ids.
    images, segments, predictions: numbers of each; `segments` does not count crowds.
    """

    stats: dict[str, float | None]
    per_class: tuple[ClassQuality, ...]
    images: int
    segments: int
    predictions: int

    def table(self) -> Table:
        """Return a table for the terminal, in percent. The means come last, so that they are not scrolled away."""
        from rich.table import Table
        from rich.text import Text

        segments = counted(self.predictions, "predicted segment")
        title = f"Panoptic quality: {counted(self.images, 'image')}, {segments}"
        table = Table(title=title, title_justify="left")
        table.add_column("class")
        for header in ("segments", "PQ", "SQ", "RQ"):
            table.add_column(header, justify="right")
        for score in self.per_class:
            # Text, not str: a class may be called "[red]".
            name = Text(escape(score.name) + ("" if score.is_thing else " (stuff)"))
            table.add_row(name, f"{score.tp + score.fn:,}", *map(percent, (score.pq, score.sq, score.rq)))
        table.add_section()
        for ending, group in _GROUPS.items():
            rows = [score for score in self.per_class if not ending or score.is_thing == (ending == "_th")]
            means = [percent(self.stats[name + ending]) for name in ("PQ", "SQ", "RQ")]
            count = f"{sum(score.tp + score.fn for score in rows):,}"
            table.add_row(group, count, *means, style="bold" if not ending else None)
        absent = sum(score.pq is None for score in self.per_class)
        if absent:
            what = counted(absent, "class", "classes", of=len(self.per_class), verb=IS)
            table.caption = f"{NOT_AVAILABLE}: {what} absent from truth and predictions: left out of means"
            table.caption_justify = "left"
        return table

    def to_dict(self) -> dict[str, Any]:
        """Return the scores as values for JSON."""
        return {**asdict(self), "per_class": [score._asdict() for score in self.per_class]}


class PanopticCounts:
    """Counts over the images added so far, for each of the K categories of the data.

    iou, tp, fp, fn: (K,) float64, the sum of the IoU of matches and the numbers of matches, of unmatched predictions
        and of unmatched segments of the ground truth.
    images, predictions: numbers of images and of predicted segments.
    """

    def __init__(self, categories: Sequence[Category]) -> None:
        self.categories = tuple(categories)
        self.iou, self.tp, self.fp, self.fn = np.zeros((4, len(self.categories)))
        self.images = 0
        self.predictions = 0
        self._labels: dict[tuple[Category, ...], npt.NDArray[np.int64]] = {}

    def add(self, truth: PanopticSegments, prediction: PanopticSegments) -> None:
        """Count one image.

        As in panopticapi, pixels that are void in the truth belong to no union; an unmatched prediction is ignored if
        more than half of it lies in void or in the crowd of its class (of several crowds, the last); crowds are neither
        matched nor missed. Classes are matched by name. Predicted classes that the data do not have are not counted.

        Args:
            truth: with the categories of these counts.
            prediction: segments of the same size, with all classes of the data among its categories.

        Raises:
            DataError: sizes that differ, other categories of the truth, a predicted segment without pixels (A47), which
                panopticapi refuses too; classes that the model does not know (K20).
        """
        if truth.size != prediction.size:
            what = "predicted segments have {1}x{0} pixels, expected {3}x{2}".format(*prediction.size, *truth.size)
            raise DataError(what, remedy="predict segments at the size of the image file", code="A47")
        if truth.categories != self.categories:
            what = f"ground truth with {len(truth.categories)} categories that differ from the {len(self.categories)}"
            remedy = "count data sets of different categories apart"
            raise DataError(f"{what} of earlier images", remedy=remedy, code="A47")
        overlap = _overlap(truth, prediction)
        areas, predicted_areas = overlap.sum(1)[1:], overlap.sum(0)[1:]
        if (predicted_areas == 0).any():
            what = f"predicted segment {int((predicted_areas == 0).argmax()) + 1} has no pixels, expected at least one"
            raise DataError(what, remedy="leave out segments without pixels", code="A47")
        labels, predicted = truth.labels.numpy(), self._labels_of(prediction)
        crowd = np.zeros(len(truth), bool) if truth.is_crowd is None else truth.is_crowd.numpy()
        void = overlap[0, 1:]
        shared = overlap[1:, 1:]
        union = areas[:, None] + predicted_areas - shared - void
        iou = shared / np.maximum(union, 1)  # a segment of the truth may have no pixels
        matches = (iou > 0.5) & (labels[:, None] == predicted) & ~crowd[:, None]
        rows, columns = matches.nonzero()
        np.add.at(self.iou, labels[rows], iou[rows, columns])
        np.add.at(self.tp, labels[rows], 1)
        np.add.at(self.fn, labels[~matches.any(1) & ~crowd], 1)
        crowd_of = np.full(len(self.categories) + 1, -1)  # one more for classes that the data do not have, -1
        crowd_of[labels[crowd]] = np.flatnonzero(crowd)
        row = crowd_of[predicted]
        ignored = void + np.where(row >= 0, shared[row, np.arange(len(predicted))] if len(truth) else 0, 0)
        wrong = ~matches.any(0) & (ignored / predicted_areas <= 0.5) & (predicted >= 0)
        np.add.at(self.fp, predicted[wrong], 1)
        self.images += 1
        self.predictions += len(prediction)

    def merge(self, other: PanopticCounts) -> None:
        """Add the counts of other images, as of another process."""
        for name in ("iou", "tp", "fp", "fn"):
            getattr(self, name).__iadd__(getattr(other, name))
        self.images += other.images
        self.predictions += other.predictions

    @property
    def quality(self) -> float:
        """PQ of all classes together, 0..1; 1 if there is nothing to find and nothing was found."""
        weight = float((self.tp + (self.fp + self.fn) / 2).sum())
        return float(self.iou.sum()) / weight if weight else 1.0

    def scores(self) -> PanopticScores:
        """Return the scores of all images added so far."""
        weight = self.tp + (self.fp + self.fn) / 2
        counted = weight > 0
        sq = self.iou / np.maximum(self.tp, 1)
        rq = self.tp / np.where(counted, weight, 1)
        pq = self.iou / np.where(counted, weight, 1)
        is_thing = np.array([category.is_thing for category in self.categories], bool)
        stats = {
            f"{name}{ending}": mean(values[counted & chosen])
            for ending, chosen in (("", np.ones_like(is_thing)), ("_th", is_thing), ("_st", ~is_thing))
            for name, values in (("PQ", pq), ("SQ", sq), ("RQ", rq))
        }
        per_class = sorted(
            (self._class_quality(k, pq, sq, rq) for k in range(len(self.categories))), key=lambda c: c.category_id
        )
        segments = int((self.tp + self.fn).sum())
        return PanopticScores(stats, tuple(per_class), self.images, segments, self.predictions)

    def _class_quality(self, k: int, *qualities: Floats) -> ClassQuality:
        category = self.categories[k]
        tp, fp, fn = (int(counts[k]) for counts in (self.tp, self.fp, self.fn))
        pq, sq, rq = (float(values[k]) if tp + fp + fn else None for values in qualities)
        return ClassQuality(category.name, category.id, category.is_thing, pq, sq, rq, tp, fp, fn)

    def _labels_of(self, prediction: PanopticSegments) -> npt.NDArray[np.int64]:
        """Return the label in the data (P,) of each predicted segment; -1 for classes that the data do not have."""
        if prediction.categories not in self._labels:
            label_of = labels_by_name(prediction.categories, self.categories, "the truth")
            table = np.full(len(prediction.categories), -1)
            table[label_of] = np.arange(len(label_of))
            self._labels = {prediction.categories: table}
        return self._labels[prediction.categories][prediction.labels.numpy()]


def _overlap(truth: PanopticSegments, prediction: PanopticSegments) -> npt.NDArray[np.int64]:
    """Count the pixels (S + 1, P + 1) that segment i of the truth shares with j of the prediction; 0 is void."""
    columns = len(prediction) + 1
    pairs = truth.ids.numpy() * columns + prediction.ids.numpy()
    return np.bincount(pairs.ravel(), minlength=(len(truth) + 1) * columns).reshape(-1, columns)
