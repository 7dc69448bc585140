"""The largest batch that fits, with a memory that is pretended, and one real step on a CPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from regard.config import apply_overrides
from regard.data.coco.dataset import open_detection
from regard.data.coco.panoptic import open_panoptic
from regard.data.generated.shapes import ShapesConfig, write_shapes
from regard.recipes import recipe_for
from regard.runs import batch_size
from regard.runs.batch_size import MARGIN, largest_batch, made_up_batch, training_step
from regard.runs.detection import DetectionJob
from regard.training.distributed import Processes

CPU, GPU = (Processes(0, 1, torch.device(name)) for name in ("cpu", "cuda"))
WORDS = (
    "start_from=none", "short_side=64", "max_size=96", "model.embed_dim=16", "model.num_heads=2",
    "model.feedforward_dim=16", "model.num_classes=3",
)  # fmt: skip
GIVEN = [word.partition("=")[0] for word in WORDS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "shapes"
    write_shapes(ShapesConfig(train=48, val=2, size=32), folder)
    return folder


@pytest.fixture
def settings(folder):
    return apply_overrides(replace(recipe_for("detr_tiny", "auto"), data=str(folder)), WORDS)


@pytest.fixture
def tried(monkeypatch):
    """Sizes that were tried, where at most `fits` images fit."""
    sizes = []
    sizes_that_fit = {"fits": 1000}

    def step(settings, train, val, batch, processes):
        torch.rand(3)
        sizes.append(len(batch.samples))
        if sizes[-1] > sizes_that_fit["fits"]:
            raise torch.OutOfMemoryError("pretended")

    monkeypatch.setattr(batch_size, "training_step", step)
    return sizes, sizes_that_fit


def search(settings, folder, most, processes=CPU):
    train, val = (open_detection(folder, split) for split in ("train", "val"))
    return largest_batch(settings, train, val, 4, processes, most)


@pytest.mark.parametrize(
    ("fits", "most", "found", "sizes"),
    [
        (1000, 12, 12, [1, 2, 4, 8, 12]),
        (1000, 8, 8, [1, 2, 4, 8]),
        (5, 64, 4, [1, 2, 4, 8]),
        (0, 64, 1, [1]),
        (1000, 1, 1, [1]),
    ],
)
def test_sizes_double_until_memory_ends(settings, folder, tried, fits, most, found, sizes):
    tried[1]["fits"] = fits
    before = torch.get_rng_state()
    assert search(settings, folder, most) == found and tried[0] == sizes
    assert torch.equal(torch.get_rng_state(), before)


def test_some_memory_stays_free(settings, folder, tried, monkeypatch):
    monkeypatch.setattr(batch_size, "memory_share", lambda device: tried[0][-1] * MARGIN / 4)
    assert search(settings, folder, 64) == 4


def test_processes_agree_on_the_smallest(settings, folder, tried, monkeypatch):
    monkeypatch.setattr(Processes, "gather", lambda self, value: [value, 3])
    assert search(settings, folder, 16) == 3


def test_a_gpu_chooses_batch_and_rates_in_proportion(settings, folder, tried, monkeypatch):
    monkeypatch.setattr(batch_size, "memory_share", lambda device: 0.1)
    plain = DetectionJob(settings, GIVEN, GPU).settings
    tried[1]["fits"] = 6
    job = DetectionJob(settings, GIVEN, GPU, find_batch=True)
    found = job.settings
    assert (plain.batch_size, found.batch_size) == (12, 4)
    assert found.lr == pytest.approx(plain.lr / 3) and found.lr_backbone == pytest.approx(plain.lr_backbone / 3)
    assert any(line.startswith("batch_size=4: ") and "at most 12" in line for line in job.findings)
    tried[1]["fits"] = 1000
    assert DetectionJob(settings, GIVEN, GPU, find_batch=True).settings == plain  # a quarter of the images
    kept = DetectionJob(settings, [*GIVEN, "lr", "lr_backbone"], GPU, find_batch=True).settings
    assert (kept.lr, kept.lr_backbone) == (settings.lr, settings.lr_backbone)


def test_a_cpu_takes_the_number_of_the_recipe(settings, tried):
    job = DetectionJob(settings, GIVEN, CPU, find_batch=True)
    plain = DetectionJob(settings, GIVEN, CPU)
    assert not tried[0] and job.settings == plain.settings
    (told,) = set(job.findings) - set(plain.findings)  # and says so
    assert "batch_size=auto" in told and "cpu" in told and str(plain.settings.batch_size) in told


def test_a_real_step_has_the_largest_sizes(settings, folder):
    train, val = (open_detection(folder, split) for split in ("train", "val"))
    batch = made_up_batch(settings, 3, 5, 2)
    assert batch.images.pixels.shape == (2, 3, 96, 96) and [len(t["labels"]) for t in batch.targets] == [5, 5]
    assert all(((t["boxes"] > 0) & (t["boxes"] < 1)).all() for t in batch.targets)
    training_step(settings, train, val, batch, CPU)


def test_a_real_step_with_masks(folder):
    recipe = replace(recipe_for("detr_tiny_panoptic", "auto"), data=str(folder))
    settings = apply_overrides(recipe, [*WORDS[:-1], "model.num_classes=5"])
    train, val = (open_panoptic(folder, split) for split in ("train", "val"))
    batch = made_up_batch(settings, 5, 3, 1, masks=True)
    assert batch.targets[0]["masks"].shape == (3, 96, 96)
    training_step(settings, train, val, batch, CPU)
