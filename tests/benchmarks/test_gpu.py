"""The session for a GPU, with its parts on the CPU; and what only a GPU can show: `uv run pytest -m gpu`."""

from __future__ import annotations

import copy
import time
from dataclasses import replace

import pytest
import torch

import regard
from line_task import CONFIG, Line, same, state_of
from refusals import refused
from regard.benchmarks.gpu.__main__ import main
from regard.benchmarks.gpu.correctness import FAMILIES, compare
from regard.benchmarks.gpu.page import page
from regard.benchmarks.gpu.peers import detr_beside_transformers
from regard.benchmarks.gpu.session import Session, read_results
from regard.benchmarks.gpu.steps import detection_step, memory_orders, training_steps
from regard.errors import ConfigError, DataError, MachineError
from regard.models.build import create
from regard.models.memory_order import move_to_device
from regard.structures.transfer import download, upload
from regard.training.distributed import Processes
from regard.training.loop import Trainer
from regard.training.reports import Reporter
from run_files import small_detector

CPU = torch.device("cpu")


def session(folder, device=CPU, seconds=60.0):
    return Session(device, folder, time.monotonic() + seconds)


def test_parts_on_the_cpu(tmp_path):
    now = session(tmp_path)
    for part in (training_steps, memory_orders, detr_beside_transformers):
        now.run(part, 1.0)
    rows = read_results(tmp_path)
    assert not [row for row in rows if "failed" in row]
    steps = [row for row in rows if row["part"] == "training_steps" and "model" in row]
    tried = [(row["amp"], row["channels_last"], row["tf32"]) for row in steps]
    assert tried == [("off", "off", False), ("bf16", "on", True)]
    assert all(row["images_per_s"] == pytest.approx(2000 / row["ms"], rel=0.05) for row in steps)
    assert [row["channels_last"] for row in rows if row["part"] == "memory_orders" and "model" in row] == ["off", "on"]
    text = page(rows)
    assert text.count("\n## ") == 3 and "| detr_tiny | bf16 | on | 2 |" in text


def test_a_part_that_fails_or_has_no_time_leaves_a_row(tmp_path):
    def broken(_):
        raise ValueError("no such kernel")

    session(tmp_path).run(broken, 1.0)
    session(tmp_path, seconds=0.5).run(broken, 1.0)
    first, _, last = read_results(tmp_path)
    assert first["failed"] == "ValueError: no such kernel" and "test_gpu.py:" in first["at"]
    assert last == {"part": "broken", "skipped": "0 seconds are left"}
    with refused(DataError, "no results", "regard.benchmarks.gpu"):
        read_results(tmp_path / "none")


def test_refusals(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with refused(MachineError, "no cuda device", code="C10"):
        main(["--output", str(tmp_path / "new")])
    (tmp_path / "notes.txt").touch()
    with refused(ConfigError, "not empty", code="C11"):
        main(["--device", "cpu", "--output", str(tmp_path)])


@pytest.mark.parametrize("name", ["detr_masks", "retinanet", "aa_resnet20", "deit_tiny_distilled_patch16_224"])
def test_half_precision_is_near(name):
    assert compare(name, "fp32", CPU) == (0.0, 0.0)
    half = compare(name, "bf16", CPU)
    assert half.is_within("bf16") and half.outputs > 1e-4 and not half.is_within("fp32")


# On a GPU


@pytest.fixture
def cuda():
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    return torch.device("cuda:0")


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
@pytest.mark.parametrize("name", FAMILIES)
def test_families_against_the_cpu(cuda, name, precision):
    found = compare(name, precision, cuda)
    assert found.is_within(precision), found


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "most"), [("detr_tiny", 3), ("detr_lite", 4), ("detr_lite_panoptic", 4)])
def test_waits_of_a_step(cuda, tmp_path, name, most):
    """torch counts a copy and what follows as one or two; the pretended device has the exact numbers."""
    found = detection_step(session(tmp_path, cuda), name, "bf16", "on", 2)
    assert found["waits"] <= most, found["at"]


@pytest.mark.gpu
def test_copies_arrive(cuda):
    host = torch.randn(1000, 7)
    there = upload(host, cuda)
    double, whole = download(there * 2, there.long())
    assert torch.equal(double, host * 2) and torch.equal(whole, host.long())


def gpu_trainer(run, device, config):
    torch.manual_seed(0)
    run.mkdir(exist_ok=True)
    model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Dropout(0.2), torch.nn.Linear(8, 1)).to(device)
    reporter = Reporter(run, log_every=2, images_per_step=4, quiet=True)
    return Trainer(model, OnGpu(), config, run, Processes(0, 1, device), {}, reporter)


class OnGpu(Line):
    def loss(self, model, batch):
        return super().loss(model, (batch[0], batch[1].cuda()))

    def evaluate(self, model, step):
        x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)).cuda()
        with torch.no_grad():
            return {"fit": -float((model(x) - (2 * x.sum(1, keepdim=True) + 1)).square().mean())}


@pytest.mark.gpu
@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lamb"])
def test_a_resumed_run_ends_as_a_whole_one(cuda, tmp_path, amp, optimizer):
    """These few kernels add in a fixed order."""
    config = replace(CONFIG, amp=amp, optimizer=optimizer, device="cuda")
    gpu_trainer(tmp_path / "whole", cuda, config).fit()
    half = gpu_trainer(tmp_path / "parts", cuda, config)
    half.total_steps = 12
    half.fit()
    second = gpu_trainer(tmp_path / "parts", cuda, config)
    assert second.resume() and second.progress.step == 12
    second.fit()
    (whole, _), (parts, _) = state_of(tmp_path / "whole"), state_of(tmp_path / "parts")
    assert same({"model": whole["model"]}, {"model": parts["model"]})


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["auto", "fp32", "bf16", "fp16"])
def test_predictions_are_those_of_the_cpu(cuda, precision):
    net, images = small_detector(), [torch.randint(0, 255, (3, 40, 56), dtype=torch.uint8) for _ in range(3)]
    wanted = regard.predict(net, images, threshold=0.0, device="cpu")
    found = regard.predict(copy.deepcopy(net), images, threshold=0.0, device="cuda", precision=precision)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a.scores, b.scores, atol=2e-2, rtol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["resnet18", "aa_resnet20", "efficientnet_lite0", "san10_pairwise"])
def test_channels_last_changes_nothing(cuda, name):
    side = 32 if "20" in name else 64
    net, images = create(name, num_classes=5).eval(), torch.randn(2, 3, side, side, device=cuda)
    first = move_to_device(copy.deepcopy(net), "off", cuda)(images)
    torch.testing.assert_close(move_to_device(net, "on", cuda)(images), first, rtol=1e-3, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "aa_resnet20", "san10_pairwise"])
def test_compiled(cuda, name):
    side = 32 if "20" in name else 224
    net, images = create(name).eval().to(cuda), torch.randn(2, 3, side, side, device=cuda)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(net)(images), net(images), rtol=1e-2, atol=1e-3)
