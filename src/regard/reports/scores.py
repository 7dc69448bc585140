"""The report's section on scores: the main ones as tiles, each class, and the charts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from regard.metrics.summary import percent
from regard.reports.html import Content, Html, element, figure, table
from regard.reports.run_files import RunFiles

_TILES = ("PQ", "mask_AP", "AP", "AP50", "top1", "top5", "ece")
_NO_FRACTIONS = ("nll", "images_per_second")
_CHARTS = {
    "precision_recall.png": "precision by recall",
    "score_threshold.png": "precision, recall and F1 by score threshold",
    "class_accuracy.png": "accuracy of each class",
    "calibration.png": "calibration of the probabilities",
    "confusion_matrix.png": "confusion matrix",
    "most_confused.png": "the most frequent confusions",
}


def tiles(files: RunFiles) -> Html | None:
    """Return the most important scores in large figures."""
    stats = files.metrics.get("stats") or {
        key.removeprefix("val/"): value for key, value in files.best.items() if key.startswith("val/")
    }
    known = [(name, stats[name]) for name in _TILES if stats.get(name) is not None][:4]
    items = [element("li", element("b", f"{percent(value)} %"), name) for name, value in known]
    return element("ul", *items, css="tiles") if items else None


def score_parts(files: RunFiles) -> list[Html | None]:
    """Return all scores, those of each class, and the charts."""
    metrics = files.metrics
    if not metrics:
        return [element("p", "The training has not finished: there are no scores of its best checkpoint.", css="note")]
    notes = [element("p", str(note), css="note") for note in metrics.get("notes") or []]
    about = element("p", "On the validation images of ", element("code", str(metrics.get("data", ""))))
    stats = [(name, _number(name, value)) for name, value in (metrics.get("stats") or {}).items()]
    losses = [(name, f"{value:.4f}") for name, value in (metrics.get("losses") or {}).items()]
    return [
        about,
        *notes,
        element("h3", "All scores, in percent"),
        table(stats, ["score", ""]),
        element("h3", "Losses"),
        table(losses, ["loss", ""]),
        *_class_tables(metrics),
        *(figure(files.picture(name), alt) for name, alt in _CHARTS.items()),
    ]


def _class_tables(metrics: dict[str, Any]) -> list[Html | None]:
    """Return the scores of each class: of boxes, masks and segments, or of a classifier."""
    if metrics.get("panoptic") or metrics.get("boxes"):
        parts: list[Html | None] = []
        for key, title in (("panoptic", "Segments"), ("masks", "Masks"), ("boxes", "Boxes")):
            parts += _class_table(f"{title} of each class", (metrics.get(key) or {}).get("per_class") or [])
        return parts
    return _class_table("Each class", metrics.get("per_class") or [])


def _class_table(title: str, scores: list[dict[str, Any]]) -> list[Html | None]:
    if not scores:
        return []
    if "ap" in scores[0]:
        head = ["class", "objects", "AP", "AP50"]
        rows = [_row(score, ("objects",), ("ap", "ap50")) for score in scores]
    elif "pq" in scores[0]:
        head = ["class", "found", "false", "missed", "PQ", "SQ", "RQ"]
        rows = [_row(score, ("tp", "fp", "fn"), ("pq", "sq", "rq")) for score in scores]
    else:
        head = ["class", "images", "correct", "accuracy", "precision", "F1"]
        rows = [_row(score, ("images", "correct"), ("recall", "precision", "f1")) for score in scores]
    return [element("h3", title), table(rows, head, tall=True)]


def _row(score: dict[str, Any], counts: Sequence[str], fractions: Sequence[str]) -> list[Content]:
    return [score["name"], *(f"{score[key]:,}" for key in counts), *(percent(score[key]) for key in fractions)]


def _number(name: str, value: float | None) -> str:
    return f"{value:,.4g} (not in percent)" if value is not None and name in _NO_FRACTIONS else percent(value)
