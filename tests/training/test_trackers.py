"""Trackers: TensorBoard for real, the others as fakes with the signatures of the real packages."""

import types
from dataclasses import replace
from typing import ClassVar

import pytest
import torch

from line_task import metrics_of, strict_rows, trainer
from refusals import refused
from regard.config import apply_mapping, apply_overrides, to_mapping
from regard.errors import ConfigError, MachineError
from regard.training import trackers
from regard.training.config import TrainingConfig
from regard.training.reports import Reporter
from regard.training.trackers import check_trackers, flat_settings, start_trackers

SETTINGS = {"lr": 0.1, "model": {"depth": 2}}
FLAT = {"lr": 0.1, "model.depth": 2}


class Recorder:
    """A run of a tracker. wandb 0.31 `Run.log(data, step, commit)`, trackio 0.43 `Run.log(metrics, step)`."""

    id = "id-of-the-tracker"

    def __init__(self, calls):
        self.calls = calls

    def log(self, data, step=None):
        self.calls.append(("log", data, step))

    def finish(self):
        self.calls.append(("finish",))


def fake_wandb(calls):
    def init(entity=None, project=None, dir=None, id=None, name=None, notes=None, tags=None, config=None,
             resume=None):  # fmt: skip
        calls.append(("init", project, name, config, id, resume))
        return Recorder(calls)

    return types.SimpleNamespace(init=init)


def fake_trackio(calls):
    def init(project, name=None, group=None, space_id=None, config=None, resume="never", embed=True):
        calls.append(("init", project, name, config, None, resume))
        return Recorder(calls)

    return types.SimpleNamespace(init=init)


def fake_mlflow(calls):
    def start_run(run_id=None, experiment_id=None, run_name=None, nested=False, tags=None):
        calls.append(("init", run_name, run_id))
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id="id-of-the-tracker"))

    def log_params(params, synchronous=None, run_id=None):
        calls.append(("params", params))

    def log_metrics(metrics, step=None, synchronous=None, run_id=None):
        calls.append(("log", metrics, step))

    def end_run(status="FINISHED"):
        calls.append(("finish",))

    return types.SimpleNamespace(start_run=start_run, log_params=log_params, log_metrics=log_metrics, end_run=end_run)


@pytest.fixture
def install(monkeypatch):
    """Put a fake package in place."""

    def put(name, module):
        monkeypatch.setitem(__import__("sys").modules, name, module)
        module.__spec__ = types.SimpleNamespace(name=name)

    return put


@pytest.mark.parametrize(("name", "fake"), [("wandb", fake_wandb), ("trackio", fake_trackio), ("mlflow", fake_mlflow)])
def test_a_training_is_logged_and_a_resumed_one_goes_on_in_the_same_run(name, fake, tmp_path, install, monkeypatch):
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    monkeypatch.delenv("TRACKIO_PROJECT", raising=False)
    calls = []
    install(name, fake(calls))
    for step in (0, 4):
        tracker = start_trackers([name], tmp_path, SETTINGS, step)[name]
        tracker.log({"train/loss": 0.5}, step + 1)
        tracker.close()
    logged = [("log", {"train/loss": 0.5}, 1), ("finish",), ("log", {"train/loss": 0.5}, 5), ("finish",)]
    assert [call for call in calls if call[0] in ("log", "finish")] == logged
    first, second = (call for call in calls if call[0] == "init")
    if name == "mlflow":
        assert (first, second) == (("init", tmp_path.name, None), ("init", tmp_path.name, "id-of-the-tracker"))
        assert [call for call in calls if call[0] == "params"] == [("params", FLAT)]
    elif name == "wandb":
        assert first == ("init", "regard", tmp_path.name, FLAT, None, "allow")
        assert second == ("init", "regard", tmp_path.name, FLAT, "id-of-the-tracker", "allow")
    else:
        assert first[1] == "regard" and first[2].startswith(f"{tmp_path.name}-") and first[2] == second[2]
        assert (first[3], first[5], second[5]) == (FLAT, "never", "allow")


def test_a_training_that_starts_anew_is_another_run(tmp_path, install):
    calls = []
    install("wandb", fake_wandb(calls))
    for _ in range(2):
        start_trackers(["wandb"], tmp_path, SETTINGS, 0)
    assert [call[4] for call in calls] == [None, None]


def scalars(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}


