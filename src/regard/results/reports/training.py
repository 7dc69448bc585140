"""The report's sections on data, curves and time."""

from __future__ import annotations

import statistics
from typing import Any

from regard.metrics.charts.training import loss_pair
from regard.results.reports.html import Html, element, figure, joined, table
from regard.results.reports.run_files import RunFiles

# What training and validation loss are, by the name of the training loss that is drawn.
_LOSSES = {
    "train/loss_last_layer": "Both losses are the weighted sum of the last decoder layer. The loss that is minimised "
    "adds the earlier layers.",
    "train/nll": "Both losses are the cross-entropy of the true class.",
    "train/loss": "The training loss is what is minimised: of all decoder layers, or of mixed images, smoothed labels "
    "or a teacher's answers. The validation loss has none of these, so the two cannot be compared.",
}


_WARNING = "warning: "


def warnings_box(files: RunFiles) -> Html | None:
    """Return what the training warned of, such as few steps; None if nothing."""
    told = dict.fromkeys(note for about in ("start", "length") for note in files.notes(about))
    items = [element("li", note.removeprefix(_WARNING)) for note in told if note.startswith(_WARNING)]
    return element("ul", *items, css="warnings") if items else None


def choices(files: RunFiles) -> Html | None:
    """Return what the training told of its start that is no warning: what data, device and weights have decided."""
    told = [note for note in files.notes("start") if not note.startswith(_WARNING)]
    if not told:
        return None
    return joined(
        [element("h3", "Told at the start"), element("ul", *(element("li", note) for note in told), css="note")]
    )


def data_parts(files: RunFiles) -> list[Html | None]:
    """Return the numbers of images, objects and classes of both splits, and the picture of the data."""
    counts: dict[str, Any] = files.environment.get("counts") or {}
    splits = [(name, counts[key]) for name, key in (("training", "train"), ("validation", "val")) if key in counts]
    objects = any("objects" in split for _, split in splits)
    rows = [
        (name, f"{split['images']:,}", *([f"{split['objects']:,}"] if objects else []), f"{split['classes']:,}")
        for name, split in splits
    ]
    head = ["", "images", *(["objects"] if objects else []), "classes"]
    return [
        element("p", "Folder: ", element("code", str(files.settings.get("data", "")))),
        table(rows, head),
        figure(files.picture("dataset.png"), "classes and sizes of the data set"),
        figure(files.picture("train_batch.jpg"), "images with their targets", "The first training batch, augmented."),
    ]


def curve_parts(files: RunFiles) -> list[Html | None]:
    """Return the curves of losses, scores and learning rate, and what the losses are."""
    names = list(dict.fromkeys(key for row in files.rows for key in row))
    if not names:
        return []
    train, val = loss_pair(names)
    text = _LOSSES[train] if val in names and "train/loss" in names else "Loss by step."
    ema = files.settings.get("ema")
    more = " Training images are augmented, and the weights still change from step to step; "
    more += "validation uses the moving average of the weights." if ema else "validation images are not augmented."
    chart = figure(files.picture("curves.png"), "losses, scores and learning rate by step")
    if chart is None:
        return [element("p", "Numbers of one step only: they make no curve.", css="note")]
    if len(files.evaluations) == 1:
        more += " There was one evaluation: its scores make no curve and are below."
    return [chart, element("p", text + more, css="note")]


def timing_parts(files: RunFiles) -> list[Html | None]:
    """Return how long the training took and how fast it was, without evaluations."""
    rows = [row for row in files.rows if "images_per_second" in row]
    if not rows:
        return []
    speed = statistics.median(row["images_per_second"] for row in rows)
    facts = [("images per second, median", f"{speed:,.1f}")]
    seconds, step = rows[-1].get("seconds"), rows[-1]["step"]
    if seconds:
        facts += [("steps per second", f"{step / seconds:,.2f}"), ("minutes of training", f"{seconds / 60:,.3g}")]
    memory = [row["gpu_memory_gib"] for row in rows if "gpu_memory_gib" in row]
    if memory:
        facts.append(("largest GPU memory, GiB", f"{max(memory):.2f}"))
    return [table(facts), element("p", "Evaluations and the start are not counted.", css="note")]
