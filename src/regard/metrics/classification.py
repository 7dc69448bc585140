"""How good a classifier is: top-1 and top-5, the scores of every class, confusions, calibration."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from regard.errors import DataError, DivergedError, escape
from regard.structures.categories import Category

if TYPE_CHECKING:
    from rich.table import Table

Ints = npt.NDArray[np.int64]

CALIBRATION_BINS = 15  # as in Guo et al. 2017
_CHUNK = 4096  # rows that are held in float64 at once
_MOST_ROWS = 50  # of classes on the screen
_NOT_AVAILABLE = "n/a"
_MORE = {"knn_top1": "nearest neighbours", "linear_top1": "linear probe", "real_top1": "ReaL"}  # titles in the table


class ClassificationScore(NamedTuple):
    """One class. precision, recall and f1 are fractions 0..1; None where nothing can be said.

    images: of this class. predicted: images that were taken for it. correct: both.
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

    @property
    def accuracy(self) -> float | None:
        """Share of the images of this class that are right: another name for its recall."""
        return self.recall


class CalibrationBin(NamedTuple):
    """Images whose best probability lies in one of the equal parts of 0..1 (the upper end is part of it).

    confidence: mean of these probabilities. accuracy: share of the images that are right. None without images.
    """

    images: int
    confidence: float | None
    accuracy: float | None


