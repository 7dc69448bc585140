"""Learning rates and averages against their formulas and torch's own."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from regard.models.build import create
from regard.recipes import recipe_for
from regard.training.config import TrainingConfig
from regard.training.schedules import MovingAverage, deit_learning_rate, learning_rate_factor, parameter_groups

# Learning rates


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


# Parameters


def test_groups_of_a_detector():
    """As in the authors' main.py: everything but the backbone, then the backbone without what is frozen."""
    net = create("detr_resnet18", num_classes=3)
    head, backbone = parameter_groups(net, 1e-4, 1e-5)
    names = {parameter: name for name, parameter in net.named_parameters()}
    body = {names[p] for p in backbone["params"]}
    assert body and all(name.startswith("backbone.body.layer") for name in body)
    assert not any(name.startswith(("backbone.body.layer1", "backbone.body.conv1")) for name in body)
    others = {names[p] for p in head["params"]}
    assert others == {name for name in names.values() if not name.startswith("backbone.")}
    assert (head["lr"], head["initial_lr"], backbone["lr"], backbone["initial_lr"]) == (1e-4, 1e-4, 1e-5, 1e-5)
    assert len(body | others) == sum(p.requires_grad for p in net.parameters())


def test_a_group_without_parameters_is_left_out():
    (group,) = parameter_groups(nn.Linear(2, 1), 0.5, 0.1)
    assert group["lr"] == 0.5 and len(group["params"]) == 2
    model = nn.ModuleDict({"backbone": nn.Linear(2, 2).requires_grad_(False), "head": nn.Linear(2, 1)})
    assert len(parameter_groups(model, 0.5, 0.1)) == 1


def test_a_rate_of_zero_freezes_the_backbone():
    """As `--lr_backbone 0` does in the authors' main.py: weight decay would shrink it else."""
    net = create("detr_resnet18", num_classes=3)
    (head,) = parameter_groups(net, 1e-4, 0.0)
    assert not any(p.requires_grad for p in net.backbone.parameters())
    assert {id(p) for p in head["params"]} == {id(p) for n, p in net.named_parameters() if n[:9] != "backbone."}


# Averages


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


def test_what_deit_does_not_decay():
    """timm 0.3.2: biases, 1-D parameters, positions and the class token, but not the distillation token."""
    from regard.models.configs.vit import ViTConfig
    from regard.models.vit import VisionTransformer

    net = VisionTransformer(
        ViTConfig(image_size=32, patch_size=16, embed_dim=8, num_heads=2, depth=1, distilled=True, layer_scale=0.1)
    )
    groups = parameter_groups(net, 1e-3, 1e-3, 0.05, "matrices")
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    decayed, spared = ({names[id(p)] for p in group["params"]} for group in groups)
    assert [group["weight_decay"] for group in groups] == [0.05, 0.0]
    assert decayed == {
        "dist_token", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "blocks.0.attn.proj.weight",
        "blocks.0.mlp.fc1.weight", "blocks.0.mlp.fc2.weight", "head.weight", "head_dist.weight",
    }  # fmt: skip
    assert decayed | spared == set(names.values())
    (everything,) = parameter_groups(net, 1e-3, 1e-3, 0.05)
    assert len(everything["params"]) == len(names) and everything["weight_decay"] == 0.05
