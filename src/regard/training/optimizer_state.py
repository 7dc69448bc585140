"""The state of an optimizer as named tensors, so that a checkpoint needs no pickle."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from regard.errors import CheckpointError, ConfigError


def optimizer_tensors(optimizer: torch.optim.Optimizer, parameters: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """The state of an optimiser as flat tensors, named after the parameters and not after their order.

    Keys: `exp_avg/<parameter>` and so on; `untouched/<parameter>` (empty) for a parameter that has had no
    gradient yet; `lr/<group>` (float64) for each parameter group. Other settings of the groups belong to the
    recipe. The tensors are the optimiser's own: save them before its next step.

    Args:
        parameters: `model.named_parameters()`.

    Raises:
        ConfigError: the optimiser keeps state that is not tensors, or parameters that have no name.
    """
    tensors: dict[str, Tensor] = {}
    for index, group in enumerate(optimizer.param_groups):
        tensors[f"lr/{index}"] = torch.tensor(float(group["lr"]), dtype=torch.float64)
    for name, parameter, _ in _named_slots(optimizer, parameters):
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
    """Put what `optimizer_tensors` gave into an optimiser of the same kind; bit for bit, `step` included.

    Nothing is changed where an error is raised.

    Raises:
        CheckpointError: tensors are missing, extra, or of another shape or dtype (K07).
        ConfigError: the optimiser holds parameters that have no name.
    """
    slots = list(_named_slots(optimizer, parameters))
    scalar = torch.empty((), dtype=torch.float64, device="meta")
    wanted = {f"lr/{index}": scalar for index in range(len(optimizer.param_groups))}
    places = {}
    for name, parameter, group in slots:
        if f"untouched/{name}" in tensors:
            wanted[f"untouched/{name}"] = torch.empty(0, device="meta")
            continue
        for key, value in _first_state(optimizer, parameter, group).items():
            wanted[f"{key}/{name}"] = torch.empty_like(value, device="meta")
            places[f"{key}/{name}"] = (parameter, key, value.device)
    _compare(tensors, wanted)
    for _, parameter, _ in slots:
        optimizer.state.pop(parameter, None)
    for full_name, (parameter, key, device) in places.items():
        value = tensors[full_name].to(device, copy=True)
        if value.shape == parameter.shape:
            # In the parameter's own memory order: fused kernels walk both side by side without looking at strides.
            value = torch.empty_like(parameter, dtype=value.dtype, device=device).copy_(value).detach()
        optimizer.state.setdefault(parameter, {})[key] = value
    for index, group in enumerate(optimizer.param_groups):
        rate = tensors[f"lr/{index}"]
        group["lr"] = rate.to(group["lr"]) if isinstance(group["lr"], Tensor) else rate.item()


def _named_slots(
    optimizer: torch.optim.Optimizer, parameters: Iterable[tuple[str, Tensor]]
) -> Iterator[tuple[str, Tensor, dict[str, Any]]]:
    """(name, parameter, group) of every parameter that the optimiser holds."""
    names = {parameter: name for name, parameter in parameters}
    for index, group in enumerate(optimizer.param_groups):
        for parameter in group["params"]:
            if parameter not in names:
                what = f"a parameter of shape {tuple(parameter.shape)} in optimizer group {index} has no name"
                raise ConfigError(what, remedy="pass named_parameters() of the model that it optimizes")
            yield names[parameter], parameter, group


def _first_state(optimizer: torch.optim.Optimizer, parameter: Tensor, group: Mapping[str, Any]) -> dict[str, Tensor]:
    """What the optimiser keeps for a parameter: seen on a stand-in, as state appears with the first step."""
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
