"""The loop on a task of a few numbers: what it reaches, and what an interruption changes (nothing)."""

import json
import os
import signal
import time
from dataclasses import replace

import pytest
import torch
from torch import nn

from line_task import CONFIG, Line, metrics_of, same, state_of, strict_rows, trainer
from refusals import refused
from regard.errors import ConfigError, DataError, DivergedError
from regard.training.checkpoints import newest_checkpoint
from regard.training.loop import Stopped, Trainer, TrainingConfig
from regard.training.optimizer import parameter_groups
from regard.training.reports import read_rows


def test_it_learns_and_leaves_a_record(tmp_path):
    done = trainer(tmp_path).fit()
    assert done.step == 18 and done.best_step is not None
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert rows[-2]["train/loss"] < rows[0]["train/loss"] / 2
    assert [row["step"] for row in rows if "val/fit" in row] == [6, 12, 18]
    assert (tmp_path / "metrics.csv").read_text().startswith("step,epoch,train/loss")
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert f"step_{done.best_step}" in names and "step_18" in names


SGD = replace(CONFIG, optimizer="sgd", momentum=0.9, weight_decay=0.1, warmup_steps=0, warmup_share=0.05)


@pytest.mark.parametrize("config", [CONFIG, SGD], ids=["adamw", "sgd"])
@pytest.mark.parametrize("step", [1, 5, 6, 7, 13, 18])
def test_resume_after_a_signal_reaches_the_same_weights(tmp_path, step, config):
    trainer(tmp_path / "whole", config=config).fit()

    def stop(x):
        os.kill(os.getpid(), signal.SIGTERM)
        return x

    run = tmp_path / "parts"
    with pytest.raises(Stopped) as caught:
        trainer(run, Line({step - 1: stop}), config).fit()
    assert caught.value.exit_code == 143 and f"stopped at step {step}" in str(caught.value)
    second = trainer(run, config=config)
    assert second.resume() and second.progress.step == step
    second.fit()
    (tensors, progress), (others, other_progress) = state_of(tmp_path / "whole"), state_of(run)
    assert same(tensors, others) and progress == other_progress
    assert metrics_of(tmp_path / "whole") == metrics_of(run)


def test_a_signal_ends_an_evaluation_at_once(tmp_path):
    """It may take minutes; a resumed run does it again and is as if nothing had been."""

    class Long(Line):
        def evaluate(self, model, step):
            if step == 12:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(30)
            return super().evaluate(model, step)

    trainer(tmp_path / "a").fit()
    began = time.monotonic()
    with pytest.raises(Stopped) as caught:
        trainer(tmp_path / "b", Long()).fit()
    assert time.monotonic() - began < 20 and caught.value.exit_code == 130
    again = trainer(tmp_path / "b")
    assert again.resume() and (again.progress.step, again.progress.judged_step) == (12, 6)
    again.fit()
    (weights, progress), (weights_again, progress_again) = state_of(tmp_path / "a"), state_of(tmp_path / "b")
    assert same(weights, weights_again) and progress == progress_again
    assert metrics_of(tmp_path / "a") == metrics_of(tmp_path / "b")


def test_an_error_of_an_evaluation_loses_nothing(tmp_path, monkeypatch):
    """The checkpoint before it is that of the same step; with the data put right, the run is as if nothing had been."""

    class Broken(Line):
        def evaluate(self, model, step):
            raise DataError("a validation image is broken")

    monkeypatch.setattr("regard.training.loop.SAVE_BEFORE_EVALUATION", 0.0)
    whole = trainer(tmp_path / "a")
    whole.fit()
    with pytest.raises(DataError):
        trainer(tmp_path / "b", Broken()).fit()
    again = trainer(tmp_path / "b")
    assert again.resume() and again.progress.step == 6 and again.progress.judged_step == 0
    again.fit()
    (weights, progress), (weights_again, progress_again) = state_of(tmp_path / "a"), state_of(tmp_path / "b")
    assert same(weights, weights_again) and progress == progress_again
    assert metrics_of(tmp_path / "a") == metrics_of(tmp_path / "b")


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


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_is_that_of_the_papers(tmp_path, nesterov):
    """v = 0.9 v + g + 0.1 w; w = w - lr v, or as timm's sgd w = w - lr (g + 0.1 w + 0.9 v)."""
    config = replace(SGD, ema=0.0, max_norm=0.0, warmup_share=0.0, nesterov=nesterov)
    job = trainer(tmp_path, config=config)
    weight = job.model[0].weight
    old, velocity = weight.detach().clone(), torch.zeros_like(weight)
    gradients = []
    weight.register_post_accumulate_grad_hook(lambda p: gradients.append(p.grad.clone()))
    batches = job.task.batches(0)
    for step in range(3):
        job.progress.step = step
        lr = job._step(batches, step / 18)["lr"].item()
        gradient = gradients[-1] + 0.1 * old
        velocity = 0.9 * velocity + gradient
        old = old - lr * (gradient + 0.9 * velocity if nesterov else velocity)
        torch.testing.assert_close(weight.detach(), old)