def test_tensorboard_has_the_rows_of_the_run(tmp_path):
    job = trainer(tmp_path)
    job.reporter = Reporter(tmp_path, log_every=2, images_per_step=4, quiet=True, log_to=["tensorboard"])
    job.fit()
    found = scalars(tmp_path)
    rows = [row for row in strict_rows(tmp_path) if "train/loss" in row]
    assert [step for step, _ in found["train/loss"]] == [row["step"] for row in rows]
    assert [value for _, value in found["train/loss"]] == pytest.approx([row["train/loss"] for row in rows])
    assert [step for step, _ in found["val/fit"]] == [6, 12, 18] and "seconds" not in found


def test_tensorboard_drops_the_steps_that_come_again(tmp_path):
    for start, steps in ((0, (2, 4, 6)), (4, (6, 8))):
        tracker = start_trackers(["tensorboard"], tmp_path, SETTINGS, start)["tensorboard"]
        for step in steps:
            tracker.log({"loss": start + step}, step)
        tracker.close()
    assert scalars(tmp_path)["loss"] == [(2, 2.0), (4, 4.0), (6, 10.0), (8, 12.0)]


def test_no_tracker_unless_asked_for(tmp_path):
    trainer(tmp_path).fit()
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoints", "metrics.csv", "metrics.jsonl"}


class Broken:
    """A tracker whose network goes away after some rows."""

    started: ClassVar[list] = []

    def __init__(self, run, settings, step):
        self.rows = []
        self.started.append(self)

    def log(self, numbers, step):
        if len(self.rows) == 3:
            raise ConnectionResetError("the network\nwent away")
        self.rows.append(step)

    def close(self):
        raise AssertionError("it failed: it is not called again")


def test_a_tracker_that_fails_is_left_out_with_one_warning(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(trackers.ADAPTERS, "wandb", Broken)
    monkeypatch.setattr(trackers, "check_trackers", lambda names: None)
    trainer(tmp_path / "plain").fit()
    job = trainer(tmp_path / "run")
    job.reporter = Reporter(tmp_path / "run", log_every=2, images_per_step=4, log_to=["wandb"])
    assert job.fit().step == 18
    assert metrics_of(tmp_path / "run") == metrics_of(tmp_path / "plain")
    lines = [line for line in capsys.readouterr().err.splitlines() if "wandb" in line]
    assert len(lines) == 1 and lines[0].startswith("warning: ") and "the network" in lines[0]
    assert Broken.started[0].rows == [2, 4, 6]


def test_a_tracker_that_cannot_start_is_said_before_training(tmp_path, install):
    def init(**_):
        raise RuntimeError("not logged in")

    calls = []
    install("mlflow", fake_mlflow(calls))
    install("wandb", types.SimpleNamespace(init=init))
    with refused(MachineError, "wandb", "not logged in", code="T15"):
        start_trackers(["mlflow", "wandb"], tmp_path, SETTINGS, 0)
    assert calls[-1] == ("finish",)  # the one that had started is closed


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with refused(MachineError, "log_to=trackio", "pip install trackio", code="T15"):
        check_trackers(["trackio"])


def test_the_setting():
    config = TrainingConfig()
    assert config.log_to is None
    for word in ("log_to=wandb,mlflow", "log_to=[wandb, mlflow]", "log_to=wandb, mlflow"):
        assert apply_overrides(config, [word]).log_to == ("wandb", "mlflow")
    assert apply_mapping(config, {"log_to": ["trackio"]}).log_to == ("trackio",)
    assert apply_overrides(replace(config, log_to=("wandb",)), ["log_to=none"]).log_to is None
    assert to_mapping(replace(config, log_to=("wandb",)))["log_to"] == ["wandb"]
    with refused(ConfigError, "wandb", code="C02"):
        apply_overrides(config, ["log_to=wand"])
    with refused(ConfigError, "wandb", code="C02"):
        replace(config, log_to=("wand",))


def test_nested_settings_by_dotted_name():
    assert flat_settings({"a": 1, "b": {"c": {"d": None}, "e": [1]}}) == {"a": 1, "b.c.d": None, "b.e": [1]}


def test_numbers_that_are_not_known_are_left_out(tmp_path, install):
    calls = []
    install("wandb", fake_wandb(calls))
    reporter = Reporter(tmp_path, log_every=1, images_per_step=1, quiet=True, log_to=["wandb"])
    with reporter.training(0, 0.0, 4):
        reporter.step(1, 0.1, 0.25, {"loss": torch.tensor(1.0), "grad_norm": torch.tensor(float("inf"))})
    assert calls[1] == ("log", {"train/loss": 1.0, "images_per_second": 10.0}, 1)
