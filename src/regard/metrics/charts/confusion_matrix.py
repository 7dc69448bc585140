"""The chart of a confusion matrix of a detector or classifier, for 2 to 1000 classes.

Why not hotcoco's: it counts detections only, not a classifier's predictions, and matches them regardless of class, so
that a true positive of AP may appear as a confusion with an overlapping object (see `curves.confusion_matrix`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from regard.metrics.charts import style
from regard.metrics.charts.style import GREY, INK, PALE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

# Maximum sizes of matrices with legible numbers in the cells, and with legible names at the rows.
_MAX_COUNTS = 13
_MAX_NAMES = 100
_MIN_DOT = 1 / 250  # of the side of the matrix: smaller cells are widened to this, to be visible


def draw_confusion_matrix(matrix: Ints, names: Sequence[str], title: str, *, background: bool = False) -> Figure:
    """Draw the cells as fractions of their row, in shades of blue.

    Up to 13 rows have counts in their cells, up to 100 have names.

    Args:
        matrix: (C, C) counts, rows truth, columns prediction; (C+1, C+1) with background last.
        names: names of the C classes.
        title: title of the chart.
        background: whether the last row and column are background.

    Raises:
        MachineError: matplotlib is not installed.
    """
    size = len(matrix)
    labels = [*(style.short_name(name) for name in names), *(["background"] if background else [])]
    side = size * (0.8 if size <= _MAX_COUNTS else 0.17)
    side = min(max(side, 3.5), 16.0)
    figure = style.figure(side + 2.5, side + 1.5)
    axes = figure.subplots()
    totals = matrix.sum(axis=1, keepdims=True)
    fractions = np.divide(matrix, totals, out=np.full(matrix.shape, np.nan), where=totals > 0)
    if background:
        fractions[-1, -1] = np.nan  # background that is predicted as background is not counted
    _draw_cells(figure, axes, fractions)
    if size <= _MAX_COUNTS:
        _write_counts(axes, matrix, fractions)
    _style(axes, labels, background)
    axes.set_title(title, loc="left", color=INK, fontsize=11, fontweight="bold")
    return figure


def _draw_cells(figure: Figure, axes: Axes, fractions: Floats) -> None:
    from matplotlib.colors import PowerNorm

    size = len(fractions)
    few = size <= _MAX_COUNTS
    norm = PowerNorm(0.5, 0, 1)  # most confusions are a few percent: the square root makes them visible
    cells: QuadMesh | AxesImage
    if size <= _MAX_NAMES:
        color, width = ("white", 2.0) if few else (PALE, 0.3)
        cells = axes.pcolormesh(fractions, cmap="Blues", norm=norm, edgecolors=color, linewidth=width)
    else:
        cells = axes.imshow(
            _widened(fractions), cmap="Blues", norm=norm, extent=(0, size, size, 0), interpolation="nearest"
        )
    bar = figure.colorbar(cells, ax=axes, shrink=0.5, aspect=18, pad=0.02, ticks=[0, 0.05, 0.2, 0.5, 1])
    bar.set_label("fraction of the row", color=INK)
    bar.ax.tick_params(colors=INK, labelsize=9)
    bar.outline.set_visible(False)


def _widened(fractions: Floats) -> Floats:
    """Return the maximum around each cell, so that single cells can be seen. NaN rows stay NaN."""
    reach = math.ceil(len(fractions) * _MIN_DOT) // 2
    if not reach:
        return fractions
    padded = np.pad(np.nan_to_num(fractions), reach)
    around = np.lib.stride_tricks.sliding_window_view(padded, (2 * reach + 1, 2 * reach + 1))
    return np.where(np.isnan(fractions), np.nan, around.max(axis=(2, 3)))


def _write_counts(axes: Axes, matrix: Ints, fractions: Floats) -> None:
    for (row, column), count in np.ndenumerate(matrix):
        fraction = fractions[row, column]
        if not math.isnan(fraction):
            color = "white" if fraction > 0.4 else INK if count else GREY
            text = f"{count:,}\n{fraction:.0%}" if count else "0"
            axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", color=color, fontsize=9)


def _style(axes: Axes, labels: Sequence[str], background: bool) -> None:
    size = len(labels)
    axes.set(xlim=(0, size), ylim=(size, 0), aspect="equal", facecolor=PALE)
    named = size <= _MAX_NAMES
    if named:
        fontsize = 10 if size <= _MAX_COUNTS else 7
        upright = max(len(label) for label in labels) > 10 or size > 8
        axes.set_xticks(np.arange(size) + 0.5, labels, rotation=90 if upright else 0, fontsize=fontsize)
        axes.set_yticks(np.arange(size) + 0.5, labels, fontsize=fontsize)
    axes.tick_params(length=0 if named else 3, colors=INK)
    axes.spines[:].set_visible(False)
    if background:
        axes.axhline(size - 1, color=GREY, linewidth=1)
        axes.axvline(size - 1, color=GREY, linewidth=1)
    last = ", background last" if background else ""
    order = "" if named else f": {size - background} classes in their order{last}"
    axes.set_xlabel(f"prediction{order}", color=INK)
    axes.set_ylabel(f"truth{order}", color=INK)
