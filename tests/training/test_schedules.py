"""Learning rates against their formulas and torch's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from regard.recipes import recipe_for
from regard.training.config import TrainingConfig
from regard.training.schedules import deit_learning_rate, learning_rate_factor


def factor_of(kind: str, *, step: int, progress: float, **settings) -> float:
    return learning_rate_factor(TrainingConfig(schedule=kind, **settings), step=step, progress=progress)


@pytest.mark.parametrize(("epochs", "drop", "steps"), [(300, 200, 7), (500, 400, 3), (50, 40, 11)])
def test_step_schedule_is_that_of_torch(epochs, drop, steps):
    """300 epochs with a drop after 200 as in the paper; 500 and 400 as the released models; 50 and 40 to fine-tune."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=drop)
    for epoch in range(epochs):
        for step in range(epoch * steps, (epoch + 1) * steps):
            factor = factor_of(
                "step", step=step, warmup_steps=0, progress=step / (epochs * steps), milestones=(drop / epochs,)
            )
            assert factor == pytest.approx(optimizer.param_groups[0]["lr"]), (epoch, step)
        optimizer.step()
        schedule.step()


def test_cosine_schedule_is_that_of_torch():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=40)
    for step in range(41):
        found = factor_of("cosine", step=step, warmup_steps=0, progress=step / 40)
        assert found == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-7)
        optimizer.step()
        schedule.step()
    assert factor_of("cosine", step=0, warmup_steps=0, progress=1.5) == 0.0  # a clock may run over


@pytest.mark.parametrize("kind", ["step", "cosine"])
def test_warm_up_rises_in_equal_steps_below_the_schedule(kind):
    plain = [factor_of(kind, step=s, warmup_steps=0, progress=s / 20) for s in range(20)]
    warmed = [factor_of(kind, step=s, warmup_steps=8, progress=s / 20) for s in range(20)]
    assert warmed == pytest.approx([p * min(1.0, (s + 1) / 8) for s, p in enumerate(plain)])
    assert warmed[8:] == plain[8:] and 0 < warmed[0] < warmed[7]


def test_several_drops_are_those_of_torch():
    """ImageNet as in Bello et al. 2019: 100 epochs, a tenth after 30, 60, 80 and 90."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[30, 60, 80, 90])
    for epoch in range(100):
        milestones = (0.3, 0.6, 0.8, 0.9)
        factor = factor_of("step", step=0, warmup_steps=0, progress=epoch / 100, milestones=milestones)
        assert factor == pytest.approx(optimizer.param_groups[0]["lr"]), epoch
        optimizer.step()
        schedule.step()
    assert factor_of("step", step=0, warmup_steps=0, progress=1.0, milestones=()) == 1.0


@pytest.mark.parametrize("kind", ["step", "cosine"])
def test_warm_up_over_a_share_of_the_training(kind):
    plain, warmed = (
        [factor_of(kind, step=s, warmup_steps=0, progress=s / 40, warmup_share=w) for s in range(41)]
        for w in (0.0, 0.25)
    )
    assert warmed == pytest.approx([p * min(1.0, s / 10) for s, p in enumerate(plain)]) and warmed[10:] == plain[10:]


def test_the_drop_of_the_paper_is_where_the_recipe_says():
    recipe = recipe_for("detr_resnet50")
    factors = [
        factor_of(
            recipe.schedule,
            step=0,
            warmup_steps=recipe.warmup_steps,
            progress=e / recipe.epochs,
            milestones=recipe.milestones,
        )
        for e in range(recipe.epochs)
    ]
    assert len(factors) == 300 and factors.index(0.1) == 200 and set(factors) == {1.0, 0.1}


# DeiT


def test_the_published_learning_rates_of_deit():
    """main.py with timm 0.3.2's scheduler at a rate of 1e-3: the first rate serves for two epochs."""
    published = {
        0: 1e-6, 1: 1e-6, 2: 2.008e-4, 3: 4.006e-4, 4: 6.004e-4, 5: 8.002e-4, 6: 9.99322e-4, 150: 5.10184e-4,
        299: 1.01086e-5,
    }  # fmt: skip
    for epoch, rate in published.items():
        assert deit_learning_rate(epoch, 300, 1e-3) == pytest.approx(rate, rel=1e-5)
    for epoch in range(299):
        corrected = deit_learning_rate(epoch, 300, 1e-3, published=False)
        assert corrected == pytest.approx(deit_learning_rate(epoch + 1, 300, 1e-3), rel=1e-12)


@pytest.mark.parametrize("kind", ["deit", "deit_corrected"])
def test_the_rate_of_deit_changes_with_the_epoch(kind):
    """Whatever the steps of an epoch, and at a restart anywhere."""
    for steps in (1, 3, 7, 1251):
        for epoch in (0, 1, 2, 6, 299):
            for step in (epoch * steps, epoch * steps + steps - 1):
                factor = factor_of(kind, step=step, warmup_steps=0, progress=step / (300 * steps), epochs=300, lr=1e-3)
                expected = deit_learning_rate(epoch, 300, 1e-3, published=kind == "deit")
                assert factor * 1e-3 == pytest.approx(expected, rel=1e-12)
