"""The picture of a confusion matrix, for detectors and classifiers, from 2 classes to 1000."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from regard.metrics.charts import style as figures
from regard.metrics.charts.style import GREY, INK, PALE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

# More cannot be read: numbers in the cells, names beside the rows, lines between the cells.
_MOST_COUNTS = 13
_MOST_NAMES = 100
_SMALLEST_DOT = 1 / 250  # of the side of the matrix: what a single cell is widened to, or it could not be seen


def draw_confusions(matrix: Ints, names: Sequence[str], title: str, *, background: bool = False) -> Figure:
    """Fractions of each row in shades of blue; counts where there is room for them, names up to 100 classes.

    Args:
        matrix: (C, C) counts, rows truth, columns prediction; (C+1, C+1) with background last.
        names: of the C classes.
    """
    size = len(matrix)
    labels = [*(figures.shown(name) for name in names), *(["background"] if background else [])]
    side = size * (0.8 if size <= _MOST_COUNTS else 0.17)
    side = min(max(side, 3.5), 16.0)
    figure = figures.figure(side + 2.5, side + 1.5)
    axes = figure.subplots()
    totals = matrix.sum(axis=1, keepdims=True)
    fractions = np.divide(matrix, totals, out=np.full(matrix.shape, np.nan), where=totals > 0)
    if background:
        fractions[-1, -1] = np.nan  # nothing is background in truth and prediction at once
    _draw_cells(figure, axes, fractions)
    if size <= _MOST_COUNTS:
        _write_counts(axes, matrix, fractions)
    _style(axes, labels, background)
    axes.set_title(title, loc="left", color=INK, fontsize=11, fontweight="bold")
    return figure


def _draw_cells(figure: Figure, axes: Axes, fractions: Floats) -> None:
    from matplotlib.colors import PowerNorm

    size = len(fractions)
    few = size <= _MOST_COUNTS
    norm = PowerNorm(0.5, 0, 1)  # most confusions are a few percent: the square root lifts them out of the white
    cells: QuadMesh | AxesImage
    if size <= _MOST_NAMES:
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
    """Every cell at least as large as can be seen: the largest value of its neighbourhood, rows without any kept."""
    reach = math.ceil(len(fractions) * _SMALLEST_DOT) // 2
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
    named = size <= _MOST_NAMES
    if named:
        fontsize = 10 if size <= _MOST_COUNTS else 7
        upright = max(len(label) for label in labels) > 10 or size > 8
        axes.set_xticks(np.arange(size) + 0.5, labels, rotation=90 if upright else 0, fontsize=fontsize)
        axes.set_yticks(np.arange(size) + 0.5, labels, fontsize=fontsize)
    axes.tick_params(length=0 if named else 3, colors=INK)
    axes.spines[:].set_visible(False)
    if background:
        axes.axhline(size - 1, color=GREY, linewidth=1)
        axes.axvline(size - 1, color=GREY, linewidth=1)
    last = ", background last" if background else ""
    hidden = "" if named else f": {size - background} classes in their order{last}"
    axes.set_xlabel(f"prediction{hidden}", color=INK)
    axes.set_ylabel(f"truth{hidden}", color=INK)
