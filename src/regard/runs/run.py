"""`regard.train` and `regard.evaluate`: a recipe becomes a run, a folder that holds all there is to know of it."""

from __future__ import annotations

import itertools
import json
import platform
import subprocess
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
import torchvision
import yaml

import regard
from regard.config import to_mapping
from regard.data.paths import data_text
from regard.errors import ConfigError
from regard.evaluation.classification import ClassifierEvaluation
from regard.evaluation.classification_entry import Questions, judge
from regard.evaluation.detection import DetectorEvaluation
from regard.metrics.charts.detection import plot_curves
from regard.metrics.classification import ClassificationScores
from regard.metrics.detection import DetectionScores
from regard.metrics.segmentation import SegmentationScores
from regard.models.build import Detector, Model
from regard.prediction.predict import device_for
from regard.recipes import Recipe
from regard.recipes.detection import DetectionRecipe
from regard.runs import detection as detection_runs
from regard.runs.classification import ClassificationJob
from regard.runs.classification_task import ClassificationTask
from regard.runs.detection import DetectionJob
from regard.runs.detection_task import DetectionTask
from regard.safe_files import is_used, make_writable, replace_text
from regard.training.checkpoints import newest_checkpoint, read_checkpoint
from regard.training.distributed import Processes, processes
from regard.training.loop import Trainer
from regard.training.reports import Reporter, read_rows
from regard.training.run_lock import lock_run
from regard.weights.load import best_checkpoint, load, model_state

Job = DetectionJob | ClassificationJob
Scores = DetectionScores | SegmentationScores | ClassificationScores


@dataclass(frozen=True)
class Run:
    """A finished training run. folder: its files. scores: of the best checkpoint, AP or top1 and the like, 0..1."""

    folder: Path
    scores: dict[str, float]

    def load(self) -> Model:
        """The best model of the run."""
        return load(self.folder)


def run_training(settings: Recipe, output: Path | None, resume: bool, quiet: bool) -> Run:
    """Train with resolved settings: on this process, or on all that `torchrun` started."""
    with processes(settings.device) as group:
        return _train(settings, output, resume, group, quiet)


def evaluate(
    source: str | Path | Model,
    data: str | Path,
    *,
    output: str | Path | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    workers: int = 2,
    probe: bool = False,
    throughput: bool = False,
    real: str | Path | None = None,
    all_images: bool = False,
    submission: str | Path | None = None,
    tell: Callable[[Scores], None] | None = None,
) -> Scores:
    """Scores of a model on the validation split of a data set: COCO's of a detector, accuracy of a classifier.

    Args:
        source: whatever `regard.load` takes, or a model.
        data: as for `train`.
        output: folder for `metrics.json` and pictures; the run itself if `source` is one; none if None otherwise.
        batch_size: images at once; 1 for detectors and 64 for classifiers if None. 1 does not pad, and padding
            changes a detector's numbers: those with a dilated last stage (DC5) were published with 1.
        device: `auto` leaves a model that is passed in where it is, and takes the best device for all others.
        probe: of a classifier, also how well its features tell the classes apart without its classifying layer: the
            vote of nearest neighbours (`knn_top1`) and a linear classifier (`linear_top1`) learn from the training
            images.
        throughput: of a classifier, also `images_per_second` of the model alone, in batches of `batch_size`.
        real: `real.json` of ReaL (Beyer et al. 2020); for ImageNet's validation images also `real_top1`.
        all_images: class folders without train and val, such as ImageNet-A, are a test set: judge on all of their
            images, not on the fifth that is kept for validation.
        submission: of a detector, file for what it finds in COCO's result format, with the data's own image and
            category ids: masks if it has them, else boxes; of a panoptic model COCO's panoptic file, with a folder of
            PNG files beside it.
        tell: is called with the scores as soon as they are known, before anything is written.

    A classifier may know more classes than the data have; then the best of those counts that the data have.
    """
    questions = Questions(probe, throughput, real, all_images)
    if (batch_size is not None and batch_size < 1) or workers < 0:
        what = f"batch_size={batch_size} and workers={workers}, expected at least 1 and 0"
        raise ConfigError(what, code="C03")
    if output is None and isinstance(source, (str, Path)) and (Path(source) / "checkpoints").is_dir():
        output = source
    net = load(source) if isinstance(source, (str, Path)) else source
    where = device_for(source, device)
    if output is not None:  # not an hour later
        make_writable(Path(output))
    text = data_text(data)
    evaluation: DetectorEvaluation | ClassifierEvaluation
    if isinstance(net, Detector):
        if questions:
            what = "probe, throughput, real and all_images are for classifiers"
            raise ConfigError(what, where=net.card.name, remedy="leave them out", code="C09")
        run = Path(source) if isinstance(source, (str, Path)) else None
        size = batch_size or 1
        file = None if submission is None else Path(submission)
        evaluation = detection_runs.evaluate_on(
            net, text, run=run, device=where, batch_size=size, workers=workers, submission=file
        )
    else:
        if submission is not None:
            raise ConfigError("submission is for detectors", where=net.card.name, remedy="leave it out", code="C09")
        size = batch_size or 64
        evaluation = judge(net, text, questions, device=where, batch_size=size, workers=workers)
    if tell is not None:
        tell(evaluation.scores)
    if output is not None:
        evaluation.write(Path(output), text)
    return evaluation.scores


