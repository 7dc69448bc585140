"""Several processes: the same training as one with their batches put together, and an end that all of them reach."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torchvision.ops import FrozenBatchNorm2d

import regard
from color_data import ColorClassifier, write_colors
from process_group import together
from refusals import refused
from regard.data.class_images.dataset import open_classification
from regard.data.coco.dataset import open_detection
from regard.data.generated.shapes import ShapesConfig, write_shapes
from regard.errors import ConfigError, DataError, DivergedError, MachineError
from regard.evaluation.classification import predict_logits
from regard.evaluation.detection import evaluate_detector
from regard.losses import SetCriterion
from regard.losses.detection import average_over_processes
from regard.training import distributed, loop
from regard.training.checkpoints import newest_checkpoint, read_checkpoint
from regard.training.data_loader import InfiniteBatchSampler
from regard.training.distributed import Processes, choose_device, in_parallel, processes
from regard.training.launch import first_failure, launch_command, run_processes, thread_environment
from regard.training.loop import Stopped, Trainer, TrainingConfig
from regard.training.reports import Reporter, read_rows
from run_files import small_detector

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks processes that have used torch")
CONFIG = TrainingConfig(
    epochs=3, batch_size=4, lr=0.01, lr_backbone=0.002, schedule="cosine", max_norm=0.5, ema=0.8, workers=0,
    device="cpu", log_every=2,
)  # fmt: skip


class Plane:
    """Fit a plane to 24 points, in double precision."""

    score = "fit"

    def __init__(self, processes: Processes, batch_size: int, spoilt: int | None = None) -> None:
        generator = torch.Generator().manual_seed(3)
        self.points = torch.randn(24, 3, generator=generator, dtype=torch.float64)
        self.order = InfiniteBatchSampler(24, batch_size, 1, processes)
        self.batches_per_epoch = self.order.batches_per_epoch
        self.spoilt = spoilt

    def batches(self, start: int):
        return (torch.tensor([i for _, i in batch]) for batch in islice(iter(self.order), start, None))

    def loss(self, model: nn.Module, batch: Tensor):
        points = self.points[batch]
        loss = (model(points) - points.sum(1, keepdim=True) - 1).square().mean()
        if self.spoilt is not None and self.spoilt in batch.tolist():
            loss = loss * torch.nan
        return loss, {"loss_plane": loss}

    def describe(self, batch: Tensor) -> str:
        return f"points {batch.tolist()}"

    def evaluate(self, model: nn.Module, step: int) -> dict[str, float]:
        model.eval()
        return {"fit": -float((model(self.points) - self.points.sum(1, keepdim=True) - 1).detach().square().mean())}


def trainer(group: Processes, folder: Path, config: TrainingConfig, task: Plane | None = None) -> Trainer:
    torch.manual_seed(0)
    model = nn.ModuleDict({"backbone": nn.Linear(3, 5), "head": nn.Linear(5, 1)}).double()
    model.forward = lambda x: model["head"](model["backbone"](x).tanh())  # type: ignore[method-assign]
    folder.mkdir(exist_ok=True)
    reporter = Reporter(folder if group.is_main else None, log_every=2, images_per_step=4, quiet=True)
    return Trainer(model, task or Plane(group, config.batch_size), config, folder, group, {}, reporter)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_two_processes_equal_one_with_the_double_batch(tmp_path, accumulate):
    config = replace(CONFIG, accumulate=accumulate)
    alone = trainer(Processes(0, 1, CPU), tmp_path / "one", config)
    alone.fit()

    def half(group: Processes, folder: Path) -> list:
        job = trainer(group, folder / "two", replace(config, batch_size=2))
        job.fit()
        return [p.tolist() for p in [*job.model.parameters(), *job.result.parameters()]]

    first, second = together(half, tmp_path)
    assert first == second
    expected = [*alone.model.parameters(), *alone.result.parameters()]
    for found, wanted in zip(first, expected, strict=True):
        torch.testing.assert_close(torch.tensor(found, dtype=torch.float64), wanted.detach(), rtol=0, atol=1e-10)
    steps = [row["step"] for row in read_rows(tmp_path / "one" / "metrics.jsonl")]
    assert [row["step"] for row in read_rows(tmp_path / "two" / "metrics.jsonl")] == steps


def test_a_step_sends_gradients_and_one_message(tmp_path):
    """Gradients of three batches are averaged once, and a step of whatever settings has one other message."""

    def counted(group: Processes, folder: Path) -> list[str]:
        sent: list[str] = []
        config = replace(CONFIG, batch_size=2, accumulate=3, ema=0.0, minutes=5.0)
        job = trainer(group, folder / "run", config)
        job._parallel.register_comm_hook(sent, allreduce_of)
        with pytest.MonkeyPatch.context() as patch:
            for name in ("all_reduce", "all_gather_object", "broadcast", "barrier"):
                original = getattr(dist, name)
                patch.setattr(dist, name, partial(counting, sent, name, original))
            job._step(job.task.batches(0), 0.0)
            job._fraction_done()
        return sent

    def counting(sent: list[str], name: str, original: Callable, *given: object, **options: object) -> object:
        sent.append(name)
        return original(*given, **options)

    def allreduce_of(sent, bucket):  # whose annotations, if there are any, may not be text
        sent.append("gradients")
        return allreduce_hook(dist.group.WORLD, bucket)

    # The first all_reduce is that of the gradients.
    assert together(counted, tmp_path) == [["gradients", "all_reduce", "all_reduce"]] * 2


@pytest.mark.parametrize(
    ("norm", "changes"), [(nn.BatchNorm2d, True), (FrozenBatchNorm2d, False), (nn.Identity, False)]
)
def test_buffers_are_sent_with_each_step_if_training_changes_them(tmp_path, norm, changes):
    """And a training in several processes begins without a warning."""

    def seen(group: Processes, _: Path) -> tuple[bool, list[float]]:
        model = nn.Sequential(nn.Conv2d(3, 2, 1), norm(2))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            parallel = in_parallel(model)
        for buffer in model.buffers():
            buffer.fill_(group.rank + 1)
        parallel(torch.ones(1, 3, 2, 2))
        return parallel.will_sync_module_buffers(), [float(buffer.sum()) for buffer in model.buffers()]

    (first, ours), (second, theirs) = together(seen, tmp_path)
    assert first == second == changes
    assert (ours == theirs) == (changes or not ours)


def test_messages(tmp_path):
    def messages(group: Processes, _: Path) -> tuple:
        numbers = torch.full((2,), float(group.rank))
        group.broadcast([numbers])
        group.barrier()
        gathered = group.gather({"rank": group.rank})
        flags = group.any(group.rank == 2), group.any(False), group.any(True)
        return gathered, flags, numbers.tolist(), average_over_processes([group.rank, 1], CPU).tolist(), group.is_main

    for rank, found in enumerate(together(messages, tmp_path, count=3)):
        assert found == (
            [{"rank": 0}, {"rank": 1}, {"rank": 2}],
            (True, False, True),
            [0.0, 0.0],
            [1.0, 1.0],
            rank == 0,
        )


def test_the_others_wait_while_the_first_looks_through_the_data(monkeypatch):
    """A fingerprint of COCO, pictures and checkpoints take minutes, in the first process alone."""
    given = {}
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    store = dist.HashStore()
    monkeypatch.setattr(distributed, "rendezvous", lambda address, timeout: iter([(store, 0, 2)]))
    monkeypatch.setattr(
        dist, "init_process_group", lambda backend, timeout, **more: given.update({backend: timeout, **more})
    )
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    monkeypatch.setattr(dist, "barrier", lambda: None)
    with processes("cpu"):
        assert given["gloo"].total_seconds() >= 1800 and given["device_id"] is None
    current = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with processes("cuda") as group:  # which then needs no first message to learn whose GPU is whose
        assert given["nccl"].total_seconds() >= 1800
        assert given["device_id"] == group.device == torch.device("cuda:1") and current == [group.device]
    monkeypatch.setenv("LOCAL_RANK", "2")
    with refused(MachineError, "process 2", "there are 2", "--nproc-per-node 2", code="C10"), processes("cuda"):
        pass
    with refused(ConfigError, "device=cuda:1", "one GPU", "use device=cuda", code="C10"), processes("cuda:1"):
        pass


def test_an_environment_that_torchrun_did_not_make_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with refused(ConfigError, "WORLD_SIZE", "RANK", "torchrun", code="C09"), processes("cpu"):
        pass


def test_processes_start_when_all_have_connected(tmp_path):
    """One that fails at once would leave the others with a connection error."""

    def slow_to_connect(group: Processes, folder: Path) -> bool:
        return (folder / "connected").exists()

    real = dist.init_process_group

    def init(*arguments: object, **options: object) -> None:
        real(*arguments, **options)
        if dist.get_rank() == 1:
            time.sleep(0.5)
            (tmp_path / "connected").touch()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dist, "init_process_group", init)
        assert together(slow_to_connect, tmp_path) == [True, True]


def test_the_process_that_failed_first_reports_it(tmp_path, monkeypatch):
    """Not another one, which has lost the connection to it."""
    for rank in (0, 1):
        (tmp_path / str(rank)).mkdir()

    def failing(rank: int) -> Callable[[Processes, Path], None]:
        def fail(group: Processes, folder: Path) -> None:
            monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(folder / str(group.rank) / "error.json"))
            if group.rank == rank:
                raise DataError("a bad image")
            group.barrier()

        return fail

    for rank in (0, 1):
        with pytest.raises(AssertionError):
            together(failing(rank), tmp_path)
        code, _, own = (tmp_path / "first_failure").read_text().partition(" ")
        assert (code, Path(own)) == ("3", tmp_path / str(rank) / "error.json")
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / str(1 - rank) / "error.json"))
        assert first_failure(1) == (False, 3)
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", own)
        assert first_failure(6) == (True, 6)
        (tmp_path / "first_failure").unlink()


def test_alone_needs_no_messages():
    one = Processes(0, 1, CPU)
    assert one.is_main and one.gather(5) == [5] and one.any(True) and not one.any(False)
    one.barrier()
    one.broadcast([torch.zeros(1)])


def test_a_signal_to_one_stops_all_at_the_same_step(tmp_path):
    def stopped(group: Processes, folder: Path) -> tuple:
        task = Plane(group, 2)
        if group.rank == 1:  # asks itself to stop during step 8
            original = task.loss
            calls = iter(range(100))
            task.loss = lambda *a: (next(calls) == 7 and os.kill(os.getpid(), signal.SIGTERM)) or original(*a)  # type: ignore[method-assign]
        with pytest.raises(Stopped) as caught:
            trainer(group, folder / "run", replace(CONFIG, batch_size=2), task).fit()
        newest = newest_checkpoint(folder / "run" / "checkpoints")
        return caught.value.exit_code, newest and newest.name

    # Whoever leaves does so after the first process has saved.
    assert together(stopped, tmp_path) == [(143, "step_8")] * 2


def test_clocks_need_not_agree(tmp_path):
    """One process finds that it is time to save at every step, the other never does."""

    def skewed(group: Processes, folder: Path) -> int:
        class Clock:
            now = 0.0

            def monotonic(self) -> float:
                self.now += 1000.0 * group.rank
                return self.now

        loop.time = Clock()  # type: ignore[assignment]
        return trainer(group, folder / "run", replace(CONFIG, batch_size=2, evaluate_every=2)).fit().step

    assert together(skewed, tmp_path) == [18, 18]
    assert newest_checkpoint(tmp_path / "run" / "checkpoints").name == "step_18"


def test_minutes_of_the_slowest_count(tmp_path):
    def timed(group: Processes, folder: Path) -> tuple:
        config = replace(CONFIG, batch_size=2, epochs=10**6, minutes=0.3 / 60, evaluate_every=10**6)
        job = trainer(group, folder / "run", config)
        return job.fit().step, job.optimizer.param_groups[0]["lr"]

    first, second = together(timed, tmp_path)
    assert first == second and first[0] > 1 and first[1] < 0.001


def test_a_loss_that_diverges_in_one_stops_all(tmp_path):
    def diverging(group: Processes, folder: Path) -> str:
        task = Plane(group, 2, spoilt=5)
        with pytest.raises(DivergedError) as caught:
            trainer(group, folder / "run", replace(CONFIG, batch_size=2), task).fit()
        return str(caught.value)

    lines = together(diverging, tmp_path)
    assert all("is no longer finite at step " in line for line in lines)
    # Only the process with the bad sample names its samples; the others do not know whose they are.
    (own,) = [line for line in lines if line.startswith("the loss is")]
    (other,) = [line for line in lines if line.startswith("the loss in another process is")]
    assert re.search(r"points \[.*\b5\b.*\]", own) and "points [" not in other
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_batch_statistics_that_are_judged_are_those_that_are_saved(tmp_path):
    """Each process has running means of its own images; a checkpoint holds those of the first."""

    def judged(group: Processes, folder: Path) -> dict[str, float]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, momentum=0.5), nn.Linear(4, 1)).double()
        (folder / "run").mkdir(exist_ok=True)
        reporter = Reporter(folder / "run" if group.is_main else None, log_every=2, images_per_step=4, quiet=True)
        job = Trainer(model, Plane(group, 2), replace(CONFIG, ema=0.0), folder / "run", group, {}, reporter)
        return job.fit().scores

    first, second = together(judged, tmp_path)
    assert first == second
    saved = read_checkpoint(newest_checkpoint(tmp_path / "run" / "checkpoints"))
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)).double().eval()
    model.load_state_dict(saved.tensors["model"])
    plane = Plane(Processes(0, 1, CPU), 2)
    assert plane.evaluate(model, 18) == pytest.approx(first) and saved.state["progress"]["scores"] == first


# Detection


@pytest.mark.parametrize("count", [2, 7])
def test_an_evaluation_is_shared(tmp_path, monkeypatch, count):
    """Seven images in four batches, which are those of one process; or some processes without any."""
    write_shapes(ShapesConfig(size=32, train=1, val=7), tmp_path / "data")
    dataset = open_detection(tmp_path / "data", "val")
    # Scoring has threads, which would not survive a fork.
    monkeypatch.setattr("regard.evaluation.detection.evaluate_detections", lambda truth, found: len(truth["images"]))

    def evaluation(group: Processes, _: Path) -> tuple:
        net = small_detector()
        net.card = replace(net.card, categories=dataset.categories, short_side=32, max_size=32)
        found = evaluate_detector(net, dataset, SetCriterion(3), batch_size=2, workers=0, processes=group)
        return found.scores, found.losses, [column.tolist() for column in vars(found.detections).values()]

    scores, losses, detections = evaluation(Processes(0, 1, CPU), tmp_path)
    for other_scores, other_losses, others in together(evaluation, tmp_path, count):
        assert other_scores == scores == 7 and others == detections  # each image once, in the same order
        assert other_losses == pytest.approx(losses, rel=1e-12)
    assert len(detections[0]) == 7 * 5 and len(set(detections[0])) == 7
    assert {"loss", "loss_ce", "loss_bbox", "loss_giou"} == losses.keys()


@pytest.mark.parametrize("count", [2, 4])
def test_an_evaluation_of_a_classifier_is_shared(tmp_path, count):
    """Nine images in three batches; some processes have none."""
    dataset = open_classification(write_colors(tmp_path / "data", val=3), "val")
    torch.manual_seed(0)
    net = ColorClassifier()

    def logits(group: Processes, _: Path) -> list:
        return predict_logits(net, dataset, batch_size=4, workers=0, processes=group).tolist()

    assert together(logits, tmp_path, count) == [logits(Processes(0, 1, CPU), tmp_path)] * count


def test_a_lost_process_ends_the_others_with_one_line(tmp_path):
    """At once where its connection closes. Not with gloo's own words."""

    def killed(group: Processes, folder: Path) -> None:
        if group.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        group.barrier()

    started = time.monotonic()
    with pytest.raises(AssertionError, match="lost another process of this training — go on with --resume"):
        together(killed, tmp_path)
    assert time.monotonic() - started < 30


