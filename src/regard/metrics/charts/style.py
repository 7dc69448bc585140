"""The common look of charts: size, colours, axes, legends and names.

Charts use matplotlib's objects, not pyplot, so that they need no display and leave the figures of the caller alone.
"""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from regard.errors import MachineError, escape, install_command

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# Okabe and Ito (2008), for colour-blind people as well. Their yellow is left out: too pale for a line on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5C00", "#000000")
BLUE, ORANGE, GREEN = COLORS[:3]
INK, GREY, PALE = "#222222", "#8A8A8A", "#E6E6E6"


def figure(width: float, height: float) -> Figure:
    """Return an empty figure of `width` by `height` inches.

    Raises:
        MachineError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        remedy = install_command("matplotlib")
        raise MachineError("pictures need the package matplotlib", remedy=remedy) from error
    return Figure(figsize=(width, height), layout="compressed", facecolor="white")


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG and return `path`. Its folder is created."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        # Characters that the font lacks are drawn as boxes. The warning about each of them would not help the user.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(path, dpi=150, bbox_inches="tight", pad_inches=0.15)
    return path


def apply(axes: Axes) -> None:
    """Apply the common look to axes. Call this after everything is drawn."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(colors=INK, labelsize=9, color=GREY)
    axes.grid(color=PALE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.title.set(color=INK, fontsize=11, fontweight="bold")


def unit_square(axes: Axes, x: str, y: str) -> None:
    """Apply the common look to axes of fractions 0..1; `x` and `y` are their labels."""
    axes.set(xlim=(0, 1.005), ylim=(0, 1.02), xlabel=x, ylabel=y)
    apply(axes)


def legend(axes: Axes) -> None:
    """Draw a legend inside the axes, at the place that hides least."""
    axes.legend(loc="best", fontsize=9, labelcolor=INK, framealpha=0.9, edgecolor="none")


def legend_below(axes: Axes, title: str | None = None) -> None:
    """Draw a legend of two columns below the axes."""
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, -0.13),
        ncols=2,
        handlelength=3.2,
        title=title,
        fontsize=9,
        title_fontsize=9,
        labelcolor=INK,
        frameon=False,
    )


def plain_log(axis: Axis) -> None:
    """Label 1, 2 and 5 of every decade of a logarithmic axis with plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def short_name(name: str) -> str:
    """Return a class name for a chart: one line of at most 26 characters, with `$` escaped."""
    # Shorten the middle: names of a data set differ at the end as often as at the start.
    name = escape(name)
    return (name if len(name) <= 26 else f"{name[:15]}…{name[-10:]}").replace("$", r"\$")


def two(value: float) -> str:
    """Return a fraction with two decimals, or `n/a` for NaN."""
    return "n/a" if math.isnan(value) else f"{value:.2f}"
