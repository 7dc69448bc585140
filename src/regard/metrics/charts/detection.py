"""Charts of a detector, and of a data set with boxes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from regard.errors import counted, two_digits
from regard.metrics.charts import style
from regard.metrics.charts.confusion_matrix import draw_confusion_matrix
from regard.metrics.charts.style import BLUE, COLORS, GREEN, GREY, INK, ORANGE
from regard.metrics.curves import DetectionCurves, confusion_matrix
from regard.metrics.detection import CocoDetections

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_IOU_THRESHOLD = 0.5
_SCORE_THRESHOLD = 0.3  # of the confusion matrix, if no detection is right and no threshold best
_MAX_BARS = 100  # classes in a chart of bars
_MAX_POINTS = 20_000  # boxes in a scatter plot
_MAX_NAMED_CURVES = 7  # more curves cannot be told apart


def plot_detections(
    ground_truth: dict[str, Any], detections: CocoDetections, curves: DetectionCurves, folder: str | Path
) -> list[Path]:
    """Save precision_recall.png, score_threshold.png and confusion_matrix.png into `folder`.

    Confusions are those of detections above the score of the best F1.

    Args:
        ground_truth, detections: as for `evaluate_detections`.
        curves: `detection_curves` of them.
        folder: is created.

    Returns:
        Paths of the three files.

    Raises:
        DataError: as for `evaluate_detections`.
        MachineError: hotcoco or matplotlib is not installed.
    """
    threshold = _SCORE_THRESHOLD if curves.best is None else curves.best[0]
    matrix = confusion_matrix(ground_truth, detections, iou_threshold=_IOU_THRESHOLD, score_threshold=threshold)
    why = "no detection is right" if curves.best is None else "best F1"
    title = f"Confusions at IoU {_IOU_THRESHOLD} and score {two_digits(threshold)} ({why})"
    matrix_figure = draw_confusion_matrix(matrix, curves.names, title, background=True)
    return [
        style.save(_draw_precision_recall(curves), Path(folder) / "precision_recall.png"),
        style.save(_draw_thresholds(curves), Path(folder) / "score_threshold.png"),
        style.save(matrix_figure, Path(folder) / "confusion_matrix.png"),
    ]


def plot_dataset(ground_truth: dict[str, Any], folder: str | Path, *, of: int | None = None) -> Path:
    """Save dataset.png: objects per class, objects per image and box sizes. Crowds are left out.

    Args:
        ground_truth: a validated COCO dict.
        folder: is created.
        of: number of images of the data set if `ground_truth` has only some of them.

    Returns:
        Path of the file.

    Raises:
        MachineError: matplotlib is not installed.
    """
    objects = [annotation for annotation in ground_truth["annotations"] if not annotation["iscrowd"]]
    figure = style.figure(11, min(max(6.0, 1.6 + 0.17 * len(ground_truth["categories"])), 16.0))
    grid = figure.add_gridspec(2, 2, width_ratios=(1, 1.1), height_ratios=(1.6, 1))
    _draw_classes(figure.add_subplot(grid[:, 0]), ground_truth["categories"], objects)
    _draw_box_sizes(figure.add_subplot(grid[0, 1]), objects)
    _draw_objects_per_image(figure.add_subplot(grid[1, 1]), ground_truth["images"], objects)
    count = len(ground_truth["images"])
    images = counted(count, "image", of=None if of == count else of)
    heading = f"{images}, {counted(len(objects), 'object')}"
    figure.suptitle(heading, color=INK, fontsize=12, fontweight="bold")
    return style.save(figure, Path(folder) / "dataset.png")


def _draw_precision_recall(curves: DetectionCurves) -> Figure:
    figure = style.figure(11, 5.6)
    left, right = figure.subplots(1, 2, sharey=True)
    ap50 = curves.class_precision.mean(axis=1)
    known = np.flatnonzero(~np.isnan(ap50))
    ranking = known[np.argsort(-ap50[known], kind="stable")]
    # A curve ends at the last recall that its class reaches; the drop from there to 0 would hide others.
    reached = np.where(curves.class_precision > 0, curves.class_precision, np.nan)
    named = ranking if len(ranking) <= _MAX_NAMED_CURVES else ranking[-3:]  # of many classes, the weakest
    for k in ranking[: len(ranking) - len(named)]:
        left.plot(curves.recall, reached[k], color=GREY, linewidth=0.7, alpha=0.45)
    mean = curves.mean_precision
    left.plot(curves.recall, mean["0.50"], color=INK, linewidth=3, label=f"mean  {style.two(mean['0.50'].mean())}")
    for color, k in zip(COLORS, named, strict=False):
        label = f"{style.short_name(curves.names[k])}  {style.two(ap50[k])}"
        left.plot(curves.recall, reached[k], color=color, linewidth=1.6, label=label)
    few = len(named) == len(ranking)
    left.set_title("Classes at IoU 0.50" if few else f"{len(ranking)} classes at IoU 0.50, the weakest named")
    lines = {"0.50": (BLUE, "-"), "0.75": (ORANGE, "--"), "0.50:0.95": (GREEN, "-.")}
    for name, (color, line) in lines.items():
        label = f"IoU {name}  {style.two(mean[name].mean())}"
        right.plot(curves.recall, mean[name], color=color, linestyle=line, linewidth=2.5, label=label)
    right.set_title("Mean over classes")
    for axes in (left, right):
        style.unit_square(axes, "recall", "precision" if axes is left else "")
        style.legend_below(axes, "average precision")
    return figure


def _draw_thresholds(curves: DetectionCurves) -> Figure:
    figure = style.figure(6.6, 5.2)
    axes = figure.subplots()
    precision, recall = curves.threshold_precision, curves.threshold_recall
    f1 = curves.f1
    axes.plot(curves.thresholds, precision, color=BLUE, linewidth=2, linestyle="--", label="precision")
    axes.plot(curves.thresholds, recall, color=ORANGE, linewidth=2, linestyle="-.", label="recall")
    axes.plot(curves.thresholds, f1, color=GREEN, linewidth=3, label="F1")
    if curves.best is not None:
        threshold, best = curves.best
        axes.axvline(threshold, color=GREY, linewidth=1, linestyle=":", zorder=1)
        label = f"best F1 {style.two(best)} at score {two_digits(threshold)}"
        axes.plot(threshold, best, "o", color=GREEN, markeredgecolor="white", markersize=9, label=label)
    axes.set_title("Detections above a score (IoU 0.50, all classes together)")
    style.unit_square(axes, "score threshold", "")
    style.legend_below(axes)
    return figure


def _draw_classes(axes: Axes, categories: Sequence[Mapping[str, Any]], objects: Sequence[Mapping[str, Any]]) -> None:
    counts = dict.fromkeys((category["id"] for category in categories), 0)
    for annotation in objects:
        counts[annotation["category_id"]] += 1
    names = {category["id"]: category["name"] for category in categories}
    ranking = sorted(counts, key=lambda id: -counts[id])[:_MAX_BARS]
    values = [counts[id] for id in ranking]
    axes.barh(range(len(ranking)), values, color=BLUE, height=0.7)
    fontsize = 9 if len(ranking) <= 40 else 7
    axes.set_yticks(range(len(ranking)), [style.short_name(names[id]) for id in ranking], fontsize=fontsize)
    for row, value in enumerate(values):
        axes.annotate(
            f"{value:,}",
            (value, row),
            (3, 0),
            textcoords="offset points",
            va="center",
            fontsize=fontsize,
            color=INK,
        )
    axes.set_ylim(len(ranking) - 0.4, -0.6)
    axes.set_xlim(0, max([*values, 1]) * 1.18)
    some = len(categories) > _MAX_BARS
    axes.set_title(f"The {_MAX_BARS} most frequent of {len(categories)} classes" if some else "Classes")
    axes.set_xlabel("objects")
    style.apply(axes)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)


def _draw_box_sizes(axes: Axes, objects: Sequence[Mapping[str, Any]]) -> None:
    sizes = np.array([annotation["bbox"][2:] for annotation in objects], np.float64).reshape(-1, 2)
    sizes = np.maximum(sizes, 0.5)
    if len(sizes) > _MAX_POINTS:
        sizes = np.random.default_rng(0).choice(sizes, _MAX_POINTS, replace=False)
    alpha = min(max(0.06, 15 / math.sqrt(len(sizes) + 1)), 0.6)
    axes.scatter(sizes[:, 0], sizes[:, 1], s=9, color=BLUE, alpha=alpha, linewidths=0, rasterized=True)
    low, high = (0.8 * sizes.min(), 1.3 * sizes.max()) if len(sizes) else (1, 1000)
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high))
    for side, name in ((32, "small | medium"), (96, "medium | large")):
        if low < side < high:
            axes.plot([low, high], [side**2 / low, side**2 / high], color=ORANGE, linewidth=1.2, linestyle="--")
            _write_along(axes, side, name)
    axes.set_title("Boxes" if len(objects) <= _MAX_POINTS else f"{_MAX_POINTS:,} boxes, drawn at random")
    axes.set_xlabel("width in pixels")
    axes.set_ylabel("height in pixels")
    style.plain_log(axes.xaxis)
    style.plain_log(axes.yaxis)
    style.apply(axes)


def _write_along(axes: Axes, side: float, text: str) -> None:
    """Write `text` along the line of boxes with the area of a square of `side` pixels."""
    from matplotlib.patheffects import withStroke

    written = axes.text(side, side, text, ha="center", va="bottom", fontsize=9, color=ORANGE)
    written.set(rotation=-45, rotation_mode="anchor", transform_rotates_text=True)
    written.set_path_effects([withStroke(linewidth=3, foreground="white")])


def _draw_objects_per_image(
    axes: Axes, images: Sequence[Mapping[str, Any]], objects: Sequence[Mapping[str, Any]]
) -> None:
    from matplotlib.ticker import MaxNLocator

    counts = dict.fromkeys((image["id"] for image in images), 0)
    for annotation in objects:
        counts[annotation["image_id"]] += 1
    values = np.array(list(counts.values()), np.int64)
    largest = int(values.max(initial=1))
    step = math.ceil((largest + 1) / 40)
    axes.hist(values, bins=(np.arange(0, largest + step + 1, step) - 0.5).tolist(), color=GREEN, rwidth=0.85)
    mean = values.mean() if len(values) else 0
    axes.set_title(f"Objects per image: {mean:.1f} on average, {largest if len(objects) else 0} at most")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("objects")
    axes.set_ylabel("images")
    style.apply(axes)