@dataclass(frozen=True, eq=False)
class ClassificationScores:
    """The result of an evaluation.

    stats: as fractions 0..1 `top1` and `top5` (1 for five classes or fewer), `mean_accuracy` and `f1` (means over the
        classes that have images), `ece` (expected calibration error, 15 bins); `nll`, the mean negative
        log-likelihood in nats. Where it was asked for (`regard.evaluate`) `knn_top1`, `linear_top1` and `real_top1`,
        and `images_per_second`.
    per_class: in the order of the model's labels.
    confusion: (C, C) int64, counts of images, rows truth, columns prediction.
    calibration: 15 bins, from 0 up.
    images: how many there are.
    notes: what one has to know to compare the numbers, a line each.
    """

    stats: dict[str, float]
    per_class: tuple[ClassificationScore, ...]
    confusion: Ints
    calibration: tuple[CalibrationBin, ...]
    images: int
    notes: tuple[str, ...] = ()

    def table(self) -> Table:
        """The scores in percent, for the screen: the means stand last, where they stay in sight."""
        from rich.table import Table
        from rich.text import Text

        table = Table.grid()
        table.add_row(self._class_table())
        table.add_row(self._stats_table())
        absent = sum(not score.images for score in self.per_class)
        if absent:
            note = f"{absent} of {len(self.per_class)} classes have no images and count in no mean"
            table.add_row(f"{_NOT_AVAILABLE}: {note}")
        for note in self.notes:
            table.add_row(Text(escape(note)))
        return table

    def weakest(self) -> list[ClassificationScore]:
        """The classes that have images, lowest F1 first."""
        known = [score for score in self.per_class if score.images]
        return sorted(known, key=lambda score: score.f1 or 0.0)

    def most_confused(self, count: int) -> list[tuple[int, int, int]]:
        """(truth, prediction, images) of the most frequent confusions, labels of classes, most frequent first."""
        wrong = self.confusion - np.diag(np.diag(self.confusion))
        places = np.argsort(-wrong, axis=None, kind="stable")[:count]
        pairs = [divmod(int(place), len(wrong)) for place in places]
        return [(truth, found, int(wrong[truth, found])) for truth, found in pairs if wrong[truth, found]]

    def _class_table(self) -> Table:
        from rich.table import Table
        from rich.text import Text

        everyone = len(self.per_class) <= _MOST_ROWS
        rows = self.per_class if everyone else self.weakest()[:_MOST_ROWS]
        classes = f"{len(rows)} classes" if everyone else f"the weakest {len(rows)} of {len(self.per_class):,} classes"
        title = f"Classification: {self.images:,} images, {classes}"
        table = Table(title=title, title_justify="left")
        table.add_column("class")
        for header in ("images", "accuracy", "precision", "F1"):
            table.add_column(header, justify="right")
        for score in rows:
            # Text, not str: a class may be called "[red]".
            name = Text(escape(score.name))
            numbers = (_percent(value) for value in (score.recall, score.precision, score.f1))
            table.add_row(name, f"{score.images:,}", *numbers)
        table.add_section()
        means = _percent(self.stats["mean_accuracy"]), "", _percent(self.stats["f1"])
        table.add_row("mean of classes", f"{self.images:,}", *means, style="bold")
        return table

    def _stats_table(self) -> Table:
        from rich.table import Table

        table = Table(show_header=False)
        top1, top5, ece = (f"{name} {_percent(self.stats[name])}" for name in ("top1", "top5", "ece"))
        table.add_row(top1, top5, f"nll {self.stats['nll']:.3f}", ece)
        more = [f"{title} {_percent(self.stats[name])}" for name, title in _MORE.items() if name in self.stats]
        if "images_per_second" in self.stats:
            more.append(f"{self.stats['images_per_second']:,.0f} images/s")
        if more:
            table.add_row(*more)
        return table

    def to_dict(self) -> dict[str, Any]:
        """The scores as plain JSON. `confusion` is a list of [truth, prediction, images] without the zeros.

        `classes`: how many there were to choose from.
        """
        truth, found = (place.tolist() for place in self.confusion.nonzero())
        counts = self.confusion[self.confusion > 0].tolist()
        return {
            "stats": self.stats,
            "images": self.images,
            "classes": len(self.per_class),
            "notes": list(self.notes),
            "per_class": [score._asdict() for score in self.per_class],
            "confusion": [list(entry) for entry in zip(truth, found, counts, strict=True)],
            "calibration": [part._asdict() for part in self.calibration],
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ClassificationScores:
        """The scores from what `to_dict` gave."""
        per_class = tuple(ClassificationScore(**score) for score in values["per_class"])
        confusion = np.zeros((len(per_class), len(per_class)), np.int64)
        for truth, found, count in values["confusion"]:
            confusion[truth, found] = count
        calibration = tuple(CalibrationBin(**part) for part in values["calibration"])
        notes = tuple(values.get("notes", ()))
        return cls(values["stats"], per_class, confusion, calibration, values["images"], notes)


def evaluate_classification(logits: Tensor, labels: Tensor, categories: Sequence[Category]) -> ClassificationScores:
    """Compare predictions with the truth.

    Of equal logits the one of the lower label ranks first. Numbers are float64, whatever comes in.

    Args:
        logits: (N, C), of any floating type.
        labels: (N,) integers, index into `categories`.
        categories: the C classes.

    Raises:
        DataError: no images, shapes that do not fit each other, or a label outside of 0..C-1.
        DivergedError: a logit is not finite.
    """
    logits, labels = logits.detach().cpu(), labels.detach().cpu().long()
    _check(logits, labels, categories)
    parts = [_judge(logits[i : i + _CHUNK].double(), labels[i : i + _CHUNK]) for i in range(0, len(labels), _CHUNK)]
    predicted, ranks, confidence, nll = (torch.cat(column) for column in zip(*parts, strict=True))
    correct = ranks == 0
    num_classes = len(categories)
    counts = torch.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    confusion = counts.view(num_classes, num_classes).numpy()
    per_class = tuple(_class_score(category, confusion, label) for label, category in enumerate(categories))
    calibration = _calibration(confidence, correct)
    stats = {
        "top1": correct.double().mean().item(),
        "top5": (ranks < 5).double().mean().item(),
        "mean_accuracy": _mean([score.recall for score in per_class if score.images]),
        "f1": _mean([score.f1 for score in per_class if score.images]),
        "nll": nll.mean().item(),
        "ece": sum(part.images * _gap(part) for part in calibration) / len(labels),
    }
    return ClassificationScores(stats, per_class, confusion, calibration, len(labels))


def _check(logits: Tensor, labels: Tensor, categories: Sequence[Category]) -> None:
    if logits.ndim != 2 or labels.ndim != 1 or len(logits) != len(labels) or logits.shape[1] != len(categories):
        what = f"logits {tuple(logits.shape)}, labels {tuple(labels.shape)} and {len(categories)} categories"
        raise DataError(f"{what}, expected (N, C), (N,) and C")
    if not len(labels):
        raise DataError("no images to judge by")
    wrong = labels[(labels < 0) | (labels >= len(categories))]
    if len(wrong):
        raise DataError(f"label {wrong[0].item()}, expected 0 to {len(categories) - 1}", code="A49")
    if not logits.isfinite().all():
        remedy = "the weights are damaged or their training diverged: use an earlier checkpoint"
        raise DivergedError("a logit is not finite", remedy=remedy)


def _judge(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For every image the predicted label, the rank of the true one from 0, the best probability and the nll."""
    own = logits.gather(1, labels[:, None])
    before = torch.arange(logits.shape[1]) < labels[:, None]
    ranks = ((logits > own) | ((logits == own) & before)).sum(1)
    log_probabilities = logits.log_softmax(1)
    best = logits.max(1, keepdim=True).values
    predicted = (logits == best).int().argmax(1)
    confidence = log_probabilities.max(1).values.exp()
    return predicted, ranks, confidence, -log_probabilities.gather(1, labels[:, None])[:, 0]


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
    places = (confidence * CALIBRATION_BINS).ceil().long().clamp(1, CALIBRATION_BINS) - 1
    count = torch.bincount(places, minlength=CALIBRATION_BINS).tolist()
    sure = torch.bincount(places, confidence, minlength=CALIBRATION_BINS).tolist()
    right = torch.bincount(places, correct.double(), minlength=CALIBRATION_BINS).tolist()
    return tuple(
        CalibrationBin(n, s / n, r / n) if n else CalibrationBin(0, None, None)
        for n, s, r in zip(count, sure, right, strict=True)
    )


def _gap(part: CalibrationBin) -> float:
    return 0.0 if part.confidence is None or part.accuracy is None else abs(part.accuracy - part.confidence)


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known)


def _percent(value: float | None) -> str:
    return _NOT_AVAILABLE if value is None else f"{100 * value:.1f}"
