"""Learning rate schedules."""

from __future__ import annotations

import math

from regard.training.config import TrainingConfig

# DeiT's recipes: number of warm-up epochs and the first learning rate (timm 0.3.2 as DeiT's main.py calls it).
DEIT_WARMUP, DEIT_WARMUP_LR = 5, 1e-6


def learning_rate_factor(config: TrainingConfig, *, step: int, progress: float) -> float:
    """Return the factor by which `config.lr` is multiplied at a step.

    The schedule `step` divides by ten at each fraction of the training in `milestones` (DETR: epoch 200 of 300). The
    schedule `cosine` falls to 0 along half a period. Both rise linearly from 0 over the first `warmup_steps` steps and
    over the first fraction `warmup_share` of the training. The schedules `deit` and `deit_corrected` change once per
    epoch and have their own warm-up, see `deit_learning_rate`.

    Args:
        config: settings of the run.
        step: optimizer steps done.
        progress: fraction of the training that is done, 0..1.
    """
    if config.schedule.startswith("deit"):
        epoch = min(int(progress * config.epochs + 1e-9), config.epochs - 1)
        published = config.schedule == "deit"
        return deit_learning_rate(epoch, config.epochs, config.lr, config.min_lr, published=published) / config.lr
    warmup = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    if progress < config.warmup_share:
        warmup *= progress / config.warmup_share
    if config.schedule == "step":
        return warmup * 0.1 ** sum(progress >= share - 1e-9 for share in config.milestones)
    return warmup * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def deit_learning_rate(epoch: int, epochs: int, lr: float, min_lr: float = 1e-5, *, published: bool = True) -> float:
    """Return the learning rate of an epoch in DeiT's recipe: 5 epochs of linear warm-up from 1e-6, then a cosine.

    The cosine counts all epochs, including those of the warm-up. The authors' main.py advances the schedule after each
    epoch with a number that counts from 0, so the first two epochs have the same rate: epoch e has the rate of e - 1.

    Args:
        epoch: number of the epoch, from 0.
        epochs: number of epochs of the run.
        lr: peak learning rate, towards which the warm-up rises.
        min_lr: learning rate towards which the cosine falls.
        published: True delays the schedule by one epoch, as in the authors' code; False does not.
    """
    if published:
        epoch = max(0, epoch - 1)
    if epoch < DEIT_WARMUP:
        return DEIT_WARMUP_LR + epoch * (lr - DEIT_WARMUP_LR) / DEIT_WARMUP
    return min_lr + 0.5 * (lr - min_lr) * (1 + math.cos(math.pi * epoch / epochs))
