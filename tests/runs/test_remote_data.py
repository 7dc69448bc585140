"""Trainings on shards at an address: the weights are those of the folder, to the bit, also after a stop."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
import torch
from PIL import Image
from torch import Tensor

import regard
from class_data import write_shard
from color_data import COLORS, color_image
from file_server import FileServer, serving
from refusals import refused
from regard.errors import ConfigError, MachineError, Stopped
from regard.runs.classification_task import ClassificationTask
from regard.runs.run import Run
from regard.training.checkpoints import newest_checkpoint, read_checkpoint

pytestmark = [
    pytest.mark.usefixtures("blank_charts", "remote_folders"),
    pytest.mark.skipif(sys.platform != "linux", reason="forks processes that load images"),
]

# Two epochs of 5 steps, the last of which has 2 images.
SMALL = (
    "batch_size=4", "model.layers=[1,1,1]", "model.widths=[4,4,4]", "evaluate_every=1", "device=cpu",
    "augmentation=cifar", "lr=0.02", "warmup_steps=0", "epochs=2",
)  # fmt: skip


def colors(numbers: range) -> dict[str, bytes]:
    """Members of a shard, three a number."""
    found = {}
    for number in numbers:
        for label, name in enumerate(COLORS):
            file = io.BytesIO()
            Image.fromarray(color_image(label, number)).save(file, "PNG")
            found[f"{name}/{number}.png"] = file.getvalue()
    return found


@pytest.fixture
def root(tmp_path) -> Path:
    """18 training images in two shards, 6 for validation."""
    write_shard(tmp_path / "data" / "train-0.tar", colors(range(4)))
    write_shard(tmp_path / "data" / "train-1.tar", colors(range(4, 6)))
    write_shard(tmp_path / "data" / "val-0.tar", colors(range(6, 8)))
    return tmp_path / "data"


@pytest.fixture
def server(root) -> Iterator[FileServer]:
    with serving(root) as found:
        yield found


def train(data: str | Path, output: Path, *more: str, resume: bool = False) -> Run:
    if resume:
        return regard.train(output=output, resume=True, quiet=True, overrides=more)
    return regard.train("resnet20", data, output=output, overrides=(*SMALL, *more), quiet=True)


def tensors(run: Path) -> dict[str, dict[str, Tensor]]:
    path = newest_checkpoint(run / "checkpoints")
    assert path is not None and path.name == "step_10"
    return read_checkpoint(path).tensors


def assert_equal(found: Path, wanted: Path) -> None:
    mine, other = tensors(found), tensors(wanted)
    assert mine.keys() == other.keys() and "model" in mine
    for part in mine:
        assert mine[part].keys() == other[part].keys()
        assert all(torch.equal(value, other[part][name]) for name, value in mine[part].items()), part


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask the training to stop in a step."""
    loss, calls = ClassificationTask.loss, iter(range(10**6))

    def stopping(*given):
        if next(calls) == step:
            os.kill(os.getpid(), signal.SIGUSR1)
        return loss(*given)

    monkeypatch.setattr(ClassificationTask, "loss", stopping)


def test_weights_and_scores_are_those_of_the_folder(root, server, tmp_path, monkeypatch):
    """Images over HTTP are read by two processes, with a fault in each epoch; a stop in the second epoch and going on
    change nothing."""
    monkeypatch.setattr("regard.training.data_loader.worker_count", lambda wanted: wanted)
    wanted = train(root, tmp_path / "local", "workers=0")
    for path in root.iterdir():
        fsspec.filesystem("memory").pipe(f"/data/{path.name}", path.read_bytes())
    found = train("memory://data", tmp_path / "memory", "workers=0")
    assert found.scores == wanted.scores
    assert_equal(found.folder, wanted.folder)
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_at(7, patch)
        train(server.address, tmp_path / "http", "workers=2")
    assert newest_checkpoint(tmp_path / "http" / "checkpoints").name == "step_8"
    server.fails.update({"/train-0.tar": 2, "/train-1.tar": 1, "/val-0.tar": 1})
    resumed = train(server.address, tmp_path / "http", resume=True)
    assert resumed.scores == wanted.scores and not any(server.fails.values())
    assert_equal(resumed.folder, wanted.folder)
    again = regard.evaluate(resumed.folder, workers=0, device="cpu", quiet=True)  # the data of the run
    assert again.stats["top1"] == wanted.scores["top1"]


def test_a_shard_that_changed_since_the_run_began_is_noticed(root, server, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_at(6, patch)
        train(server.address, tmp_path / "run", "workers=0")
    os.utime(write_shard(root / "train-1.tar", colors(range(7, 9))), (1, 1))  # HTTP tells whole seconds
    with refused(ConfigError, tmp_path / "run", "data_may_change=true", code="T19"):
        train(server.address, tmp_path / "run", resume=True)
    train(server.address, tmp_path / "run", "data_may_change=true", resume=True)
    assert tensors(tmp_path / "run")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_server_that_is_gone_is_one_line_with_the_address_of_an_image(root, tmp_path, monkeypatch, workers):
    monkeypatch.setattr("regard.training.data_loader.worker_count", lambda wanted: wanted)
    with serving(root) as server:
        original = ClassificationTask.loss

        def failing(*given):
            server.fails.update({"/train-0.tar": 10**6, "/train-1.tar": 10**6})
            return original(*given)

        monkeypatch.setattr(ClassificationTask, "loss", failing)
        with refused(MachineError, f"{server.address}/train-", ".tar:", ".png", "503", code="I33"):
            train(server.address, tmp_path / "run", f"workers={workers}")
