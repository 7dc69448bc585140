"""Charts of a classifier: confusion matrix, calibration, accuracy per class; and of the classes of its data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from regard.errors import counted
from regard.metrics.charts import style
from regard.metrics.charts.confusion_matrix import draw_confusion_matrix
from regard.metrics.charts.style import BLUE, GREY, INK, ORANGE
from regard.metrics.classification import CALIBRATION_BINS, ClassificationScores

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MAX_BARS = 60  # classes in a chart of bars
_NUM_EXTREMES = 30  # bars if there are more classes; pairs of confused classes


def plot_classification(scores: ClassificationScores, folder: str | Path) -> list[Path]:
    """Save confusion_matrix.png, calibration.png, class_accuracy.png and most_confused.png into `folder`.

    Returns:
        Paths of the files. There is no most_confused.png if every prediction is correct.

    Raises:
        MachineError: matplotlib is not installed.
    """
    names = [score.name for score in scores.per_class]
    top1, images = scores.stats["top1"], scores.images
    title = f"Confusions: {top1:.1%} of {counted(images, 'image')} right"
    figures = {
        "confusion_matrix.png": draw_confusion_matrix(scores.confusion, names, title),
        "calibration.png": _draw_calibration(scores),
        "class_accuracy.png": _draw_class_accuracy(scores),
    }
    pairs = scores.most_confused(_NUM_EXTREMES)
    if pairs:
        figures["most_confused.png"] = _draw_most_confused(pairs, names)
    return [style.save(figure, Path(folder) / name) for name, figure in figures.items()]


def plot_class_counts(train: Sequence[int], val: Sequence[int], names: Sequence[str], folder: str | Path) -> Path:
    """Save dataset.png: the number of training and validation images of each class.

    Args:
        train, val: images of each of C classes.
        names: names of the C classes.
        folder: is created.

    Returns:
        Path of the file.

    Raises:
        MachineError: matplotlib is not installed.
    """
    labels = np.argsort(-np.asarray(train), kind="stable")
    if len(labels) > _MAX_BARS:
        labels = np.concatenate((labels[: _NUM_EXTREMES // 2], labels[-_NUM_EXTREMES // 2 :]))
    figure = style.figure(9, _height(len(labels)))
    axes = figure.subplots()
    rows = np.arange(len(labels))
    axes.barh(rows - 0.19, [train[k] for k in labels], height=0.38, color=BLUE, label="training")
    axes.barh(rows + 0.19, [val[k] for k in labels], height=0.38, color=ORANGE, label="validation")
    axes.set_xlabel("images")
    some = "" if len(labels) == len(names) else ", the largest and the smallest named"
    images = f"{sum(train):,} training and {counted(sum(val), 'validation image')}"
    axes.set_title(f"{images}, {counted(len(names), 'class', 'classes')}{some}")
    _name_rows(axes, [names[k] for k in labels])
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=9, labelcolor=INK, frameon=False)
    return style.save(figure, Path(folder) / "dataset.png")


def _draw_calibration(scores: ClassificationScores) -> Figure:
    """Draw the reliability diagram (Guo et al. 2017, fig. 1) and the share of images in each bin."""
    figure = style.figure(5.8, 6.6)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    width = 1 / CALIBRATION_BINS
    centers = (np.arange(CALIBRATION_BINS) + 0.5) * width
    known = [i for i, bin in enumerate(scores.calibration) if bin.images]
    accuracy = [scores.calibration[i].accuracy or 0.0 for i in known]
    confidence = [scores.calibration[i].confidence or 0.0 for i in known]
    upper.bar(centers[known], accuracy, width * 0.92, color=BLUE, label="accuracy")
    upper.plot([0, 1], [0, 1], color=GREY, linewidth=1.2, linestyle="--", label="as sure as right")
    upper.plot(confidence, accuracy, "o", color=ORANGE, markeredgecolor="white", markersize=7, label="mean confidence")
    top1, mean_confidence = scores.stats["top1"], _mean_confidence(scores)
    gap = mean_confidence - top1
    word = "as sure as right" if abs(gap) < 0.005 else "too sure" if gap > 0 else "not sure enough"
    upper.set_title(f"Calibration: {word}, expected error {scores.stats['ece']:.1%}")
    style.unit_square(upper, "", "accuracy")
    style.legend(upper)
    lower.bar(centers, [bin.images / scores.images for bin in scores.calibration], width * 0.92, color=GREY)
    for value, color, name in ((top1, BLUE, "accuracy"), (mean_confidence, ORANGE, "mean confidence")):
        lower.axvline(value, color=color, linewidth=2, label=f"{name} {value:.1%}")
    lower.set(xlim=(0, 1.005), xlabel="confidence: the probability of the predicted class", ylabel="share of images")
    style.apply(lower)
    style.legend(lower)
    return figure


def _mean_confidence(scores: ClassificationScores) -> float:
    return sum(bin.images * (bin.confidence or 0.0) for bin in scores.calibration) / scores.images


def _draw_class_accuracy(scores: ClassificationScores) -> Figure:
    """Draw a bar for each class; of more than 60 classes, a curve of all and bars for the weakest 30."""
    known = [score for score in scores.per_class if score.images]
    ranking = sorted(known, key=lambda score: score.recall or 0.0)
    mean = scores.stats["mean_accuracy"]
    many = len(ranking) > _MAX_BARS
    weakest = ranking[:_NUM_EXTREMES] if many else ranking
    figure = style.figure(12 if many else 7.5, _height(len(weakest)))
    panels = figure.subplots(1, 2 if many else 1, squeeze=False)[0]
    if many:
        _draw_accuracy_curve(panels[0], [score.recall or 0.0 for score in ranking], mean)
    bars = panels[-1]
    bars.barh(range(len(weakest)), [score.recall or 0.0 for score in weakest], color=BLUE, height=0.7)
    for row, score in enumerate(weakest):
        _write_value(bars, score.recall or 0.0, row, f"{score.recall:.2f}  {score.correct:,}/{score.images:,}")
    bars.axvline(mean, color=GREY, linestyle="--", linewidth=1.2)
    bars.set(xlim=(0, 1.25), xlabel="accuracy")
    bars.set_xticks(np.linspace(0, 1, 6))
    absent = len(scores.per_class) - len(known)
    left_out = f" ({absent} without images left out)" if absent else ""
    bars.set_title(f"The {len(weakest)} weakest classes" if many else f"Accuracy of each class{left_out}")
    _name_rows(bars, [score.name for score in weakest])
    return figure


def _draw_accuracy_curve(axes: Axes, accuracies: Sequence[float], mean: float) -> None:
    """Draw the accuracies of all classes, in rising order."""
    ranks = np.arange(1, len(accuracies) + 1)
    axes.fill_between(ranks, accuracies, color=BLUE, alpha=0.25, linewidth=0)
    axes.plot(ranks, accuracies, color=BLUE, linewidth=2)
    axes.axhline(mean, color=GREY, linestyle="--", linewidth=1.2, label=f"mean {style.two(mean)}")
    axes.set(xlim=(1, len(accuracies)), ylim=(0, 1.02), xlabel="classes, the weakest first", ylabel="accuracy")
    axes.set_title(f"Accuracy of {len(accuracies):,} classes")
    style.apply(axes)
    style.legend(axes)


def _draw_most_confused(pairs: Sequence[tuple[int, int, int]], names: Sequence[str]) -> Figure:
    figure = style.figure(8.5, _height(len(pairs)))
    axes = figure.subplots()
    counts = [count for _, _, count in pairs]
    axes.barh(range(len(pairs)), counts, color=ORANGE, height=0.7)
    for row, count in enumerate(counts):
        _write_value(axes, count, row, f"{count:,}")
    axes.set_xlim(0, counts[0] * 1.12)
    axes.set_title("The most frequent confusions, truth → prediction")
    axes.set_xlabel("images")
    short = [style.short_name(name) for name in names]
    _name_rows(axes, [f"{short[true]} → {short[predicted]}" for true, predicted, _ in pairs])
    return figure


def _name_rows(axes: Axes, names: Sequence[str]) -> None:
    """Write names next to horizontal bars, the first on top. Call this after everything is drawn."""
    fontsize = 9 if len(names) <= 40 else 7
    labels = [name if " → " in name else style.short_name(name) for name in names]
    style.apply(axes)
    axes.set_yticks(range(len(names)), labels, fontsize=fontsize)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)


def _write_value(axes: Axes, value: float, row: int, text: str) -> None:
    axes.annotate(text, (value, row), (3, 0), textcoords="offset points", va="center", fontsize=8, color=INK)


def _height(rows: int) -> float:
    """Return the height of a chart with `rows` named rows, in inches."""
    return max(3.2, 1.4 + 0.2 * rows)
