"""The report's section on scores: the main ones as tiles, each class, and the charts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from regard.errors import two_digits
from regard.metrics.summary import percent
from regard.results.reports.html import Content, Html, element, figure, table
from regard.results.reports.run_files import RunFiles

_TILES = {
    "PQ": "PQ",
    "mask_AP": "mask AP",
    "AP": "box AP",
    "AP50": "box AP50",
    "top1": "right (top1)",
    "top5": "in the first five (top5)",
    "ece": "calibration error (ece)",
}
_OF_CLASSES = {"PQ": "all", "PQ_th": "things", "PQ_st": "stuff"}
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
    known = [(words, stats[name]) for name, words in _TILES.items() if stats.get(name) is not None][:4]
    items = [element("li", element("b", f"{percent(value)} %"), words) for words, value in known]
    return element("ul", *items, css="tiles") if items else None


def score_parts(files: RunFiles) -> list[Html | None]:
    """Return all scores, those of each class, and the charts."""
    metrics = files.metrics
    if not metrics:
        return [element("p", "The training has not finished: there are no scores of its best checkpoint.", css="note")]
    notes = [element("p", str(note), css="note") for note in metrics.get("notes") or []]
    about = element("p", "On the validation images of ", element("code", str(metrics.get("data", ""))))
    losses = [(name, f"{value:.4f}") for name, value in (metrics.get("losses") or {}).items()]
    return [
        about,
        _threshold(files),
        *notes,
        element("h3", "All scores, in percent"),
        *_score_tables(metrics.get("stats") or {}),
        element("h3", "Losses"),
        table(losses),
        *_class_tables(metrics),
        *(figure(files.picture(name), alt) for name, alt in _CHARTS.items()),
    ]


def _threshold(files: RunFiles) -> Html | None:
    """Return above which score the results of a detector are best, and whether `predict` takes it."""
    metrics = files.metrics
    stats, best, is_panoptic = metrics.get("stats") or {}, metrics.get("best_threshold"), bool(metrics.get("panoptic"))
    if "AP" not in stats:
        return None
    of = "segment" if is_panoptic else "detection"
    if best is None:
        return element("p", f"No {of} is right, so no score threshold is better than another.")
    score = stats.get("PQ") if is_panoptic else metrics.get("best_f1")
    measure = f"{'PQ' if is_panoptic else 'F1'} of {of}s" + (f", {percent(score)} %," if score is not None else "")
    text = f"The {measure} is best above a score of {two_digits(best)}"
    if metrics.get("data") == files.settings.get("data"):
        return element(
            "p", f"{text}: ", element("code", "regard predict"), " takes this threshold if it is given none."
        )
    return element("p", f"{text}.")


def _score_tables(stats: dict[str, float | None]) -> list[Html | None]:
    """Return the scores of segments, of masks and boxes beside each other, and all others."""
    rest, parts = dict(stats), list[Html | None]()
    if "PQ" in rest:
        endings = {name.removeprefix("PQ"): words for name, words in _OF_CLASSES.items() if name in rest}
        rows = [[name, *(percent(rest.pop(name + end, None)) for end in endings)] for name in ("PQ", "SQ", "RQ")]
        parts.append(table(rows, ["segments", *endings.values()]))
    if "AP" in rest:
        names = [name for name in rest if re.fullmatch(r"A[PR]\w*", name)]
        kinds = {"mask_": "masks", "": "boxes"} if "mask_AP" in rest else {"": "boxes"}
        rows = [[name, *(percent(rest.pop(kind + name, None)) for kind in kinds)] for name in names]
        parts.append(table(rows, ["score", *kinds.values()]))
    return [*parts, table([(name, _number(name, value)) for name, value in rest.items()])]


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
