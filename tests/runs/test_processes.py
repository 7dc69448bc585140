"""A detector and a classifier in two processes: weights as one process has with the same images in a step."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from color_data import write_colors
from process_group import together
from regard.data.class_images.dataset import open_classification
from regard.data.coco.dataset import open_detection
from regard.data.generated.shapes import ShapesConfig, write_shapes
from regard.errors import Stopped
from regard.models.activations import block_names
from regard.models.build import build
from regard.models.configs.vit import ViTConfig
from regard.recipes.classification import ClassificationRecipe
from regard.recipes.detection import DetectionRecipe
from regard.runs.classification_task import ClassificationTask
from regard.runs.detection_task import DetectionTask
from regard.training.distributed import Processes
from regard.training.loop import Trainer
from regard.training.reports import Reporter
from regard.training.sharding import whole
from run_files import SMALL

CPU = torch.device("cpu")
STEPS = 50
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks processes that have used torch")

# Nothing that draws numbers in a process: no dropout, no denoising, no mixed images. 26 images are 7 steps of 4, the
# last of 2.
SHARED = {"epochs": 9, "workers": 0, "weight_decay": 0.05, "ema": 0.9, "device": "cpu"}
DETECTOR = DetectionRecipe(
    name="mine", model=replace(SMALL, query_groups=2, num_classes=3, dropout=0.0), augmentation="flip", short_side=32,
    max_size=32, max_norm=0.1, seed=3, **SHARED,
)  # fmt: skip
CLASSIFIER = ClassificationRecipe(
    name="mine", model=ViTConfig(image_size=16, patch_size=8, num_classes=3, embed_dim=24, depth=3, num_heads=3),
    augmentation="cifar", max_norm=1.0, label_smoothing=0.1, seed=3, **SHARED,
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Images with boxes and images with classes."""
    folder = tmp_path_factory.mktemp("data")
    write_shapes(ShapesConfig(size=32, train=26, val=2), folder / "detector")
    write_colors(folder / "classifier")
    return folder


def in_dtype(batches: Iterator[Any], dtype: torch.dtype) -> Iterator[Any]:
    for batch in batches:
        images = batch.images.normalized()
        yield replace(batch, images=replace(images, pixels=images.pixels.to(dtype)))


def trained(
    kind: str,
    data: Path,
    run: Path,
    group: Processes,
    dtype: torch.dtype,
    stop_at: int | None = None,
    **changes: Any,
) -> Trainer:
    """A trainer after its steps, with 4 images a step; or after it was asked to stop in step `stop_at`."""
    recipe = DETECTOR if kind == "detector" else CLASSIFIER
    settings: Any = replace(recipe, batch_size=4 // group.world_size, **changes)
    opened = open_detection if kind == "detector" else open_classification
    make: Any = DetectionTask if kind == "detector" else ClassificationTask
    train = opened(data / kind, "train")
    torch.manual_seed(0)
    net = build(settings.model, "mine", train.categories, (32, 32)).to(dtype)
    _without_batch_norm(net)
    task = make(settings, train, train, group)
    original = task.batches
    task.batches = lambda start: in_dtype(original(start), dtype)
    task.evaluate = lambda model, step: {}
    run.mkdir(exist_ok=True)
    reporter = Reporter(run if group.is_main else None, log_every=20, images_per_step=4, quiet=True)
    job = Trainer(net, task, settings, run, group, {}, reporter, block_names(net))
    job.resume()
    if stop_at is not None:
        loss, calls = task.loss, iter(range(10**6))
        task.loss = lambda *given: (next(calls) == stop_at and os.kill(os.getpid(), signal.SIGUSR1)) or loss(*given)
        with pytest.raises(Stopped):
            job.fit()
    else:
        job.fit()
    return job


def _without_batch_norm(net: nn.Module) -> None:
    """Batch norm sees the images of its process alone, so that two processes cannot train as one."""
    for parent in list(net.modules()):
        for name, module in parent.named_children():
            if isinstance(module, nn.BatchNorm2d):
                setattr(parent, name, nn.GroupNorm(1, module.num_features).to(next(net.parameters())))


def weights_of(job: Trainer) -> dict[str, Tensor]:
    models: tuple[tuple[str, nn.Module], ...] = ("model", job.model), ("ema", job.result)
    return {f"{part}/{name}": whole(value).detach() for part, net in models for name, value in net.state_dict().items()}


def distances(job: Trainer, wanted: dict[str, Tensor]) -> dict[str, float]:
    found = weights_of(job)
    assert found.keys() == wanted.keys()
    return {name: (value - wanted[name]).abs().max().item() for name, value in found.items()}


def check(found: list[dict[str, float]], most: float) -> None:
    assert found[0] == found[1]
    worst = max(found[0], key=lambda name: found[0][name])
    print(f"{worst} is {found[0][worst]:.2g} from that of one process")
    assert found[0][worst] <= most


# Adam divides by the size of a gradient: where that is 0 but for rounding, as of the bias of keys, float32 rounding
# alone decides the step. In float64 its epsilon outweighs it.
ADAM = {"optimizer": "adamw", "lr": 1e-3, "lr_backbone": 5e-4}
SGD = {"optimizer": "sgd", "lr": 0.05, "lr_backbone": 0.02}


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory):
    """The weights of one process, by kind and dtype."""
    known: dict[tuple[str, torch.dtype], dict[str, Tensor]] = {}

    def find(kind: str, dtype: torch.dtype, steps: dict[str, Any]) -> dict[str, Tensor]:
        if (kind, dtype) not in known:
            run = tmp_path_factory.mktemp("runs") / "one"
            job = trained(kind, data, run, Processes(0, 1, CPU), dtype, **steps)
            assert job.progress.step >= STEPS
            known[kind, dtype] = weights_of(job)
        return known[kind, dtype]

    return find


