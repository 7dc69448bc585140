"""Options of `regard train`. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """How a training starts.

    Args:
        resume: resume the run in --output.
        recipe: auto, paper, finetune, fast, panoptic_boxes, panoptic_masks, small; for classifiers imagenet, cifar,
            deit, deit3, resolution, transfer, augreg, finetune, small.
        config: config.yaml of an earlier run, to train with the same settings.
        teacher: teacher of a classifier: a model name, run or file, regnety_160, timm/NAME, torchvision/NAME.
        profile: measure a dozen steps: profile.txt and pictures/profile.png in the run tell where a step goes.
    """

    resume: bool = False
    recipe: str | None = None
    config: Path | None = None
    teacher: str | None = None
    profile: bool = False
