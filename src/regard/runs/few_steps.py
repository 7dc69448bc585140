"""A training of few steps: how many a model needs, and a warning that says how to have them.

The numbers are those from which on a model has learned something, not those of a good one. Detectors were measured
for the recipe `auto` (docs/results); classifiers on 240 images of four classes of CIFAR-10: efficientnet_lite0 with
ImageNet weights was right in 50 % after 8 steps and 72 after 32, resnet20 with attention from random weights in 42 %
after 12 steps, 57 after 24 and 65 after 48.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from regard.errors import IS, counted
from regard.training.loop import Trainer


class Enough(NamedTuple):
    """The optimizer steps that a kind of model needs. model: in words."""

    model: str
    steps: int


DETECTOR = Enough("detector", 300)
CLASSIFIER = Enough("classifier from random weights", 100)
FINE_TUNED = Enough("fine-tuned classifier", 30)


def few_ahead(enough: Enough, trainer: Trainer) -> list[str]:
    """Return a warning if the epochs of a training make few steps; nothing otherwise."""
    if trainer.total_steps >= enough.steps:
        return []
    epochs = math.ceil(enough.steps / trainer.steps_per_epoch)
    what = f"{counted(trainer.total_steps, 'step', verb=IS)} few for a {enough.model}"
    return [f"warning: {what}: set epochs={epochs} or more"]


def few_done(enough: Enough, trainer: Trainer) -> list[str]:
    """Return a warning if a finished training made few steps and `few_ahead` could not know; nothing otherwise."""
    steps, config = trainer.progress.step, trainer.config
    if steps >= min(enough.steps, trainer.total_steps):
        return []
    if trainer.ended_by == "patience":
        what = f"{counted(steps, 'step', verb=IS)} few for a {enough.model}"
        stale = f"no score was better for {counted(config.patience, 'evaluation')}"
        return [f"warning: {what}, and {stale}: train again, patience=0"]
    minutes = config.minutes or 0.0
    needed = math.ceil(minutes * enough.steps / max(1, steps))
    what = f"{counted(steps, 'step')} in {counted(minutes, 'minute')} {IS[steps != 1]} few for a {enough.model}"
    faster = ", or on a GPU" if trainer.processes.device.type == "cpu" else ""
    return [f"warning: {what}: train again with minutes={needed} or more{faster}"]
