"""The report's sections of images: the worst ones, attention over the training, and predictions."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from regard.results.reports.html import Html, element, figure, joined, section
from regard.results.reports.run_files import RunFiles

MAX_STEPS = 10  # evaluations of which attention is shown: the first, the last and some between


def worst_section(files: RunFiles) -> Html | None:
    """Return the images that the model gets most wrong."""
    rows = [row for row in files.worst.get("images") or [] if isinstance(row, dict)]
    folder, names = _below_one_folder([str(row.get("file", "")) for row in rows])
    cards = []
    for row, name in zip(rows, names, strict=True):
        caption = str(row.get("caption", ""))
        path = files.picture(str(row.get("picture", "")).rpartition("/")[2])
        words = Html(f"{element('span', caption).code}<br>{element('code', name).code}")
        cards.append(figure(path, caption, words))
    known = [card for card in cards if card is not None]
    if not known:
        return None
    is_classifier = files.main_score == "top1"
    place = (" Files are in ", element("code", folder), ".") if folder else ()
    about = element("p", f"By {files.worst.get('measure', '')}.", *place, css="note")
    return section("The worst validation images", about, element("div", joined(known), css=_cards(is_classifier)))


def attention_section(files: RunFiles) -> Html | None:
    """Return what the model looks at in the same four images, at several evaluations."""
    found = files.pictures_by_step("attention")
    steps = list(found)
    if len(steps) > MAX_STEPS:
        steps = [steps[round(i * (len(steps) - 1) / (MAX_STEPS - 1))] for i in range(MAX_STEPS)]
    shown = [figure(found[step], f"attention at step {step}", f"step {step:,}") for step in steps]
    if not any(shown):
        return None
    if files.main_score == "top1":
        what = "the attention of the class token through all layers, or what mattered for the class in the last one"
    else:
        what = "the last decoder layer's attention of the query with the highest score, and its box"
    about = f"The same validation images at each evaluation: {what}. Bright is much, dark red is little."
    if len(found) > len(steps):
        about += f" {len(steps)} of {len(found)} evaluations; the others are in the run's folder pictures."
    return section("What the model looks at", element("p", about, css="note"), *shown)


def predictions_section(files: RunFiles) -> Html | None:
    """Return some validation images with predictions: of the best evaluation, or of the last one before it."""
    found = files.pictures_by_step("predictions")
    best = files.best.get("step")
    step = best if best in found else max(found, default=None)
    if step is None:
        return None
    return section("Predictions", figure(found[step], f"predictions at step {step}", f"step {step:,}"))


def _below_one_folder(paths: Sequence[str]) -> tuple[str, list[str]]:
    """Return the folder that all files are in or below, and their paths from there."""
    try:
        folder = os.path.commonpath([str(Path(path).parent) for path in paths])
    except ValueError:  # no paths, or some from the root and some not
        return "", list(paths)
    return folder, [os.path.relpath(path, folder or ".") for path in paths]


def _cards(small: bool) -> str:
    return "cards small" if small else "cards"
