"""Scores of a classifier: accuracy, scores per class, confusion matrix, calibration; checks of logits and labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from regard.errors import HAS, DataError, DivergedError, counted, escape
from regard.metrics.summary import NOT_AVAILABLE, percent
from regard.structures.categories import Category

if TYPE_CHECKING:
    from rich.table import Table

Ints = npt.NDArray[np.int64]

CALIBRATION_BINS = 15  # as in Guo et al. 2017
_CHUNK = 4096  # rows converted to float64 at once
_MAX_ROWS = 50  # classes in the table
_EXTRA_STATS = {
    "knn_top1": "nearest neighbours",
    "linear_top1": "linear probe",
    "real_top1": "ReaL",
}  # titles in the table


class ClassificationScore(NamedTuple):
    """Scores of one class; precision, recall and f1 are fractions 0..1, or None if undefined.

    images: images of this class. predicted: images predicted as this class. correct: both.
    precision: correct / predicted. recall: correct / images. f1: 2 correct / (images + predicted).
    """

    name: str
    category_id: int
    images: int
    predicted: int
    correct: int
    precision: float | None
    recall: float | None
    f1: float | None


class CalibrationBin(NamedTuple):
    """The images whose highest probability lies in one of 15 equal parts of 0..1, upper end included.

    confidence: mean of these probabilities. accuracy: share of correct predictions. Both are None without images.
    """

    images: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True, eq=False)
class ClassificationScores:
    """Scores of a classifier on a data set.

    stats: as fractions 0..1 `top1`, `top5` (with more than five classes), `mean_accuracy` and `f1` (means over the
        classes that have images), `ece` (expected calibration error, 15 bins, Guo et al. 2017, eq. 3); `nll`, the mean
        negative log-likelihood in nats. With the options of `evaluate` for them also `knn_top1`, `linear_top1` and
        `real_top1` (fractions) and `images_per_second`.
    per_class: in the order of the model's labels.
    confusion: (C, C) int64, counts of images, rows truth, columns prediction.
    calibration: 15 bins, from 0 up.
    images: number of images.
    notes: notes for the user on how the scores were computed, one line each.
    """

    stats: dict[str, float]
    per_class: tuple[ClassificationScore, ...]
    confusion: Ints
    calibration: tuple[CalibrationBin, ...]
    images: int
    notes: tuple[str, ...] = ()

    def table(self) -> Table:
        """Return a table for the terminal, in percent. The means come last, so that they are not scrolled away."""
        from rich.table import Table
        from rich.text import Text

        table = Table.grid()
        table.add_row(self._class_table())
        table.add_row(self._stats_table())
        absent = sum(not score.images for score in self.per_class)
        if absent:
            note = (
                f"{counted(absent, 'class', 'classes', of=len(self.per_class), verb=HAS)} no images: left out of means"
            )
            table.add_row(f"{NOT_AVAILABLE}: {note}")
        for note in self.notes:
            table.add_row(Text(escape(note)))
        return table

    def weakest(self) -> list[ClassificationScore]:
        """Return the classes that have images, lowest F1 first."""
        known = [score for score in self.per_class if score.images]
        return sorted(known, key=lambda score: score.f1 or 0.0)

    def most_confused(self, count: int) -> list[tuple[int, int, int]]:
        """Return (true label, predicted label, images) of the `count` most frequent confusions, in falling order."""
        wrong = self.confusion - np.diag(np.diag(self.confusion))
        cells = np.argsort(-wrong, axis=None, kind="stable")[:count]
        pairs = [divmod(int(cell), len(wrong)) for cell in cells]
        return [(true, predicted, int(wrong[true, predicted])) for true, predicted in pairs if wrong[true, predicted]]

    def _class_table(self) -> Table:
        from rich.table import Table
        from rich.text import Text

        complete = len(self.per_class) <= _MAX_ROWS
        rows = self.per_class if complete else self.weakest()[:_MAX_ROWS]
        some = f"the weakest {len(rows)} of {len(self.per_class):,} classes"
        classes = counted(len(rows), "class", "classes") if complete else some
        title = f"Classification: {counted(self.images, 'image')}, {classes}"
        table = Table(title=title, title_justify="left")
        table.add_column("class")
        for header in ("images", "accuracy", "precision", "F1"):
            table.add_column(header, justify="right")
        for score in rows:
            # Text, not str: a class may be called "[red]".
            name = Text(escape(score.name))
            numbers = (percent(value) for value in (score.recall, score.precision, score.f1))
            table.add_row(name, f"{score.images:,}", *numbers)
        table.add_section()
        means = percent(self.stats["mean_accuracy"]), "", percent(self.stats["f1"])
        table.add_row("mean of classes", f"{self.images:,}", *means, style="bold")
        return table

    def _stats_table(self) -> Table:
        from rich.table import Table

        table = Table(show_header=False)
        accuracy = [f"{name} {percent(self.stats[name])}" for name in ("top1", "top5") if name in self.stats]
        table.add_row(*accuracy, f"nll {self.stats['nll']:.3f}", f"ece {percent(self.stats['ece'])}")
        more = [f"{title} {percent(self.stats[name])}" for name, title in _EXTRA_STATS.items() if name in self.stats]
        if "images_per_second" in self.stats:
            speed = self.stats["images_per_second"] or 0.0
            more.append(f"{speed:,.0f} images/s" if speed >= 1 else f"{1 / max(speed, 1e-9):,.1f} s/image")
        if more:
            table.add_row(*more)
        return table

    def to_dict(self) -> dict[str, Any]:
        """Return the scores as values for JSON; `confusion` as [true label, predicted label, images] without zeros."""
        true, predicted = (labels.tolist() for labels in self.confusion.nonzero())
        counts = self.confusion[self.confusion > 0].tolist()
        return {
            "stats": self.stats,
            "images": self.images,
            "classes": len(self.per_class),
            "notes": list(self.notes),
            "per_class": [score._asdict() for score in self.per_class],
            "confusion": [list(entry) for entry in zip(true, predicted, counts, strict=True)],
            "calibration": [bin._asdict() for bin in self.calibration],
        }


def evaluate_classification(logits: Tensor, labels: Tensor, categories: Sequence[Category]) -> ClassificationScores:
    """Compute the scores of logits, in float64. Of equal logits the lower label ranks first.

    Args:
        logits: (N, C), any floating type.
        labels: (N,) integers, index into `categories`.
        categories: the C classes.

    Returns:
        The scores; `stats` without those that need options of `evaluate`.

    Raises:
        DataError: no images, shapes that do not match, or a label outside 0..C-1 (A49).
        DivergedError: a logit is not finite.
    """
    logits, labels = logits.detach().cpu(), labels.detach().cpu().long()
    _check(logits, labels, categories)
    parts = [_rank(logits[i : i + _CHUNK].double(), labels[i : i + _CHUNK]) for i in range(0, len(labels), _CHUNK)]
    predicted, ranks, confidence, nll = (torch.cat(column) for column in zip(*parts, strict=True))
    correct = ranks == 0
    num_classes = len(categories)
    counts = torch.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    confusion = counts.view(num_classes, num_classes).numpy()
    per_class = tuple(_class_score(category, confusion, label) for label, category in enumerate(categories))
    calibration = _calibration(confidence, correct)
    stats = {
        "top1": correct.double().mean().item(),
        # Among the first five of five classes is every class.
        **({"top5": (ranks < 5).double().mean().item()} if num_classes > 5 else {}),
        "mean_accuracy": fmean(score.recall for score in per_class if score.recall is not None),
        "f1": fmean(score.f1 for score in per_class if score.images and score.f1 is not None),
        "nll": nll.mean().item(),
        "ece": sum(bin.images * _gap(bin) for bin in calibration) / len(labels),
    }
    return ClassificationScores(stats, per_class, confusion, calibration, len(labels))


def best_label(logits: Tensor) -> Tensor:
    """Return the label (N,) of the highest of logits (N, C); of equal ones the lowest, on every device."""
    return (logits == logits.max(dim=1, keepdim=True).values).int().argmax(dim=1)


def check_labels(labels: Tensor, num_classes: int) -> None:
    """Check integer labels (N,).

    Raises:
        DataError: a label is outside 0..num_classes - 1 (A49).
    """
    wrong = labels[(labels < 0) | (labels >= num_classes)]
    if len(wrong):
        remedy = "number the classes from 0 in the order of the model's categories"
        raise DataError(f"label {wrong[0].item()}, expected 0 to {num_classes - 1}", remedy=remedy, code="A49")


def check_finite(values: Tensor, kind: str) -> None:
    """Check the output of a network; `kind` names one value of it in the message.

    Raises:
        DivergedError: a value is NaN or infinite.
    """
    if not values.isfinite().all():
        remedy = "the weights are damaged or their training diverged: use an earlier checkpoint"
        raise DivergedError(f"a {kind} is not finite", remedy=remedy)


def _check(logits: Tensor, labels: Tensor, categories: Sequence[Category]) -> None:
    if logits.ndim != 2 or labels.ndim != 1 or len(logits) != len(labels) or logits.shape[1] != len(categories):
        what = f"logits {tuple(logits.shape)}, labels {tuple(labels.shape)} and {len(categories)} categories"
        raise DataError(f"{what}, expected (N, C), (N,) and C")
    if not len(labels):
        raise DataError("no images to evaluate", remedy="pass the logits and labels of at least one image")
    check_labels(labels, len(categories))
    check_finite(logits, "logit")


def _rank(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return predicted label, rank of the true label from 0, highest probability and nll of each image, all (N,)."""
    target = logits.gather(1, labels[:, None])
    before = torch.arange(logits.shape[1]) < labels[:, None]
    ranks = ((logits > target) | ((logits == target) & before)).sum(1)
    log_probabilities = logits.log_softmax(1)
    confidence = log_probabilities.max(1).values.exp()
    return best_label(logits), ranks, confidence, -log_probabilities.gather(1, labels[:, None])[:, 0]


