"""Learning rate schedules, parameter groups and the exponential moving average of the weights."""

from __future__ import annotations

import copy
import itertools
import math

import torch
from torch import Tensor, nn

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


def parameter_groups(
    model: nn.Module, lr: float, lr_backbone: float, weight_decay: float = 0.0, decay: str = "all"
) -> list[dict]:
    """Return the parameter groups of an optimizer, by learning rate and weight decay, without frozen parameters.

    Args:
        model: the model; parameters whose name starts with `backbone.` belong to the backbone.
        lr: learning rate of all other parameters.
        lr_backbone: learning rate of the backbone; 0 freezes it (`requires_grad` becomes False), as in DETR's main.py.
        weight_decay: weight decay of the parameters that `decay` selects; 0 for others.
        decay: `all` selects all parameters, as DETR does. `matrices` leaves out biases, normalisation and the names in
            `model.no_weight_decay`, as DeiT does.
    """
    if lr_backbone == 0:
        for name, parameter in model.named_parameters():
            if name.startswith("backbone."):
                parameter.requires_grad_(False)
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    no_decay: frozenset[str] = getattr(model, "no_weight_decay", frozenset())
    groups = []
    for in_backbone, is_undecayed in itertools.product((False, True), repeat=2):
        chosen = [
            p
            for name, p in named
            if name.startswith("backbone.") == in_backbone
            and (decay == "matrices" and (p.ndim <= 1 or name.rpartition(".")[2] in no_decay)) == is_undecayed
        ]
        rate, group_decay = lr_backbone if in_backbone else lr, 0.0 if is_undecayed else weight_decay
        if chosen:
            groups.append({"params": chosen, "lr": rate, "initial_lr": rate, "weight_decay": group_decay})
    return groups


class MovingAverage:
    """Exponential moving average (EMA) of a model's weights; evaluations and the final result use it.

    Args:
        model: the model whose weights are averaged.
        decay: fraction of the average that each step keeps, 0..1. It is at most (1 + step) / (10 + step), so that the
            random initial weights lose their influence early.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move the average towards the weights of `model`; `step` counts from 0. Integer buffers are copied."""
        decay = min(self.decay, (1 + step) / (10 + step))
        ours, theirs = self._values(self.model), self._values(model)
        floats = [i for i, value in enumerate(ours) if value.is_floating_point()]
        torch._foreach_lerp_([ours[i] for i in floats], [theirs[i] for i in floats], 1 - decay)
        for i in set(range(len(ours))) - set(floats):
            ours[i].copy_(theirs[i])

    def _values(self, model: nn.Module) -> list[Tensor]:
        return list(model.state_dict().values())
