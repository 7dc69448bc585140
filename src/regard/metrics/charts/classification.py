"""Charts of a classifier's scores: confusion matrix, calibration, accuracy per class; and of its data set.

`style` holds their common look.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from regard.metrics.charts import style
from regard.metrics.charts.confusion_matrix import draw_confusion_matrix
from regard.metrics.charts.style import BLUE, GREY, INK, ORANGE
from regard.metrics.classification import CALIBRATION_BINS, ClassificationScores

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MAX_BARS = 60  # rows of names in a chart
_NAMED = 30  # rows if there are more classes than that, and pairs of classes


def plot_classification(scores: ClassificationScores, folder: str | Path) -> list[Path]:
    """Save confusion_matrix.png, most_confused.png, calibration.png and class_accuracy.png into `folder`.

    Returns their paths. most_confused.png is left out if every image is right.

    Raises:
        MachineError: matplotlib is not installed.
    """
    names = [score.name for score in scores.per_class]
    top1, images = scores.stats["top1"], scores.images
    title = f"Confusions: {top1:.1%} of {images:,} images are right"
    drawn = {
        "confusion_matrix.png": draw_confusion_matrix(scores.confusion, names, title),
        "calibration.png": _draw_calibration(scores),
        "class_accuracy.png": _draw_class_accuracy(scores),
    }
    pairs = scores.most_confused(_NAMED)
    if pairs:
        drawn["most_confused.png"] = _draw_most_confused(pairs, names)
    return [style.save(figure, Path(folder) / name) for name, figure in drawn.items()]


def plot_class_counts(train: Sequence[int], val: Sequence[int], names: Sequence[str], folder: str | Path) -> Path:
    """Save dataset.png: the number of training and validation images of each class."""
    order = np.argsort(-np.asarray(train), kind="stable")
    shown = order if len(order) <= _MAX_BARS else np.concatenate((order[: _NAMED // 2], order[-_NAMED // 2 :]))
    figure = style.figure(9, _height(len(shown)))
    axes = figure.subplots()
    places = np.arange(len(shown))
    axes.barh(places - 0.19, [train[k] for k in shown], height=0.38, color=BLUE, label="training")
    axes.barh(places + 0.19, [val[k] for k in shown], height=0.38, color=ORANGE, label="validation")
    axes.set_xlabel("images")
    classes = f"{len(names):,} classes" + ("" if len(shown) == len(names) else ", the largest and the smallest named")
    axes.set_title(f"{sum(train):,} training and {sum(val):,} validation images, {classes}")
    _name_rows(axes, [names[k] for k in shown])
    style.legend(axes)
    return style.save(figure, Path(folder) / "dataset.png")


def _draw_calibration(scores: ClassificationScores) -> Figure:
    """Draw the reliability diagram of Guo et al. 2017 and the share of images in each bin."""
    figure = style.figure(5.8, 6.6)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    width = 1 / CALIBRATION_BINS
    middles = (np.arange(CALIBRATION_BINS) + 0.5) * width
    known = [i for i, part in enumerate(scores.calibration) if part.images]
    accuracy = [scores.calibration[i].accuracy or 0.0 for i in known]
    confidence = [scores.calibration[i].confidence or 0.0 for i in known]
    upper.bar(middles[known], accuracy, width * 0.92, color=BLUE, label="accuracy")
    upper.plot([0, 1], [0, 1], color=GREY, linewidth=1.2, linestyle="--", label="as sure as right")
    upper.plot(confidence, accuracy, "o", color=ORANGE, markeredgecolor="white", markersize=7, label="mean confidence")
    right, sure = scores.stats["top1"], _mean_confidence(scores)
    word = "as sure as right" if abs(sure - right) < 0.005 else "too sure" if sure > right else "not sure enough"
    upper.set_title(f"Calibration: {word}, expected error {scores.stats['ece']:.1%}")
    style.unit_square(upper, "", "accuracy")
    style.legend(upper)
    lower.bar(middles, [part.images / scores.images for part in scores.calibration], width * 0.92, color=GREY)
    for value, color, name in ((right, BLUE, "accuracy"), (sure, ORANGE, "mean confidence")):
        lower.axvline(value, color=color, linewidth=2, label=f"{name} {value:.1%}")
    lower.set(xlim=(0, 1.005), xlabel="confidence: the probability of the predicted class", ylabel="share of images")
    style.apply(lower)
    style.legend(lower)
    return figure


def _mean_confidence(scores: ClassificationScores) -> float:
    return sum(part.images * (part.confidence or 0.0) for part in scores.calibration) / scores.images


def _draw_class_accuracy(scores: ClassificationScores) -> Figure:
    """Draw bars for all classes, or a curve of all and bars for the weakest if there are many."""
    known = [score for score in scores.per_class if score.images]
    ranking = sorted(known, key=lambda score: score.recall or 0.0)
    values = [score.recall or 0.0 for score in ranking]
    shown = ranking if len(ranking) <= _MAX_BARS else ranking[:_NAMED]
    several = len(shown) < len(ranking)
    figure = style.figure(12 if several else 7.5, _height(len(shown)))
    panels = figure.subplots(1, 2 if several else 1, squeeze=False)[0]
    mean = scores.stats["mean_accuracy"]
    if several:
        places = np.arange(1, len(values) + 1)
        panels[0].fill_between(places, values, color=BLUE, alpha=0.25, linewidth=0)
        panels[0].plot(places, values, color=BLUE, linewidth=2)
        panels[0].axhline(mean, color=GREY, linestyle="--", linewidth=1.2, label=f"mean {style.two(mean)}")
        panels[0].set(xlim=(1, len(values)), ylim=(0, 1.02), xlabel="classes, the weakest first", ylabel="accuracy")
        panels[0].set_title(f"Accuracy of {len(values):,} classes")
        style.apply(panels[0])
        style.legend(panels[0])
    bars = panels[-1]
    bars.barh(range(len(shown)), values[: len(shown)], color=BLUE, height=0.7)
    for place, score in enumerate(shown):
        _write_value(bars, score.recall or 0.0, place, f"{score.recall:.2f}  {score.correct:,}/{score.images:,}")
    bars.axvline(mean, color=GREY, linestyle="--", linewidth=1.2)
    bars.set(xlim=(0, 1.25), xlabel="accuracy")
    bars.set_xticks(np.linspace(0, 1, 6))
    absent = len(scores.per_class) - len(known)
    hidden = f" ({absent} without images left out)" if absent else ""
    bars.set_title(f"The {len(shown)} weakest classes" if several else f"Accuracy of each class{hidden}")
    _name_rows(bars, [score.name for score in shown])
    return figure


def _draw_most_confused(pairs: Sequence[tuple[int, int, int]], names: Sequence[str]) -> Figure:
    figure = style.figure(8.5, _height(len(pairs)))
    axes = figure.subplots()
    counts = [count for _, _, count in pairs]
    axes.barh(range(len(pairs)), counts, color=ORANGE, height=0.7)
    for place, count in enumerate(counts):
        _write_value(axes, count, place, f"{count:,}")
    axes.set_xlim(0, counts[0] * 1.12)
    axes.set_title("The most frequent confusions, truth → prediction")
    axes.set_xlabel("images")
    _name_rows(
        axes, [f"{style.short_name(names[truth])} → {style.short_name(names[found])}" for truth, found, _ in pairs]
    )
    return figure


def _name_rows(axes: Axes, names: Sequence[str]) -> None:
    """Write names next to bars, the first on top, after everything is drawn."""
    fontsize = 9 if len(names) <= 40 else 7
    labels = [name if " → " in name else style.short_name(name) for name in names]
    style.apply(axes)
    axes.set_yticks(range(len(names)), labels, fontsize=fontsize)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)


def _write_value(axes: Axes, value: float, place: int, text: str) -> None:
    axes.annotate(text, (value, place), (3, 0), textcoords="offset points", va="center", fontsize=8, color=INK)


def _height(rows: int) -> float:
    """Return the height in inches of a chart with this number of named rows."""
    return max(3.2, 1.4 + 0.2 * rows)
