"""Learning rates, parameter groups and the moving average of the weights."""

from __future__ import annotations

import copy
import itertools
import math

import torch
from torch import Tensor, nn

from regard.training.config import TrainingConfig

# Of DeiT's recipes: epochs of warm-up, and its first rate (timm 0.3.2 as main.py calls it).
DEIT_WARMUP, DEIT_WARMUP_LR = 5, 1e-6


def learning_rate_factor(config: TrainingConfig, *, step: int, progress: float) -> float:
    """Return the factor of the learning rate at a step, by `config.schedule`.

    `step` divides by ten at each of the shares `milestones` of the training (DETR: epoch 200 of 300); `cosine` falls
    to 0 along half a wave; `deit` and `deit_corrected` change once per epoch, see `deit_learning_rate`, and have their
    own warm-up.

    Args:
        config: settings of the run. The factor rises linearly from 0 over `warmup_steps` steps and over the share
            `warmup_share` of the training.
        step: steps done.
        progress: share of the training that is done, 0..1.
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
    """The learning rate of an epoch as DeiT trains: 5 epochs of linear warm-up from 1e-6, then a cosine.

    The cosine runs over all epochs, those of the warm-up too. In the authors' main.py the schedule steps after the
    epoch has ended and counts from 0, so that the first rate serves for two epochs: epoch e has the rate of e - 1.

    Args:
        epoch: from 0.
        epochs: of the run.
        lr: highest rate.
        min_lr: that to which the cosine falls.
        published: with the epoch that comes twice; False: each epoch has its own rate.
    """
    if published:
        epoch = max(0, epoch - 1)
    if epoch < DEIT_WARMUP:
        return DEIT_WARMUP_LR + epoch * (lr - DEIT_WARMUP_LR) / DEIT_WARMUP
    return min_lr + 0.5 * (lr - min_lr) * (1 + math.cos(math.pi * epoch / epochs))


def parameter_groups(
    model: nn.Module, lr: float, lr_backbone: float, weight_decay: float = 0.0, decay: str = "all"
) -> list[dict]:
    """Parameters by learning rate and weight decay. Frozen ones are left out.

    A backbone has a learning rate of its own; a rate of 0 freezes it, as in DETR's main.py.

    Args:
        decay: what `weight_decay` is for: `all` parameters, as DETR trains, or `matrices`: not for biases,
            normalisation and parameters of the names in `model.no_weight_decay`, as DeiT trains.
    """
    if lr_backbone == 0:
        for name, parameter in model.named_parameters():
            if name.startswith("backbone."):
                parameter.requires_grad_(False)
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    spared: frozenset[str] = getattr(model, "no_weight_decay", frozenset())
    groups = []
    for in_backbone, is_spared in itertools.product((False, True), repeat=2):
        chosen = [
            p
            for name, p in named
            if name.startswith("backbone.") == in_backbone
            and (decay == "matrices" and (p.ndim <= 1 or name.rpartition(".")[2] in spared)) == is_spared
        ]
        rate, share = lr_backbone if in_backbone else lr, 0.0 if is_spared else weight_decay
        if chosen:
            groups.append({"params": chosen, "lr": rate, "initial_lr": rate, "weight_decay": share})
    return groups


class MovingAverage:
    """Exponential moving average of a model's weights; it is what gets evaluated and kept as the result.

    Args:
        model: the model to follow.
        decay: share of the average that stays at each step. It rises to this value over the first steps, so that the
            random start is forgotten at once.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move towards `model`; `step` counts from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        ours, theirs = self._values(self.model), self._values(model)
        floats = [i for i, value in enumerate(ours) if value.is_floating_point()]
        torch._foreach_lerp_([ours[i] for i in floats], [theirs[i] for i in floats], 1 - decay)
        for i in set(range(len(ours))) - set(floats):
            ours[i].copy_(theirs[i])

    def _values(self, model: nn.Module) -> list[Tensor]:
        return list(model.state_dict().values())
