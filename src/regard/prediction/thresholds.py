"""The minimum score that `predict` takes if it is given none."""

from __future__ import annotations

from typing import TypeGuard

from regard.errors import two_digits
from regard.models.build import Detector, MaskedDetector, Model, predicts_masks
from regard.results.postprocess import segment_threshold

LOW, POOR = 0.1, 0.5  # threshold and measure, 0..1, below which a run's best results have many wrong ones


def makes_segments(net: Model) -> TypeGuard[MaskedDetector]:
    """Return whether predictions of a model are segments: a detector with masks, trained on panoptic annotations."""
    return predicts_masks(net) and net.card.panoptic


def default_threshold(net: Model) -> float:
    """Return the minimum score, 0..1, of what `predict` reports if it is given no threshold."""
    if makes_segments(net):
        return segment_threshold(softmax=not net.config.sigmoid, of_run=net.card.threshold)
    return 0.5 if net.card.threshold is None else net.card.threshold


def threshold_notes(net: Model) -> list[str]:
    """Return which minimum score `predict` takes if it is given none, and why; and a warning if it is very low.

    Empty for a classifier.
    """
    if not isinstance(net, Detector):
        return []
    shown, measure = two_digits(default_threshold(net)), net.card.threshold_measure
    if net.card.threshold is None:
        return [f"threshold {shown}, the default; --threshold sets another"]
    best = "the best" if measure is None else f"the best {measure[0]} ({two_digits(measure[1])})"
    notes = [f"threshold {shown}, {best} on the run's validation images; --threshold sets another"]
    if net.card.threshold < LOW and (measure is None or measure[1] < POOR):
        what = f"so low a threshold as {shown} is usual after few training steps"
        notes.append(f"warning: {what}: many results may be wrong. Train longer, or set --threshold")
    return notes
