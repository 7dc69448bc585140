"""Learning rates, parameter groups and the moving average of the weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def learning_rate_factor(
    kind: str,
    *,
    step: int,
    warmup_steps: int,
    progress: float,
    drop_at: Sequence[float] = (2 / 3,),
    warmup_share: float = 0.0,
) -> float:
    """What to multiply the learning rate with.

    Args:
        kind: `step` divides by ten whenever one of the shares `drop_at` of the training is done (DETR: epoch 200 of
            300); `cosine` falls to nothing along half a wave.
        step: steps done; over the first `warmup_steps` the factor rises from 0 linearly.
        progress: share of the training that is done, 0..1.
        warmup_share: share of the training over which the factor rises from 0 linearly.
    """
    warmup = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    if progress < warmup_share:
        warmup *= progress / warmup_share
    if kind == "step":
        return warmup * 0.1 ** sum(progress >= share - 1e-9 for share in drop_at)
    return warmup * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def parameter_groups(model: nn.Module, lr: float, lr_backbone: float) -> list[dict]:
    """The authors' two groups: the backbone has a learning rate of its own. Frozen parameters are left out.

    A rate of 0 freezes the backbone, as in the authors' main.py.
    """
    if lr_backbone == 0:
        for name, parameter in model.named_parameters():
            if name.startswith("backbone."):
                parameter.requires_grad_(False)
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    backbone = [p for name, p in named if name.startswith("backbone.")]
    rest = [p for name, p in named if not name.startswith("backbone.")]
    groups = [{"params": rest, "lr": lr}, {"params": backbone, "lr": lr_backbone}]
    return [{**group, "initial_lr": group["lr"]} for group in groups if group["params"]]


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