@pytest.mark.slow
@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_scores_of_a_run_of_several_processes_can_be_had_again(tmp_path, ema):
    write_shapes(ShapesConfig(size=32, train=9, val=5), tmp_path / "data")
    run = tmp_path / "run"
    words = [
        "train",
        "detr_tiny",
        "--recipe",
        "small",
        "--data",
        str(tmp_path / "data"),
        "--output",
        str(run),
        "--quiet",
        f"ema={ema}",
    ]
    small = ["workers=0", "batch_size=2", "device=cpu", "evaluate_every=1", "epochs=2", "lr=0.01"]
    subprocess.run(launch_command([*words, *small], 2), env=thread_environment(2), check=True, timeout=300)
    written = json.loads((run / "metrics.json").read_text())
    regard.evaluate(run, tmp_path / "data", output=tmp_path / "again", workers=0, device="cpu")
    again = json.loads((tmp_path / "again" / "metrics.json").read_text())
    assert again["stats"] == pytest.approx(written["stats"], abs=1e-6)
    rows = read_rows(run / "metrics.jsonl")
    assert [row["step"] for row in rows if "val/AP" in row] == [3, 6]


# Devices and commands


def test_devices():
    assert choose_device("cpu") == CPU
    assert choose_device("auto").type in ("cpu", "cuda", "mps")
    for name in ("gpu", "cuda:x", ""):
        with refused(ConfigError, repr(name), code="C10"):
            choose_device(name)
    with refused(MachineError, "xpu", code="C10"):
        choose_device("xpu")


