"""Optimizers that go on bit for bit, and state that does not fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from refusals import refused
from regard.errors import CheckpointError, ConfigError
from regard.training.checkpoint_writer import save_checkpoint
from regard.training.checkpoints import read_checkpoint
from regard.training.optimizer_state import load_optimizer, optimizer_tensors


def small_model() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    model.register_parameter("unused", nn.Parameter(torch.zeros(2)))
    return model


def adamw(model: nn.Module, amsgrad: bool = False, fused: bool = False) -> torch.optim.Optimizer:
    weights = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": weights, "lr": 3e-3}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=1e-2, amsgrad=amsgrad, fused=fused)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, seeds: range) -> None:
    for seed in seeds:
        torch.manual_seed(seed)
        optimizer.zero_grad()
        model(torch.randn(5, 3)).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize(
    "build",
    [adamw, lambda model: adamw(model, amsgrad=True), lambda model: adamw(model, fused=True), sgd],
    ids=["adamw", "amsgrad", "fused", "sgd"],
)
def test_training_goes_on_bit_for_bit(tmp_path: Path, build: Callable[[nn.Module], torch.optim.Optimizer]) -> None:
    straight = small_model()
    optimizer = build(straight)
    train(straight, optimizer, range(3))
    optimizer.param_groups[0]["lr"] = 0.1 / 3
    flat = optimizer_tensors(optimizer, straight.named_parameters())
    path = save_checkpoint(tmp_path, 3, {"model": straight.state_dict(), "optimizer": flat}, {})
    train(straight, optimizer, range(3, 6))

    found = read_checkpoint(path).tensors
    resumed = small_model()
    again = build(resumed)
    resumed.load_state_dict(found["model"])
    load_optimizer(again, resumed.named_parameters(), found["optimizer"])
    assert again.param_groups[0]["lr"] == 0.1 / 3
    assert dict(resumed.named_parameters())["unused"] not in again.state
    back = optimizer_tensors(again, resumed.named_parameters())
    assert back.keys() == found["optimizer"].keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in found["optimizer"].items())
    train(resumed, again, range(3, 6))
    for name, tensor in straight.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name
    ours, theirs = (opt.state_dict()["state"] for opt in (again, optimizer))
    assert ours.keys() == theirs.keys()
    for index, slot in theirs.items():
        assert all(torch.equal(ours[index][key], value) for key, value in slot.items() if value is not None)


def test_optimizer_state_that_does_not_fit_is_named() -> None:
    model = small_model()
    optimizer = adamw(model)
    train(model, optimizer, range(2))
    good = optimizer_tensors(optimizer, model.named_parameters())
    assert "exp_avg/0.weight" in good and "untouched/unused" in good and good["lr/0"].dtype == torch.float64

    cases = {
        "missing exp_avg/0.weight": {k: v for k, v in good.items() if k != "exp_avg/0.weight"},
        "missing step/2.bias": {k: v for k, v in good.items() if k != "step/2.bias"},
        "missing lr/1": {k: v for k, v in good.items() if k != "lr/1"},
        "unexpected exp_avg/9.bias": good | {"exp_avg/9.bias": torch.zeros(2)},
        "exp_avg_sq/0.weight is (4, 4) torch.float32, not (4, 3)": good | {"exp_avg_sq/0.weight": torch.zeros(4, 4)},
        "exp_avg/0.bias is (4,) torch.float64, not (4,) torch.float32": good
        | {"exp_avg/0.bias": torch.zeros(4, dtype=torch.float64)},
        " more": {},
    }
    other = small_model()
    fresh = adamw(other)
    for name, tensors in cases.items():
        with refused(CheckpointError, name, code="K07"):
            load_optimizer(fresh, other.named_parameters(), tensors)
        assert not fresh.state and fresh.param_groups[0]["lr"] == 3e-3
    with refused(CheckpointError, "missing momentum_buffer/0.weight", code="K07"):
        load_optimizer(sgd(other), other.named_parameters(), good)


def test_loading_copies_and_replaces() -> None:
    model = small_model()
    optimizer = adamw(model)
    early = {name: tensor.clone() for name, tensor in optimizer_tensors(optimizer, model.named_parameters()).items()}
    train(model, optimizer, range(2))
    later = {name: tensor.clone() for name, tensor in optimizer_tensors(optimizer, model.named_parameters()).items()}
    other = small_model()
    resumed = adamw(other)
    load_optimizer(resumed, other.named_parameters(), later)
    expected = {name: tensor.clone() for name, tensor in later.items()}
    train(other, resumed, range(2))
    assert all(torch.equal(later[name], tensor) for name, tensor in expected.items())
    load_optimizer(resumed, other.named_parameters(), early)
    assert not resumed.state


def test_optimizers_that_cannot_be_saved() -> None:
    model = small_model()
    optimizer = adamw(model)
    with refused(ConfigError, "(4, 3)", "group 0", "named_parameters()"):
        optimizer_tensors(optimizer, small_model().named_parameters())
    optimizer.state[dict(model.named_parameters())["unused"]]["step"] = 3
    with refused(ConfigError, "AdamW", "step", "int", "unused"):
        optimizer_tensors(optimizer, model.named_parameters())