def _train(settings: Recipe, output: Path | None, resume: bool, group: Processes, quiet: bool) -> Run:
    if settings.amp == "fp16" and group.device.type == "cpu":
        raise ConfigError("amp=fp16 needs a GPU", remedy="use amp=bf16 or amp=off", code="C10")
    job = DetectionJob(settings) if isinstance(settings, DetectionRecipe) else ClassificationJob(settings)
    # A run that was stopped before its first checkpoint starts anew.
    started = resume and output is not None and newest_checkpoint(output / "checkpoints") is not None
    notes = [] if started else job.fetch_weights()
    run = _run_folder(output, settings.name, resume, group)
    with lock_run(run) if group.is_main else nullcontext():
        net, more = job.starting_model()
        reporter = Reporter(
            run if group.is_main else None,
            log_every=settings.log_every,
            images_per_step=settings.batch_size * settings.accumulate * group.world_size,
            quiet=quiet,
        )
        for note in [*job.findings, *notes, *more]:
            reporter.say(note)
        task = job.task(group, run / "pictures" if group.is_main else None)
        state = {"model_state": model_state(net)}
        trainer = Trainer(net.to(group.device), task, job.settings, run, group, state, reporter)
        if resume:
            trainer.resume()
        if group.is_main:  # not before: settings that the checkpoint refuses would stay in config.yaml
            _describe(run, job)
        reporter.say(
            f"{settings.name}: {len(job.train_data)} training and {len(job.val_data)} validation images, "
            f"{len(job.train_data.categories)} classes, on {group.device} -> {run}"
        )
        with job.advice():
            trainer.fit()
        scores = _finish(job.settings, run, group, task)
    return Run(run, scores)


def _run_folder(output: Path | None, name: str, resume: bool, group: Processes) -> Path:
    """The run's folder, made if need be. A folder with anything in it is only used to go on."""
    if output is None:
        number = next(n for n in itertools.count(1) if not Path("runs", f"{name}-{n}").exists())
        output = Path(group.gather(str(Path("runs", f"{name}-{number}")))[0])
        group.wait()
    if group.is_main:
        _make_run_folder(output, resume)
    group.wait()
    return output


def _make_run_folder(output: Path, resume: bool) -> None:
    if is_used(output) and not resume:
        remedy = "add --resume, or name another folder"
        raise ConfigError("the output folder is not empty", where=output, remedy=remedy, code="C11")
    make_writable(output)


def _describe(run: Path, job: Job) -> None:
    """`config.yaml`, `environment.json` and a picture of the data set: what is needed to do it again."""
    # First of all: a run with settings can be gone on with, and a folder without anything can be started in.
    replace_text(run / "config.yaml", yaml.safe_dump(to_mapping(job.settings), sort_keys=False))
    environment = {
        "regard": regard.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "git": _git_state(),
        "data": {split.split: split.fingerprint() for split in (job.train_data, job.val_data)},
    }
    replace_text(run / "environment.json", json.dumps(environment, indent=2))
    (run / "pictures").mkdir(exist_ok=True)
    job.draw_data(run / "pictures")


def _finish(
    settings: Recipe, run: Path, group: Processes, task: DetectionTask | ClassificationTask
) -> dict[str, float]:
    """`metrics.json` and report pictures of the best checkpoint; training curves."""
    group.wait()
    best = read_checkpoint(best_checkpoint(run), parts=[])
    scores = best.state["progress"]["scores"]
    if group.is_main:
        plot_curves(read_rows(run / "metrics.jsonl"), run / "pictures" / "curves.png")
        evaluation = task.best_evaluation
        if evaluation is not None and evaluation.scores.stats[task.score] == scores.get(task.score):
            evaluation.write(run, settings.data)
        else:  # the best came before the run was stopped and resumed
            workers, batch_size = settings.workers, settings.batch_size
            evaluate(run, settings.data, device=settings.device, batch_size=batch_size, workers=workers)
    return scores


def _git_state() -> str | None:
    """Commit of the folder in which we run, `+` if it has changes; None outside of git."""
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True)
        changes = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return None
    return commit.stdout.strip() + ("+" if changes.stdout.strip() else "")