@pytest.mark.parametrize("shard", [False, True])
@pytest.mark.parametrize("kind", ["detector", "classifier"])
def test_two_processes_train_as_one(tmp_path, data, alone, kind, shard):
    """With their weights in both, and with a part in each."""
    compare_with_one(tmp_path, data, alone, kind, torch.float64, 1e-12, ADAM, shard)


# The gradient of the L1 loss is a sign, which rounding alone can turn: the weights of a detector are further apart.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "shard", "most"),
    [("classifier", False, 1e-6), ("classifier", True, 1e-6), ("detector", False, 1e-5), ("detector", True, 1e-3)],
)
def test_two_processes_train_as_one_in_float32(tmp_path, data, alone, kind, shard, most):
    compare_with_one(tmp_path, data, alone, kind, torch.float32, most, SGD, shard)


def compare_with_one(
    tmp_path: Path,
    data: Path,
    alone: Any,
    kind: str,
    dtype: torch.dtype,
    most: float,
    steps: dict[str, Any],
    shard: bool,
) -> None:
    wanted = alone(kind, dtype, steps)

    def half(group: Processes, folder: Path) -> dict[str, float]:
        job = trained(kind, data, folder / "two", group, dtype, shard=shard, **steps)
        assert isinstance(next(job.model.parameters()), DTensor) == shard
        return distances(job, wanted)

    check(together(half, tmp_path, seconds=300), most)


@pytest.mark.parametrize("kind", ["detector", "classifier"])
def test_a_run_goes_on_with_another_number_of_processes(tmp_path, data, alone, kind):
    """Divided in two, then whole in one, then divided again."""
    wanted, dtype, run = alone(kind, torch.float64, ADAM), torch.float64, tmp_path / "run"

    def stopped(group: Processes, folder: Path) -> int:
        return trained(kind, data, run, group, dtype, stop_at=10, shard=True, **ADAM).progress.step

    def ended(group: Processes, folder: Path) -> dict[str, float]:
        return distances(trained(kind, data, run, group, dtype, shard=True, **ADAM), wanted)

    assert together(stopped, tmp_path, seconds=300) == [11, 11]
    assert trained(kind, data, run, Processes(0, 1, CPU), dtype, stop_at=14, shard=True, **ADAM).progress.step == 26
    check(together(ended, tmp_path, seconds=300), 1e-12)
