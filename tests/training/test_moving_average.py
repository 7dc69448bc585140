"""Averages of weights against their formula and torch's own."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from regard.training.moving_average import MovingAverage


def walk(model: nn.Module, generator: torch.Generator) -> None:
    """A step of some training: weights and running means move."""
    model(torch.randn(4, 3, generator=generator))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn(parameter.shape, generator=generator)


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def test_average_is_that_of_torch():
    """Past its first steps, in which the decay rises."""
    model, decay, late = small(), 0.7, 10**6
    ours = MovingAverage(model, decay)
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
    theirs.update_parameters(model)  # the first copies
    ours.update(model, late)
    generator = torch.Generator().manual_seed(1)
    for _ in range(25):
        walk(model, generator)
        ours.update(model, late)
        theirs.update_parameters(model)
    found, expected = ours.model.state_dict(), theirs.module.state_dict()
    assert found.keys() == expected.keys() and int(found["1.num_batches_tracked"]) == 25
    for name, value in expected.items():
        if value.is_floating_point():  # torch averages counts, too; ours are those of the model
            torch.testing.assert_close(found[name], value, msg=name)


def test_average_by_the_formula():
    """a <- d a + (1 - d) w with d = min(decay, (1 + t) / (10 + t)), in exact arithmetic of the weights so far."""
    model = nn.Linear(1, 1, bias=False).double()
    average = MovingAverage(model, 0.97)
    expected = model.weight.item()
    generator = torch.Generator().manual_seed(2)
    for step in range(400):
        with torch.no_grad():
            model.weight += torch.randn(1, 1, generator=generator, dtype=torch.float64)
        average.update(model, step)
        share = min(0.97, (1 + step) / (10 + step))
        expected = share * expected + (1 - share) * model.weight.item()
        assert math.isclose(float(average.model.weight), expected, rel_tol=1e-9, abs_tol=1e-9)


def test_the_random_start_is_forgotten():
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 1000.0)
    average = MovingAverage(model, 0.9999)
    nn.init.constant_(model.weight, 1.0)
    for step in range(100):
        average.update(model, step)
    assert float(average.model.weight) == pytest.approx(1.0, abs=1e-3)


def test_the_average_is_apart():
    model = small().train()
    average = MovingAverage(model, 0.5)
    walk(model, torch.Generator().manual_seed(3))
    before = [p.detach().clone() for p in model.parameters()]
    average.update(model, 0)
    assert model.training and not average.model.training
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert not any(p.requires_grad for p in average.model.parameters())
