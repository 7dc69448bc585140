"""The loop on a task of a few numbers: what it reaches, and what an interruption changes (nothing)."""

import json
import os
import signal
from dataclasses import replace

import pytest
import torch
from torch import nn

from regard.errors import ConfigError, DivergedError
from regard.training.checkpoints import newest_checkpoint, read_checkpoint
from regard.training.distributed import Processes
from regard.training.loop import Stopped, Trainer, TrainingConfig
from regard.training.reports import Reporter, read_rows
from regard.training.schedules import MovingAverage, learning_rate_factor, parameter_groups

CONFIG = TrainingConfig(
    epochs=3, batch_size=4, lr=0.05, lr_backbone=0.05, clip_norm=1.0, ema=0.9, schedule="cosine", warmup_steps=2,
    seed=7, workers=0, log_every=2, device="cpu",
)  # fmt: skip


class Line:
    """Fit y = 2x + 1 with a layer that drops inputs, so that random numbers matter."""

    batches_per_epoch = 6
    score = "fit"

    def __init__(self, at_step=None):
        self.at_step = at_step or {}
        self.step = 0
        self.seen = []

    def batches(self, start):
        while True:
            generator = torch.Generator().manual_seed(start)
            yield start, torch.randn(4, 3, generator=generator)
            start += 1

    def loss(self, model, batch):
        number, x = batch
        self.seen.append(number)
        action = self.at_step.get(number)
        if action:
            x = action(x)
        loss = (model(x) - (2 * x.sum(1, keepdim=True) + 1)).square().mean()
        return loss, {"loss_line": loss}

    def describe(self, batch):
        return f"sample {batch[0]}"

    def evaluate(self, model, step):
        x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            return {"fit": -float((model(x) - (2 * x.sum(1, keepdim=True) + 1)).square().mean())}


def trainer(run, task=None, config=CONFIG):
    torch.manual_seed(0)
    run.mkdir(exist_ok=True)
    model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.2), nn.Linear(8, 1))
    reporter = Reporter(run, log_every=config.log_every, images_per_step=4, quiet=True)
    return Trainer(model, task or Line(), config, run, Processes(0, 1, torch.device("cpu")), {"note": 1}, reporter)


def state_of(run):
    found = read_checkpoint(newest_checkpoint(run / "checkpoints"))
    return found.tensors, {**found.state["progress"], "seconds": None}


def metrics_of(run):
    return [{k: v for k, v in row.items() if k != "images_per_second"} for row in read_rows(run / "metrics.jsonl")]


def same(a, b):
    return a.keys() == b.keys() and all(
        a[part].keys() == b[part].keys() and all(torch.equal(a[part][n], b[part][n]) for n in a[part]) for part in a
    )


def test_it_learns_and_leaves_a_record(tmp_path):
    done = trainer(tmp_path).fit()
    assert done.step == 18 and done.best_step is not None
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert rows[-2]["train/loss"] < rows[0]["train/loss"] / 2
    assert [row["step"] for row in rows if "val/fit" in row] == [6, 12, 18]
    assert (tmp_path / "metrics.csv").read_text().startswith("step,epoch,train/loss")
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert f"step_{done.best_step}" in names and "step_18" in names


@pytest.mark.parametrize("step", [1, 5, 6, 7, 13])
def test_resume_after_a_signal_reaches_the_same_weights(tmp_path, step):
    trainer(tmp_path / "whole").fit()

    def stop(x):
        os.kill(os.getpid(), signal.SIGTERM)
        return x

    run = tmp_path / "parts"
    with pytest.raises(Stopped) as caught:
        trainer(run, Line({step - 1: stop})).fit()
    assert caught.value.exit_code == 143 and f"stopped at step {step}" in str(caught.value)
    second = trainer(run)
    assert second.resume() and second.progress.step == step
    second.fit()
    (tensors, progress), (others, other_progress) = state_of(tmp_path / "whole"), state_of(run)
    assert same(tensors, others) and progress == other_progress


def test_a_crash_between_checkpoints_changes_nothing(tmp_path):
    trainer(tmp_path / "whole").fit()

    def crash(x):
        raise KeyboardInterrupt

    run = tmp_path / "parts"
    with pytest.raises(KeyboardInterrupt):
        trainer(run, Line({15: crash})).fit()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 16, "tra')  # half a line, as a kill may leave it
    second = trainer(run)
    assert second.resume() and second.progress.step == 12
    second.fit()
    assert same(state_of(tmp_path / "whole")[0], state_of(run)[0])
    assert metrics_of(tmp_path / "whole") == metrics_of(run)


