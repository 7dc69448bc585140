"""The chart of a training: losses, scores and learning rates against the step."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from regard.errors import DataError
from regard.metrics.charts import style
from regard.metrics.charts.style import BLUE, COLORS, GREY, ORANGE
from regard.metrics.detection import Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# The same number of training and of validation images; the first pair that a run has is drawn. The loss that is
# minimised also has all earlier decoder layers, or soft labels, so it is no match for that of validation.
LOSS_PAIRS = (("train/loss_last_layer", "val/loss"), ("train/nll", "val/nll"), ("train/loss", "val/loss"))
# A phone shows the left column of a chart first.
_COLUMNS = (("loss", "score"), ("terms of the loss", "learning rate"))


def loss_pair(names: Sequence[str]) -> tuple[str, str]:
    """Return the names of training and validation loss that are drawn next to each other, of the known `names`."""
    return next((pair for pair in LOSS_PAIRS if pair[0] in names and pair[1] in names), LOSS_PAIRS[-1])


def plot_curves(metrics: Sequence[Mapping[str, Any]], path: str | Path) -> Path:
    """Save a chart of a training: losses, scores and learning rates against the step.

    Numbers that are known at one step only are no curve: a panel of nothing else is left out.

    Args:
        metrics: rows with "step" and some of "epoch", "train/loss", "train/loss_ce", "val/loss", "val/AP",
            "val/AP50", "val/top1", "train/lr" and the like. Rows may have different keys. None and values that are not
            finite are gaps. Losses of earlier decoder layers ("loss_ce_0") and other keys are ignored.
        path: the PNG file to write.

    Returns:
        `path`.

    Raises:
        DataError: none of these metrics is known at two steps.
        MachineError: matplotlib is not installed.
    """
    rows = [row for row in metrics if "step" in row]
    all_panels = _panels(list(dict.fromkeys(key for row in rows for key in row)))
    panels = {name: keys for name, keys in all_panels.items() if any(_is_curve(rows, key) for key in keys)}
    if not panels:
        what = "no loss, score or learning rate is known at two steps"
        raise DataError(what, where=path, remedy="train for more steps")
    columns = [column for names in _COLUMNS if (column := [name for name in names if name in panels])]
    lines = max(map(len, columns))
    figure = style.figure(5.6 * len(columns), 4.6 * lines)
    places = figure.subplots(lines, len(columns), squeeze=False)
    for number, names in enumerate(columns):
        for axes, name in zip(places[:, number], names, strict=False):
            _draw_series(axes, name, {key: _series(rows, key) for key in panels[name]})
            _mark_epochs(axes, rows)
        for axes in places[len(names) :, number]:
            axes.remove()
    return style.save(figure, Path(path))


def _panels(keys: Sequence[str]) -> dict[str, list[str]]:
    """Return the title and the metrics of each panel, without empty ones."""
    pair = loss_pair(keys)
    terms = [key for key in keys if re.fullmatch(r"(train|val)/loss_(ce|bbox|giou|mask|dice)", key)]
    scores = [key for key in keys if re.fullmatch(r"val/(AP|PQ|SQ|RQ|mask_AP|mIoU|acc|top)\w*", key)]
    if any(re.search("PQ|mask_AP", key) for key in scores):  # more cannot be told apart
        scores = [key for key in scores if re.fullmatch(r"val/(PQ\w*|mask_AP|mask_AP50|AP|AP50)", key)]
    else:
        scores = [key for key in scores if not re.fullmatch(r"val/AP[sml]", key)]
    rates = [key for key in keys if re.fullmatch(r"(\w+/)?lr(_\w+)?", key)]
    panels = {
        "loss": [key for key in pair if key in keys],
        "score": scores,
        "terms of the loss": terms,
        "learning rate": rates,
    }
    return {name: keys for name, keys in panels.items() if keys}


def _draw_series(axes: Axes, name: str, series: Mapping[str, tuple[Floats, Floats]]) -> None:
    from matplotlib.ticker import MaxNLocator

    terms = list(dict.fromkeys(key.split("/")[-1] for key in series))
    for key, (steps, values) in series.items():
        part, _, term = key.rpartition("/")
        color = COLORS[terms.index(term) % len(COLORS)]
        if name == "loss":
            color = BLUE if part == "train" else ORANGE
        line = "--" if part == "val" and name == "terms of the loss" else "-"
        width = 2.6 if name == "loss" or term in ("AP", "PQ", "top1", "lr") else 1.5
        marker = "o" if len(steps) <= 30 else None
        if name != "score" and part == "train" and len(steps) > 200:
            axes.plot(steps, values, color=color, linewidth=0.6, alpha=0.3)
            steps, values = _smooth(steps, values)
        label = _label(name, part, term)
        axes.plot(steps, values, color=color, linestyle=line, linewidth=width, marker=marker, markersize=4, label=label)
    finite = np.concatenate([values for _, values in series.values()])
    finite = finite[np.isfinite(finite)]
    if name != "score" and len(finite) and finite.min() > 0 and finite.max() > 30 * finite.min():
        axes.set_yscale("log")
        style.plain_log(axes.yaxis)
    axes.set_title(name)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("step")
    style.apply(axes)
    style.legend_below(axes)  # inside it would hide data


def _label(panel: str, part: str, term: str) -> str:
    word = {"train": "training", "val": "validation"}.get(part, part)
    if panel == "loss":
        return word
    return f"{word} {style.short_name(term)}" if panel == "terms of the loss" else style.short_name(term)


def _is_curve(rows: Sequence[Mapping[str, Any]], key: str) -> bool:
    return len({row["step"] for row in rows if row.get(key) is not None and math.isfinite(row[key])}) > 1


def _series(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[Floats, Floats]:
    points = [(row["step"], np.nan if row[key] is None else row[key]) for row in rows if key in row]
    steps, values = np.array(points, np.float64).T
    return steps, np.where(np.isfinite(values), values, np.nan)


def _smooth(steps: Floats, values: Floats) -> tuple[Floats, Floats]:
    """Return moving averages of steps and values (N,), over windows of N // 50 points."""
    window = np.ones(len(values) // 50)
    known = np.isfinite(values)
    sums = np.convolve(np.where(known, values, 0), window, "valid")
    counts = np.convolve(known.astype(np.float64), window, "valid")
    middle = np.convolve(steps, window / len(window), "valid")
    return middle, np.divide(sums, counts, out=np.full(len(sums), np.nan), where=counts > 0)


def _mark_epochs(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    first: dict[int, float] = {}
    for row in rows:
        if row.get("epoch") is not None:
            first.setdefault(int(row["epoch"]), row["step"])
    if len(first) > 1:
        chosen = list(first)[:: math.ceil(len(first) / 7)]
        top = axes.secondary_xaxis("top")
        top.set_xticks([first[epoch] for epoch in chosen], [str(epoch) for epoch in chosen])
        top.tick_params(colors=GREY, labelsize=8, length=3)
        top.spines[:].set_visible(False)
        top.set_xlabel("epoch", color=GREY, fontsize=8)
