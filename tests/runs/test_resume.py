"""Runs that were stopped: at the start, before the first checkpoint, after the best one."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

import regard.runs.run
from charts import without_charts
from command_line import run
from regard.config import to_mapping
from regard.data.coco.panoptic import open_panoptic
from regard.data.generated.shapes import SHAPES, ShapesConfig, write_shapes
from regard.errors import RegardError
from regard.models.build import build
from regard.recipes import recipe_for
from regard.runs.detection_task import DetectionTask
from regard.runs.settings import resolve
from regard.structures.categories import Category
from regard.training.distributed import Processes
from regard.training.loop import Trainer
from run_files import small_detector, write_run
from segment_finder import Finder

CPU = Processes(0, 1, torch.device("cpu"))
SIZES = ["short_side=32", "max_size=32", "batch_size=2", "workers=0", "epochs=1"]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shapes"
    write_shapes(ShapesConfig(size=32, train=4, val=2), folder)
    return folder


@pytest.fixture(scope="module")
def finished_run(shapes, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "finished"
    with without_charts():
        run_ = regard.runs.train("detr_tiny", shapes, recipe="small", output=folder, overrides=SIZES, quiet=True)
    assert run_.folder == folder and (folder / "metrics.json").exists()
    return folder


@pytest.fixture
def trainers(monkeypatch) -> list[Trainer]:
    """Everything up to the first step; the trainers that would have gone on."""
    made: list[Trainer] = []

    def fit(self):
        made.append(self)
        raise RegardError("here training would begin")

    monkeypatch.setattr(Trainer, "fit", fit)
    return made


def words_of(data, run):
    return ["train", "detr_tiny", "--data", data, "--recipe", "small", "--output", run, "--quiet"]


def test_going_on(capsys, finished_run, trainers):
    words = ["train", "--resume", "--output", finished_run, "--quiet", "epochs=3", "lr=0.5"]
    run(capsys, *words).refused(1, None, "here training would begin")
    (trainer,) = trainers
    assert trainer.progress.step == 2 and trainer.total_steps == 6 and trainer.config.lr == 0.5


@pytest.mark.parametrize("counter", ["TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"])
def test_the_same_command_again_goes_on_with_the_settings_of_the_run(
    capsys, shapes, finished_run, trainers, monkeypatch, counter
):
    """Which `batch_size=auto` or the data may choose otherwise the second time. A person who repeats it is refused."""
    words = [*words_of(shapes, finished_run), "lr=0.25"]
    run(capsys, *words).refused(2, "C11", "not empty")
    monkeypatch.setenv(counter, "1")
    run(capsys, *words).refused(1, None, "here training would begin")
    (trainer,) = trainers
    assert trainer.progress.step == 2 and trainer.config.lr != 0.25


def test_a_run_that_restarts_needs_a_name(capsys, shapes, monkeypatch):
    """A second start without --output would begin another run."""
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    run(capsys, "train", "detr_tiny", "--data", shapes).refused(2, "C09", "--max-restarts", "add --output RUN")


@pytest.mark.parametrize(
    ("setting", "says"),
    [("model.num_queries=11", "model.num_queries was 10, is 11"),
     ("model.embed_dim=48", "model.embed_dim was 96, is 48"), ("short_side=48 max_size=48", "max_size was 32, is 48"),
     ("batch_size=4", "batch_size was 2, is 4"),
     ("accumulate=2", "accumulate was 1, is 2")],
)  # fmt: skip
def test_another_model_or_other_steps(capsys, finished_run, trainers, setting, says):
    """C13"""
    words = ["train", "--resume", "--output", finished_run, "--quiet", *setting.split()]
    run(capsys, *words).refused(2, "C13", says, finished_run)
    assert not trainers


def test_stopped_before_the_first_checkpoint(capsys, shapes, finished_run, tmp_path, trainers):
    """Such a run has no weights of its own yet: it starts from those that it was told to start from."""
    settings = resolve("detr_tiny", shapes, None, None, False, None, None, [*SIZES, f"start_from={finished_run}"])
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(to_mapping(settings)))
    run(capsys, "train", "--resume", "--output", folder, "--quiet").refused(1, None, "here training would begin")
    (trainer,) = trainers
    weights = regard.load(finished_run).state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in trainer.model.state_dict().items())
    assert trainer.progress.step == 0


def test_a_start_that_failed_can_be_repeated(capsys, shapes, finished_run, tmp_path, trainers):
    words = [*words_of(shapes, tmp_path / "run"), *SIZES]
    run(capsys, *words, "start_from=runs/none").refused(2, "K01", "runs/none")
    run(capsys, *words, f"start_from={finished_run}").refused(1, None, "here training would begin")
    assert len(trainers) == 1
    run(capsys, *words).refused(2, "C11", "the output folder is not empty")


@pytest.mark.parametrize(("step", "evaluated_again"), [(2, False), (4, True), (None, True)])
def test_metrics_are_those_of_the_best_checkpoint(tmp_path, monkeypatch, step, evaluated_again):
    """After a restart the best evaluation may be one of the first half, whose numbers are gone.

    The second half may have one of the same score, of other weights.
    """
    categories = [Category(i + 1, name) for i, name in enumerate(SHAPES[:3])]
    settings = resolve("detr_tiny", "DATA", None, None, False, None, None, ["model.num_classes=3"])
    write_run(tmp_path, build(settings.model, "detr_tiny", categories), {2: 0.3, 4: 0.3})
    done = []
    monkeypatch.setattr(regard.runs.run, "write_report", lambda run: None)

    def kept(name):
        return SimpleNamespace(write=lambda run, data: done.append((name, run, data)))

    def again(net):
        assert net.class_embed.bias.unique().tolist() == [2]  # the weights of that step
        return kept("again")

    first = None if step is None else kept("kept")
    task = SimpleNamespace(best_evaluation=first, best_step=step, evaluate_images=again)
    scores = regard.runs.run._finish(settings, tmp_path, CPU, task)
    assert scores == {"AP": 0.3}
    assert done == [("again" if evaluated_again else "kept", tmp_path, "DATA")]


def test_segments_of_an_older_best_checkpoint_are_scored_at_their_best_threshold(shapes, tmp_path, monkeypatch):
    """Not at 0.3, above which this model finds nothing."""
    words = ["short_side=32", "max_size=32", "workers=0", "model.sigmoid=true", "model.num_classes=5"]
    settings = resolve("detr_tiny_panoptic", shapes, None, None, False, None, None, words)
    val = open_panoptic(shapes, "val")
    write_run(tmp_path, small_detector(), {2: 1.0})
    monkeypatch.setattr(regard.runs.run, "write_report", lambda run: None)
    monkeypatch.setattr(regard.runs.run, "load", lambda path: Finder(list(val), val.categories))
    task = DetectionTask(settings, val, val, CPU)
    regard.runs.run._finish(settings, tmp_path, CPU, task)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["best_threshold"] == 0.2 and metrics["stats"]["PQ"] == 1


def test_what_resume_needs(capsys, tmp_path):
    run(capsys, "train", "--resume").refused(2, "C09", "--output RUN")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(to_mapping(recipe_for("detr_tiny"))))
    line = run(capsys, "train", "detr_resnet50", "--resume", "--output", tmp_path).refused(2, "C09")
    assert "for detr_tiny, not for detr_resnet50" in line