def test_sigint_leaves_with_130(tmp_path):
    def stop(x):
        os.kill(os.getpid(), signal.SIGINT)
        return x

    before = signal.getsignal(signal.SIGINT)  # a shell's background job has it ignored
    with pytest.raises(Stopped) as caught:
        trainer(tmp_path, Line({2: stop})).fit()
    assert caught.value.exit_code == 130
    assert signal.getsignal(signal.SIGINT) is before


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

    plain = replace(CONFIG, max_norm=0.0)
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


class Scores(Line):
    """An evaluation of each epoch, with given scores; the last one of them then stays."""

    def __init__(self, *scores):
        super().__init__()
        self.scores = scores

    def evaluate(self, model, step):
        score = self.scores[min(step // 6, len(self.scores)) - 1]
        return {} if score is None else {"fit": score}


@pytest.mark.parametrize(
    ("scores", "epochs"),
    [
        ((0.5, 0.4), 3),  # two without a better one
        ((0.0, 0.0, 0.0, 0.0, 0.0, 0.2, 0.1), 8),  # counted from the first above 0 on
        ((0.0004, 0.0003, 0.0, 0.0, 0.002, 0.001), 7),  # 0.000 on the screen
        ((0.0,), 12),
        ((None,), 12),  # no score at all
        ((-0.5, -0.6), 3),  # scores may be negative
    ],
)
def test_patience_counts_once_the_score_has_left_0(tmp_path, scores, epochs):
    config = replace(CONFIG, epochs=12, patience=2)
    assert trainer(tmp_path / "whole", Scores(*scores), config).fit().step == 6 * epochs
    parts = tmp_path / "parts"  # stopped after every epoch, and resumed
    for epoch in range(1, epochs + 1):
        job = trainer(parts, Scores(*scores), replace(config, epochs=epoch))
        assert job.resume() == (epoch > 1)
        assert job.fit().step == 6 * epoch
    last = trainer(parts, Scores(*scores), config)
    assert last.resume() and last.is_finished and last.task.seen == []
    (_, state), (_, other) = (state_of(tmp_path / name) for name in ("whole", "parts"))
    assert state == other


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
    with refused(ConfigError, f"{name}=", code="C03"):
        TrainingConfig(**{name: value})


def test_settings_that_contradict_each_other():
    with refused(ConfigError, "schedule", "'cos'", code="C02"):
        TrainingConfig(schedule="cos")
    with refused(ConfigError, "min_lr=0.1", "lr=0.01", code="C09"):
        TrainingConfig(schedule="deit", lr=0.01, min_lr=0.1)
    with refused(ConfigError, "schedule=deit", "warmup_share", code="C09"):
        TrainingConfig(schedule="deit", warmup_share=0.1)
    TrainingConfig(schedule="step", lr=1e-6)  # whose rate falls to 0 whatever min_lr is


def test_state_is_plain_json(tmp_path):
    trainer(tmp_path).fit()
    path = newest_checkpoint(tmp_path / "checkpoints") / "state.json"
    assert json.loads(path.read_text())["note"] == 1


def test_the_best_and_the_last_checkpoint_stay(tmp_path):
    class Falling(Line):
        def evaluate(self, model, step):
            return {"fit": 1.0 if step == 12 else -step / 100}

    done = trainer(tmp_path, Falling(), replace(CONFIG, epochs=6)).fit()
    assert (done.best_step, done.best_score, done.since_best) == (12, 1.0, 4)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step_12", "step_30", "step_36"]


def test_scores_that_are_no_numbers_are_not_best(tmp_path):
    class Odd(Line):
        def evaluate(self, model, step):
            return {"fit": {6: float("nan"), 12: 0.25}.get(step, 0.125), "other": float("inf")}

    done = trainer(tmp_path, Odd()).fit()
    assert done.best_step == 12 and done.scores == {"fit": 0.125}
    rows = strict_rows(tmp_path)
    assert [(row["step"], row["val/fit"]) for row in rows if "val/fit" in row] == [(12, 0.25), (18, 0.125)]


# The step


def gradient_of_first_step(run, config):
    """By plain descent, where a weight's change is its gradient."""
    job = trainer(run, config=replace(config, warmup_steps=0))
    job.optimizer = torch.optim.SGD(parameter_groups(job.model, 1.0, 1.0))
    before = [p.detach().clone() for p in job.model.parameters()]
    logs = job._step(job.task.batches(0), 0.0)
    return torch.cat([(b - p.detach()).flatten() for b, p in zip(before, job.model.parameters(), strict=True)]), logs


def test_clipping(tmp_path):
    free, logs = gradient_of_first_step(tmp_path / "free", replace(CONFIG, max_norm=0.0))
    assert float(free.norm()) == pytest.approx(float(logs["grad_norm"])) and free.norm() > 0.5
    clipped, logs = gradient_of_first_step(tmp_path / "clipped", replace(CONFIG, max_norm=0.25))
    assert float(clipped.norm()) == pytest.approx(0.25, rel=1e-4)
    torch.testing.assert_close(clipped, free * 0.25 / free.norm(), rtol=1e-4, atol=1e-6)
    assert float(logs["grad_norm"]) == pytest.approx(float(free.norm()))  # before clipping


def test_bf16(tmp_path):
    class Watched(Line):
        def loss(self, model, batch):
            kinds.add(model(batch[1]).dtype)
            return super().loss(model, batch)

        def evaluate(self, model, step):
            kinds.add(model(torch.zeros(1, 3)).dtype)
            return super().evaluate(model, step)

    kinds: set = set()
    job = trainer(tmp_path, Watched(), replace(CONFIG, amp="bf16"))
    job.fit()
    assert kinds == {torch.bfloat16, torch.float32}  # evaluation stays in single precision
    assert {p.dtype for p in job.model.parameters()} == {torch.float32}
    rows = [row for row in strict_rows(tmp_path) if "train/loss" in row]
    assert rows[-1]["train/loss"] < rows[0]["train/loss"] / 2


def test_learning_rates_of_a_run(tmp_path):
    rates = []

    class Watched(Line):
        def loss(self, model, batch):
            rates.append(job.optimizer.param_groups[0]["lr"])
            return super().loss(model, batch)

    job = trainer(tmp_path, Watched(), replace(CONFIG, schedule="step", milestones=(2 / 3,), warmup_steps=3))
    job.fit()
    expected = [1 / 3, 2 / 3, *[1.0] * 10, *[0.1] * 6]
    assert rates == pytest.approx([CONFIG.lr * factor for factor in expected])


def test_an_infinite_gradient_stops_as_well(tmp_path):
    def spoil(x):
        job.model[0].weight.register_hook(lambda gradient: gradient * float("inf"))
        return x

    job = trainer(tmp_path, Line({8: spoil}))
    with refused(DivergedError, "gradient", "step 8", code="T07"):
        job.fit()


def test_divergence_leaves_weights_optimizer_and_checkpoints(tmp_path):
    kept = {}

    def spoil(x):
        kept["weights"] = [p.detach().clone() for p in job.model.parameters()]
        kept["average"] = [p.clone() for p in job.result.parameters()]
        kept["files"] = {p: p.read_bytes() for p in tmp_path.rglob("step_*/*")}
        return x * float("nan")

    job = trainer(tmp_path, Line({8: spoil}))
    with pytest.raises(DivergedError):
        job.fit()
    assert all(torch.equal(a, b) for a, b in zip(kept["weights"], job.model.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(kept["average"], job.result.parameters(), strict=True))
    assert kept["files"] == {p: p.read_bytes() for p in tmp_path.rglob("step_*/*")} != {}
    assert {float(s["step"]) for s in job.optimizer.state.values()} == {8.0}


# Going on with other settings


def test_an_early_stop_lasts(tmp_path):
    class Flat(Line):
        def evaluate(self, model, step):
            return {"fit": 0.5}

    config = replace(CONFIG, epochs=50, patience=2)
    trainer(tmp_path, Flat(), config).fit()
    second = trainer(tmp_path, Flat(), config)
    assert second.resume() and second.fit().step == 18
    third = trainer(tmp_path, Flat(), replace(config, patience=3))
    assert third.resume() and third.fit().step == 24


def test_going_on_after_the_end_does_nothing(tmp_path):
    trainer(tmp_path).fit()
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and "tensorboard" not in p.parts}
    again = trainer(tmp_path)
    assert again.resume() and again.fit().step == 18 and again.task.seen == []
    assert before == {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and "tensorboard" not in p.parts}


def test_steps_of_another_size_are_refused(tmp_path):
    """With other numbers of processes, images or batches to a step, the step would stand for another epoch."""

    class Longer(Line):
        batches_per_epoch = 12

    trainer(tmp_path).fit()
    for task, changes, says in (
        (Longer(), {"batch_size": 2}, ("batches", 6, 12)),
        (Line(), {"accumulate": 2}, ("accumulate", 1, 2)),
    ):
        with refused(ConfigError, *says, "processes", code="C13"):
            trainer(tmp_path, task, replace(CONFIG, **changes)).resume()
    same_size = trainer(tmp_path, Line(), replace(CONFIG, epochs=4))
    assert same_size.resume() and same_size.fit().step == 24


def test_an_average_can_begin_late(tmp_path):
    trainer(tmp_path, config=replace(CONFIG, ema=0.0)).fit()
    second = trainer(tmp_path, config=replace(CONFIG, ema=0.9, epochs=4))
    assert second.resume()
    saved = state_of(tmp_path)[0]["model"]
    assert all(torch.equal(saved[name], value) for name, value in second.result.state_dict().items())
    assert second.fit().step == 24 and "ema" in state_of(tmp_path)[0]
