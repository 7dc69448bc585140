"""LAMB (You et al. 2020, algorithm 2): AdamW with a scale per parameter tensor, for batches of thousands."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from regard.training.sharding import own_part, whole_norms


class Lamb(torch.optim.Optimizer):
    """The LAMB optimizer: `w <- w - lr |w| / |u| u` with `u = m' / (sqrt(v') + eps) + weight_decay w`.

    m' and v' are Adam's moments after bias correction. The trust ratio |w| / |u| is 1 for parameters without weight
    decay (biases, normalisation), and where |w| or |u| is 0. This is apex's FusedLAMB, with which DeiT III was trained,
    without its clipping of all gradients to norm 1: the training loop clips by `max_norm`.

    Args:
        params: parameters, or parameter groups.
        lr: learning rate.
        betas: decay rates of the first and second moment, 0..1.
        eps: term added to the denominator.
        weight_decay: decoupled weight decay, added to `u` before the scaling.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update all parameters that have a gradient, without waiting for the device. `closure` must be None."""
        assert closure is None
        for group in self.param_groups:
            learnt = [parameter for parameter in group["params"] if parameter.grad is not None]
            if learnt:
                self._step(learnt, group)

    def _step(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        first, second = group["betas"]
        states = [self._state(parameter) for parameter in parameters]
        gradients = [own_part(parameter.grad) for parameter in parameters if parameter.grad is not None]
        steps, means, squares = (
            [own_part(state[key]) for state in states] for key in ("step", "exp_avg", "exp_avg_sq")
        )
        divided, parameters = parameters[0], [own_part(parameter) for parameter in parameters]
        torch._foreach_add_(steps, 1)
        torch._foreach_lerp_(means, gradients, 1 - first)
        torch._foreach_mul_(squares, second)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - second)
        updates = torch._foreach_div(means, [1 - first ** step.item() for step in steps])
        roots = torch._foreach_sqrt(torch._foreach_div(squares, [1 - second ** step.item() for step in steps]))
        torch._foreach_add_(roots, group["eps"])
        torch._foreach_div_(updates, roots)
        decay = group["weight_decay"]
        if decay:
            torch._foreach_add_(updates, parameters, alpha=decay)
            norms = zip(whole_norms(parameters, divided), whole_norms(updates, divided), strict=True)
            trust = [torch.where((w > 0) & (u > 0), w / u, torch.ones_like(w)) for w, u in norms]
            torch._foreach_mul_(updates, trust)
        torch._foreach_add_(parameters, updates, alpha=-group["lr"])

    def _state(self, parameter: Tensor) -> dict[str, Tensor]:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())  # on the CPU, so that reading it does not wait for the device
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        return state
