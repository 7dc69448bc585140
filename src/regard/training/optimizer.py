"""Optimizers and their parameter groups."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import nn

from regard.training.config import TrainingConfig
from regard.training.lamb import Lamb


class SGD(torch.optim.SGD):
    """torch's SGD with a momentum that starts at zero, which gives the same first step: v = 0.9 * 0 + g.

    torch leaves the memory of the momentum to the fused kernel of the first step. If the gradient scaler skips that
    step, because fp16 overflows, nobody writes it, and later steps take what the memory holds.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        for group in self.param_groups:
            learnt = [p for p in group["params"] if p.grad is not None] if group["momentum"] else []
            for parameter in learnt:
                if self.state[parameter].get("momentum_buffer") is None:
                    self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return super().step(closure)


def create_optimizer(model: nn.Module, config: TrainingConfig, fused: bool) -> torch.optim.Optimizer:
    """Return the optimizer that `config` names; `fused` updates all parameters in one kernel where torch has one."""
    groups = parameter_groups(model, config.lr, config.lr_backbone, config.weight_decay, config.decay)
    if config.optimizer == "sgd":
        return SGD(groups, config.lr, momentum=config.momentum, nesterov=config.nesterov, fused=fused)
    if config.optimizer == "lamb":
        return Lamb(groups, config.lr)
    return torch.optim.AdamW(groups, fused=fused)


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
