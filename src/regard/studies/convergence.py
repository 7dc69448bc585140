"""Compare how fast DETR learns with and without later findings: same data, same size, same time.

    regard study convergence --minutes 4

Plain DETR takes hundreds of epochs to find where to look (DETR, section 4; Conditional DETR, figure 1). Anchors,
denoising and focal loss help; this study measures by how much, in minutes on a CPU.
"""

from __future__ import annotations

import math
from pathlib import Path

from rich.console import Console
from rich.table import Table

from regard.data.generated.shapes import data_folder
from regard.errors import ConfigError, counted
from regard.safe_files import is_used
from regard.training.launch import run_processes
from regard.training.rows import read_rows

DATA = "shapes:"
# The same backbone, width and depth (plain DETR with norm first and without dropout, too). The second row adds anchors
# and focal loss, the third denoising queries and query groups.
VARIANTS: dict[str, list[str]] = {
    "plain DETR": [
        "model.anchors=false", "model.denoising_groups=0", "model.query_groups=1", "model.sigmoid=false",
        "class_weight=1",
    ],
    "+ focal loss, anchors": ["model.denoising_groups=0", "model.query_groups=1"],
    "detr_tiny (all)": [],
}  # fmt: skip


def convergence(minutes: float, output: Path) -> None:
    """Train each variant for `minutes` minutes; write `convergence.png` and print the last scores."""
    if not 0 < minutes < math.inf:
        raise ConfigError(f"minutes={minutes}, expected more than 0", code="C03")
    if is_used(output):
        raise ConfigError("the output folder is not empty", where=output, remedy="name another folder", code="C11")
    data_folder(DATA)
    curves = {}
    for number, (name, settings) in enumerate(VARIANTS.items()):
        run = output / f"{number}"
        arguments = ["train", "detr_tiny", "--data", DATA, "--output", str(run), f"minutes={minutes}"]
        arguments += [
            "epochs=1000",
            "batch_size=16",
            "evaluate_every=2",
            "workers=0",
            "augmentation=flip",
            "device=cpu",
            *settings,
        ]
        run_processes(arguments, 2)
        curves[name] = _curve(run, minutes)
    _draw(curves, minutes, output / "convergence.png")
    table = Table("model", "AP", "AP50", title=f"{counted(minutes, 'minute')} of training each")
    for name, points in curves.items():
        table.add_row(name, f"{points[-1][1]:.3f}", f"{points[-1][2]:.3f}")
    Console().print(table)
    print(output / "convergence.png")


def _curve(run: Path, minutes: float) -> list[tuple[float, float, float]]:
    """(minutes of training, AP, AP50) of every evaluation."""
    rows = read_rows(run / "metrics.jsonl")
    last = max(row["step"] for row in rows)
    judged = [row for row in rows if "val/AP" in row]
    return [(minutes * row["step"] / last, row["val/AP"], row["val/AP50"]) for row in judged]


def _draw(curves: dict[str, list[tuple[float, float, float]]], minutes: float, path: Path) -> None:
    from regard.metrics.charts.style import apply, figure, legend, save

    picture = figure(9, 3.6)
    for place, (column, label) in enumerate(((1, "AP"), (2, "AP50")), start=1):
        axes = picture.add_subplot(1, 2, place)
        for name, points in curves.items():
            axes.plot([p[0] for p in points], [p[column] for p in points], marker=".", label=name)
        axes.set(xlabel="minutes of training", ylabel=label, ylim=(0, 1), xlim=(0, minutes))
        apply(axes)
        legend(axes)
    save(picture, path)
