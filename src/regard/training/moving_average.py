"""The exponential moving average of the weights."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from regard.training.sharding import own_part


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
        return [own_part(value) for value in model.state_dict().values()]