def _class_score(category: Category, confusion: Ints, label: int) -> ClassificationScore:
    correct, images, predicted = (
        int(count) for count in (confusion[label, label], confusion[label].sum(), confusion[:, label].sum())
    )
    return ClassificationScore(
        name=category.name,
        category_id=category.id,
        images=images,
        predicted=predicted,
        correct=correct,
        precision=correct / predicted if predicted else None,
        recall=correct / images if images else None,
        f1=2 * correct / (images + predicted) if images + predicted else None,
    )


def _calibration(confidence: Tensor, correct: Tensor) -> tuple[CalibrationBin, ...]:
    """Return the bins (15) of the highest probability (N,) of each image and whether its prediction is correct (N,)."""
    bins = (confidence * CALIBRATION_BINS).ceil().long().clamp(1, CALIBRATION_BINS) - 1
    counts = torch.bincount(bins, minlength=CALIBRATION_BINS).tolist()
    confidences = torch.bincount(bins, confidence, minlength=CALIBRATION_BINS).tolist()
    hits = torch.bincount(bins, correct.double(), minlength=CALIBRATION_BINS).tolist()
    return tuple(
        CalibrationBin(n, total / n, right / n) if n else CalibrationBin(0, None, None)
        for n, total, right in zip(counts, confidences, hits, strict=True)
    )


def _gap(bin: CalibrationBin) -> float:
    return 0.0 if bin.confidence is None or bin.accuracy is None else abs(bin.accuracy - bin.confidence)
