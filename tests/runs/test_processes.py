"""A detector and a classifier in two processes: weights as one process has with the same images in a step."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from process_group import together
from regard.data.class_images.dataset import open_classification
from regard.data.coco.dataset import open_detection
from regard.data.generated.shapes import ShapesConfig, write_shapes
from regard.models.build import build
from regard.models.configs.vit import ViTConfig
from regard.recipes.classification import ClassificationRecipe
from regard.recipes.detection import DetectionRecipe
from regard.runs.classification_task import ClassificationTask
from regard.runs.detection_task import DetectionTask
from regard.training.distributed import Processes
from regard.training.loop import Trainer
from regard.training.reports import Reporter
from color_data import write_colors
from run_files import SMALL

CPU = torch.device("cpu")
STEPS = 50
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks processes that have used torch")

# Nothing that draws numbers in a process: no dropout, no denoising, no mixed images. 26 images are 7 steps of 4, the
# last of 2.
SHARED = {"epochs": 8, "workers": 0, "lr": 1e-3, "lr_backbone": 5e-4, "weight_decay": 0.05, "ema": 0.9, "device": "cpu"}
DETECTOR = DetectionRecipe(
    name="mine", model=replace(SMALL, num_groups=2, num_classes=5, dropout=0.0), augmentation="flip", short_side=32,
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


def trained(kind: str, data: Path, run: Path, group: Processes, dtype: torch.dtype, **changes: Any) -> Trainer:
    """A trainer after its steps, with 4 images a step."""
    recipe = DETECTOR if kind == "detector" else CLASSIFIER
    settings: Any = replace(recipe, batch_size=4 // group.world_size, **changes)
    opened = open_detection if kind == "detector" else open_classification
    make: Any = DetectionTask if kind == "detector" else ClassificationTask
    train = opened(data / kind, "train")
    torch.manual_seed(0)
    net = build(settings.model, "mine", train.categories, (32, 32)).to(dtype)
    task = make(settings, train, train, group)
    original = task.batches
    task.batches = lambda start: in_dtype(original(start), dtype)
    task.evaluate = lambda model, step: {}
    reporter = Reporter(run if group.is_main else None, log_every=20, images_per_step=4, quiet=True)
    job = Trainer(net, task, settings, run, group, {}, reporter)
    if job.resume():
        assert job.progress.step
    job.fit()
    return job


def weights_of(job: Trainer) -> dict[str, Tensor]:
    models: tuple[tuple[str, nn.Module], ...] = ("model", job.model), ("ema", job.result)
    return {f"{part}/{name}": value for part, net in models for name, value in net.state_dict().items()}


@pytest.mark.parametrize(("dtype", "most"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("kind", ["detector", "classifier"])
def test_two_processes_train_as_one(tmp_path, data, kind, dtype, most):
    one = tmp_path / "one"
    one.mkdir()
    alone = trained(kind, data, one, Processes(0, 1, CPU), dtype)
    assert alone.progress.step >= STEPS
    wanted = weights_of(alone)

    def half(group: Processes, folder: Path) -> dict[str, Any]:
        found = weights_of(trained(kind, data, folder, group, dtype))
        return {name: (value - wanted[name]).abs().max().item() for name, value in found.items()}

    first, second = together(half, tmp_path)
    assert first == second and first.keys() == wanted.keys()
    worst = max(first, key=lambda name: first[name])
    assert first[worst] <= most, f"{worst} is {first[worst]:.2g} from that of one process"
