"""Convert the state of an optimizer to named tensors and back, so that a checkpoint needs no pickle."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from regard.errors import CheckpointError, ConfigError
from regard.training.sharding import divided_like


def optimizer_tensors(optimizer: torch.optim.Optimizer, parameters: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Return the state of an optimizer as a flat dictionary of tensors, by the names of the parameters.

    Keys: `exp_avg/<parameter>`, `step/<parameter>` and so on; `untouched/<parameter>` (empty) for a parameter that has
    had no gradient yet; `lr/<group>` (scalar, float64) for each parameter group. Other settings of
    the groups come from the recipe. The tensors are not copied: save them before the next step. Divided ones stay
    divided.

    Args:
        optimizer: an optimizer whose state consists of tensors.
        parameters: `model.named_parameters()`.

    Raises:
        ConfigError: the optimizer has state that is no tensor, or a parameter that has no name.
    """
    tensors: dict[str, Tensor] = {}
    for index, group in enumerate(optimizer.param_groups):
        tensors[f"lr/{index}"] = torch.tensor(float(group["lr"]), dtype=torch.float64)
    for name, parameter, _ in _named_parameters(optimizer, parameters):
        kept = {key: value for key, value in optimizer.state.get(parameter, {}).items() if value is not None}
        for key, value in kept.items():
            if not isinstance(value, Tensor):
                what = f"{type(optimizer).__name__} keeps {key} as {type(value).__name__}, not as a tensor"
                raise ConfigError(what, where=name, remedy="use an optimizer such as AdamW or SGD")
            tensors[f"{key}/{name}"] = value
        if not kept:
            tensors[f"untouched/{name}"] = torch.zeros(0)
    return tensors


def load_optimizer(
    optimizer: torch.optim.Optimizer, parameters: Iterable[tuple[str, Tensor]], tensors: Mapping[str, Tensor]
) -> None:
    """Load the tensors of `optimizer_tensors` into an optimizer of the same class, bit for bit.

    Args:
        optimizer: the optimizer; unchanged if an error is raised.
        parameters: `model.named_parameters()`.
        tensors: what `optimizer_tensors` returned, each whole.

    Raises:
        CheckpointError: tensors are missing, unexpected, or of another shape or dtype (K07).
        ConfigError: the optimizer has a parameter that has no name.
    """
    named = list(_named_parameters(optimizer, parameters))
    scalar = torch.empty((), dtype=torch.float64, device="meta")
    wanted = {f"lr/{index}": scalar for index in range(len(optimizer.param_groups))}
    places = {}
    for name, parameter, group in named:
        if f"untouched/{name}" in tensors:
            wanted[f"untouched/{name}"] = torch.empty(0, device="meta")
            continue
        for key, value in _initial_state(optimizer, parameter, group).items():
            wanted[f"{key}/{name}"] = torch.empty(value.shape, dtype=value.dtype, device="meta")
            places[f"{key}/{name}"] = (parameter, key, value)
    _compare(tensors, wanted)
    for _, parameter, _ in named:
        optimizer.state.pop(parameter, None)
    for full_name, (parameter, key, like) in places.items():
        value = divided_like(tensors[full_name].to(like.device, copy=True), like)
        if value.shape == parameter.shape:
            # In the memory order of the parameter: fused kernels ignore strides.
            value = torch.empty_like(parameter, dtype=value.dtype, device=like.device).copy_(value).detach()
        optimizer.state.setdefault(parameter, {})[key] = value
    for index, group in enumerate(optimizer.param_groups):
        rate = tensors[f"lr/{index}"]
        group["lr"] = rate.to(group["lr"]) if isinstance(group["lr"], Tensor) else rate.item()


def _named_parameters(
    optimizer: torch.optim.Optimizer, parameters: Iterable[tuple[str, Tensor]]
) -> Iterator[tuple[str, Tensor, dict[str, Any]]]:
    """Yield (name, parameter, group) for each parameter of the optimizer."""
    names = {parameter: name for name, parameter in parameters}
    for index, group in enumerate(optimizer.param_groups):
        for parameter in group["params"]:
            if parameter not in names:
                what = f"a parameter of shape {tuple(parameter.shape)} in optimizer group {index} has no name"
                raise ConfigError(what, remedy="pass named_parameters() of the model that it optimizes")
            yield names[parameter], parameter, group


def _initial_state(optimizer: torch.optim.Optimizer, parameter: Tensor, group: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the state that the optimizer creates for a parameter in its first step, which is run on a zero copy."""
    stand_in = torch.nn.Parameter(torch.zeros_like(parameter))
    stand_in.grad = torch.zeros_like(stand_in)
    options = {key: value for key, value in group.items() if key not in ("params", "param_names")}
    trial = type(optimizer)([{**options, "params": [stand_in]}])  # type: ignore[call-arg]
    trial.step()
    return {key: value for key, value in trial.state[stand_in].items() if isinstance(value, Tensor)}


def _compare(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    kinds = {name: f"{tuple(tensor.shape)} {tensor.dtype}" for name, tensor in wanted.items()}
    have = {name: f"{tuple(tensor.shape)} {tensor.dtype}" for name, tensor in found.items()}
    problems = [f"missing {name}" for name in kinds if name not in have]
    problems += [f"unexpected {name}" for name in have if name not in kinds]
    both = [name for name in kinds if name in have]
    problems += [f"{name} is {have[name]}, not {kinds[name]}" for name in both if have[name] != kinds[name]]
    if problems:
        more = f", and {len(problems) - 4} more" if len(problems) > 4 else ""
        what = f"optimizer state does not fit this model and optimizer: {', '.join(problems[:4])}{more}"
        remedy = "resume with the model and optimizer that the run began with"
        raise CheckpointError(what, remedy=remedy, code="K07")