def test_resume_keeps_the_memory_order_of_the_optimizer(tmp_path):
    """Convolutions in channels-last order: a fused optimizer with state in another order moves the wrong weights."""

    class Pictures(Line):
        def loss(self, model, batch):
            x = batch[1][:, :, None, None].expand(-1, -1, 5, 5)
            loss = (model[0].conv(x.contiguous()) - x.sum(1, keepdim=True)).square().mean()
            return loss, {"loss_line": loss}

        def evaluate(self, model, step):
            return {"fit": 0.0}

    def with_conv(run):
        job = trainer(run, Pictures())
        model = nn.Sequential(nn.Module())
        torch.manual_seed(0)
        model[0].conv = nn.Conv2d(3, 4, 3, padding=1).to(memory_format=torch.channels_last)
        return Trainer(model, job.task, job.config, run, job.processes, {}, job.reporter)

    with_conv(tmp_path / "whole").fit()
    half = with_conv(tmp_path / "parts")
    half.total_steps = 6
    half.fit()
    second = with_conv(tmp_path / "parts")
    assert second.resume()
    for name in ("exp_avg", "exp_avg_sq"):
        weight = second.model[0].conv.weight
        assert second.optimizer.state[weight][name].stride() == weight.stride()


def test_sigint_leaves_with_130(tmp_path):
    def stop(x):
        os.kill(os.getpid(), signal.SIGINT)
        return x

    with pytest.raises(Stopped) as caught:
        trainer(tmp_path, Line({2: stop})).fit()
    assert caught.value.exit_code == 130
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler  # put back


def test_nan_loss_names_step_and_samples_and_touches_nothing(tmp_path):
    job = trainer(tmp_path, Line({8: lambda x: x * float("nan")}))
    with pytest.raises(DivergedError) as caught:
        job.fit()
    assert "step 8" in str(caught.value) and "sample 8" in str(caught.value) and caught.value.exit_code == 5
    assert all(p.isfinite().all() for p in job.model.parameters())
    assert state_of(tmp_path)[1]["step"] == 6


def test_accumulating_halves_equals_the_whole_batch(tmp_path):
    class Halves(Line):
        batches_per_epoch = 12

        def batches(self, start):
            for number, x in Line.batches(self, start // 2):
                yield number, x[:2]
                yield number, x[2:]

    plain = replace(CONFIG, clip_norm=0.0)
    one, two = trainer(tmp_path / "a", config=plain), trainer(tmp_path / "b", Halves(), replace(plain, accumulate=2))
    for job in (one, two):
        job.model[1].p = 0.0
        job.fit()
    for a, b in zip(one.model.parameters(), two.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_early_stop(tmp_path):
    class Flat(Line):
        def evaluate(self, model, step):
            return {"fit": 0.5}

    done = trainer(tmp_path, Flat(), replace(CONFIG, epochs=50, patience=2)).fit()
    assert done.step == 3 * 6 and done.best_step == 6


def test_minutes_end_the_training_and_the_schedule(tmp_path):
    job = trainer(tmp_path, config=replace(CONFIG, epochs=10**6, minutes=0.5 / 60, evaluate_every=10**6))
    done = job.fit()
    assert 0.5 <= done.seconds < 3 and done.scores
    assert job.optimizer.param_groups[0]["lr"] < 0.02 * CONFIG.lr


def test_resume_without_checkpoint(tmp_path):
    assert trainer(tmp_path).resume() is False


@pytest.mark.parametrize(
    ("name", "value"),
    [("epochs", 0), ("batch_size", 0), ("lr", 0.0), ("lr", -1.0), ("lr", float("nan")), ("ema", 1.0), ("minutes", 0.0)],
)
def test_settings_are_checked(name, value):
    with pytest.raises(ConfigError, match=name):
        TrainingConfig(**{name: value})


class TestSchedules:
    def test_paper_drops_after_two_thirds(self):
        factors = [
            learning_rate_factor("step", step=e, warmup_steps=0, progress=e / 300, drop_at=2 / 3) for e in range(300)
        ]
        assert factors[:200] == [1.0] * 200 and factors[200:] == [0.1] * 100

    def test_cosine_and_warmup(self):
        assert learning_rate_factor("cosine", step=99, warmup_steps=0, progress=0.5) == pytest.approx(0.5)
        assert learning_rate_factor("cosine", step=99, warmup_steps=0, progress=1.0) == pytest.approx(0.0)
        assert learning_rate_factor("step", step=4, warmup_steps=10, progress=0.0) == pytest.approx(0.5)

    def test_groups(self):
        model = nn.ModuleDict({"backbone": nn.Linear(2, 2), "head": nn.Linear(2, 1)})
        model["backbone"].bias.requires_grad_(False)
        head, backbone = parameter_groups(model, 1e-4, 1e-5)
        assert [p.shape for p in head["params"]] == [(1, 2), (1,)] and head["lr"] == 1e-4
        assert [p.shape for p in backbone["params"]] == [(2, 2)] and backbone["lr"] == 1e-5

    def test_moving_average(self):
        model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        average = MovingAverage(model, 0.9)
        expected = model[0].weight.detach().clone()
        for step in range(100):
            with torch.no_grad():
                model[0].weight += torch.randn(2, 2)
            average.update(model, step)
            decay = min(0.9, (1 + step) / (10 + step))
            expected = decay * expected + (1 - decay) * model[0].weight.detach()
        torch.testing.assert_close(average.model[0].weight, expected)
        assert not average.model.training and not average.model[0].weight.requires_grad


def test_state_is_plain_json(tmp_path):
    trainer(tmp_path).fit()
    path = newest_checkpoint(tmp_path / "checkpoints") / "state.json"
    assert json.loads(path.read_text())["note"] == 1
