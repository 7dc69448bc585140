"""LAMB against timm's, and against its formula."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from regard.training.lamb import Lamb
from regard.training.optimizer_state import load_optimizer, optimizer_tensors


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(7, 5), nn.LayerNorm(5), nn.Linear(5, 3))


def groups(net: nn.Module) -> list[dict]:
    matrices = [p for p in net.parameters() if p.ndim > 1]
    return [
        {"params": matrices, "weight_decay": 0.05},
        {"params": [p for p in net.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]


def train(net: nn.Sequential, optimizer: torch.optim.Optimizer, steps: int, start: int = 0) -> None:
    for step in range(start, start + steps):
        x = torch.randn(4, 7, generator=torch.Generator().manual_seed(step)).to(net[0].weight.dtype)
        optimizer.zero_grad()
        net(x).square().sum().backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()


def test_as_timm():
    optim = pytest.importorskip("timm.optim")
    ours, theirs = model().double(), model().double()
    train(ours, Lamb(groups(ours), 1e-2), 20)
    train(theirs, optim.Lamb(groups(theirs), 1e-2, eps=1e-8, max_grad_norm=None), 20)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_the_first_step():
    """m' = g and v' = g g: u = sign(g) + decay w, and the step has the length lr |w|."""
    w, g = torch.tensor([[3.0, -4.0]], dtype=torch.float64), torch.tensor([[0.5, 2.0]], dtype=torch.float64)
    parameter = nn.Parameter(w.clone())
    parameter.grad = g
    Lamb([parameter], 0.1, weight_decay=0.2, eps=0.0).step()
    u = torch.tensor([[1 + 0.2 * 3, 1 - 0.2 * 4]], dtype=torch.float64)
    torch.testing.assert_close(parameter.detach(), w - 0.1 * 5 / u.norm() * u)


def test_parameters_of_zero_move():
    parameter = nn.Parameter(torch.zeros(2, 2))
    parameter.grad = torch.ones(2, 2)
    Lamb([parameter], 0.1, weight_decay=0.2).step()
    assert torch.allclose(parameter, torch.tensor(-0.1))


def test_it_goes_on_bit_for_bit():
    whole, half = model(), model()
    train(whole, Lamb(groups(whole), 1e-2), 6)
    optimizer = Lamb(groups(half), 1e-2)
    train(half, optimizer, 3)
    kept = {name: tensor.clone() for name, tensor in optimizer_tensors(optimizer, half.named_parameters()).items()}
    resumed = copy.deepcopy(half)
    again = Lamb(groups(resumed), 1e-2)
    load_optimizer(again, resumed.named_parameters(), kept)
    train(resumed, again, 3, start=3)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