def test_devices_that_are_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with refused(MachineError, "cuda", "use cpu", code="C10") as caught:
        choose_device("cuda:0")
    assert caught.value.exit_code == 6
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("cuda:1") == torch.device("cuda:1")
    assert choose_device("auto") == torch.device("cuda")
    with refused(MachineError, "'cuda:2'", "2 CUDA", code="C10"):
        choose_device("cuda:2")


def test_command_and_environment(monkeypatch):
    words = ["train", "--help"]
    assert launch_command(words, 3) == [sys.executable, "-m", "regard.training.launch", "3", *words]
    assert launch_command(words, 1) == [sys.executable, "-m", "regard", *words]
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert thread_environment(2)["OMP_NUM_THREADS"] == "3" and thread_environment(20)["OMP_NUM_THREADS"] == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert thread_environment(2)["OMP_NUM_THREADS"] == "5" and thread_environment(2)["OMP_WAIT_POLICY"] == "PASSIVE"


def test_a_failure_of_several_processes_is_one_line(tmp_path, capfd):
    """With the exit code of one of them, and without torchrun's report."""
    words = ["train", "detr_tiny", "--data", str(tmp_path / "none"), "--output", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as left:
        run_processes([*words, "device=cpu"], 2)
    assert left.value.code == 3
    captured = capfd.readouterr()
    assert captured.err == f"error: no such folder — {tmp_path / 'none'} — check the path\n" and captured.out == ""


@pytest.mark.parametrize(("code", "number"), [(-9, 9), (137, 9)])
def test_killed_processes_leave_a_line(monkeypatch, code, number):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], code))
    with refused(MachineError, f"signal {number}"):
        run_processes(["train"], 2)
