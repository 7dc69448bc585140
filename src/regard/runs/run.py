"""A training run: settings in, a folder with checkpoints, metrics and pictures out."""

from __future__ import annotations

import itertools
import json
import platform
import subprocess
from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torchvision
import yaml

import regard
from regard.config import to_mapping
from regard.data.class_images.dataset import ClassificationDataset
from regard.data.coco.dataset import CocoDataset
from regard.data.coco.panoptic import PanopticDataset
from regard.errors import ConfigError, counted
from regard.models.activations import block_names, checkpoint_activations
from regard.models.build import Model
from regard.models.engine.engines import check_compiler, compile_parts
from regard.models.memory_order import move_to_device
from regard.recipes import Recipe
from regard.recipes.detection import DetectionRecipe
from regard.recipes.retinanet import RetinaNetRecipe
from regard.results.reports.report import NAME, write_report
from regard.runs.classification import ClassificationJob
from regard.runs.classification_task import ClassificationTask
from regard.runs.detection import DetectionJob
from regard.runs.detection_task import DetectionTask
from regard.runs.few_steps import few_ahead, few_done
from regard.runs.notes import keep_notes
from regard.runs.profile import StepProfile
from regard.runs.retinanet import RetinaNetJob
from regard.safe_files import is_used, make_writable, replace_text
from regard.structures.precision import describe, resolve_amp, tf32
from regard.training.checkpoints import newest_checkpoint, read_checkpoint
from regard.training.distributed import Processes, processes
from regard.training.loop import Trainer
from regard.training.reports import EVALUATION_METRICS, Reporter
from regard.training.run_lock import lock_run
from regard.weights.load import best_checkpoint, load
from regard.weights.model_state import model_state

Job = DetectionJob | RetinaNetJob | ClassificationJob


@dataclass(frozen=True)
class Run:
    """A finished training run. folder: its files. scores: AP, top1 and so on of the best checkpoint, 0..1."""

    folder: Path
    scores: dict[str, float]

    @property
    def report(self) -> Path:
        """The page that describes the run: one HTML file."""
        return self.folder / NAME

    @property
    def summary(self) -> str:
        """One line: the folder, the scores of the best checkpoint, and the report."""
        shown = [f"{name} {self.scores[name]:.3f}" for name in EVALUATION_METRICS[:-1] if name in self.scores]
        return f"{self.folder}: best checkpoint {', '.join(shown)}; report: {self.report}"

    def load(self) -> Model:
        """Load the model of the best checkpoint."""
        return load(self.folder)


def run_training(
    settings: Recipe,
    output: Path | None,
    resume: bool,
    quiet: bool,
    given: Collection[str] | None = None,
    find_batch: bool = False,
    profile: bool = False,
) -> Run:
    """Train with resolved settings: on this process, or on all that `torchrun` started.

    given: names of the settings that the user gave, where the data choose those of a detector; else None.
    find_batch: whether the GPU chooses the batch size of a detector.
    profile: whether to write where a step goes.
    """
    with processes(settings.device) as group:
        # As the device has it: config.yaml then tells what was done, and a resumed run does the same.
        settings = replace(settings, amp=resolve_amp(settings.amp, group.device))
        with tf32(group.device, settings.tf32):
            if isinstance(settings, DetectionRecipe):
                return _train(DetectionJob(settings, given, group, find_batch), output, resume, group, quiet, profile)
            if isinstance(settings, RetinaNetRecipe):
                return _train(RetinaNetJob(settings), output, resume, group, quiet, profile)
            with _timed_convolutions():  # images of a classifier have one size
                return _train(ClassificationJob(settings), output, resume, group, quiet, profile)


@contextmanager
def _timed_convolutions() -> Iterator[None]:
    """Let cuDNN try its algorithms for each new size of images and take the fastest. Has no effect on a CPU."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def _train(job: Job, output: Path | None, resume: bool, group: Processes, quiet: bool, profile: bool) -> Run:
    settings = job.settings
    # A run that was stopped before its first checkpoint starts from the beginning.
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
            log_to=settings.log_to or (),
            settings=to_mapping(job.settings),
        )
        notes = [*job.findings, *notes, *more]
        for note in notes:
            reporter.say(note)
        task = job.task(group, run / "pictures" if group.is_main else None)
        state = {"model_state": model_state(net), "data": _fingerprints(job)}
        net = move_to_device(net, settings.channels_last, group.device)
        if settings.checkpoint_activations:
            checkpoint_activations(net)
        if settings.compile:
            check_compiler(group.device)
            compile_parts(net)
        blocks = block_names(net)
        trainer = Trainer(net, task, job.settings, run, group, state, reporter, blocks)
        measured = StepProfile(run, group.device) if profile and group.is_main else None
        if measured is not None:
            trainer.around_step = measured.step
        length = _too_short(job, trainer)
        for note in length:
            reporter.say(note)
        if resume and trainer.resume() and trainer.is_finished:
            reporter.say(f"this run is finished, at step {trainer.progress.step}: {trainer.what_ended}")
        if group.is_main:  # not earlier: config.yaml would keep settings that the checkpoint refuses
            _describe(run, job, group)
            keep_notes(run, notes, length, resumed=started)
        images = f"{len(job.train_data):,} training and {counted(len(job.val_data), 'validation image')}"
        classes = counted(len(job.train_data.categories), "class", "classes")
        where = f"{group.device} in {describe(settings.amp, group.device, with_tf32=settings.tf32)}"
        reporter.say(f"{settings.name}: {images}, {classes}, on {where} -> {run}")
        with job.advice():
            trainer.fit()
        for note in (ended := few_done(job.enough, trainer)):
            reporter.say(note)
        if measured is not None and measured.missing:
            steps = counted(measured.missing, "step")
            reporter.say(f"warning: no profile.txt: {steps} too few. Set epochs or minutes higher")
        if group.is_main:
            keep_notes(run, notes, [*length, *ended], resumed=True)
        with job.advice():
            scores = _finish(job.settings, run, group, task)
    return Run(run, scores)


def _too_short(job: Job, trainer: Trainer) -> list[str]:
    """Return what is known before the first step to be too short, one warning each."""
    notes, warmup, steps = few_ahead(job.enough, trainer), job.settings.warmup_steps, trainer.total_steps
    if warmup > steps:
        what = f"warmup_steps={warmup} of {counted(steps, 'step')}"
        notes.append(f"warning: {what}: it will hardly learn. Set warmup_steps={steps // 20}")
    return notes


def _run_folder(output: Path | None, name: str, resume: bool, group: Processes) -> Path:
    """Return the run's folder, created if needed. A folder that is not empty is used only to resume."""
    if output is None:
        number = next(n for n in itertools.count(1) if not Path("runs", f"{name}-{n}").exists())
        output = Path(group.gather(str(Path("runs", f"{name}-{number}")))[0])
        group.barrier()
    if group.is_main:
        _make_run_folder(output, resume)
    group.barrier()
    return output


def _make_run_folder(output: Path, resume: bool) -> None:
    if is_used(output) and not resume:
        remedy = "add --resume, or name another folder"
        raise ConfigError("the output folder is not empty", where=output, remedy=remedy, code="C11")
    make_writable(output)


def _describe(run: Path, job: Job, group: Processes) -> None:
    """Write `config.yaml`, `environment.json` and a picture of the data set, which are needed to repeat the run."""
    # Written first: a run with settings can be resumed, and an empty folder can be used again.
    replace_text(run / "config.yaml", yaml.safe_dump(to_mapping(job.settings), sort_keys=False))
    environment = {
        "regard": regard.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "system": platform.platform(),
        "device": str(group.device),
        "processes": group.world_size,
        "cuda": torch.cuda.get_device_name(group.device) if group.device.type == "cuda" else None,
        "git": _git_state(),
        "data": _fingerprints(job),
        "counts": {split.split: count_data(split) for split in (job.train_data, job.val_data)},
    }
    replace_text(run / "environment.json", json.dumps(environment, indent=2))
    (run / "pictures").mkdir(exist_ok=True)
    job.draw_data(run / "pictures")


def _fingerprints(job: Job) -> dict[str, str]:
    return {split.split: split.fingerprint() for split in (job.train_data, job.val_data)}


def count_data(split: CocoDataset | PanopticDataset | ClassificationDataset) -> dict[str, int]:
    """Return the numbers of images, of objects or segments that are learned, and of classes that occur."""
    if isinstance(split, ClassificationDataset):
        return {"images": len(split), "classes": sum(count > 0 for count in split.counts())}
    if isinstance(split, PanopticDataset):
        labels = split.annotations.segments.labels[~split.annotations.segments.is_crowd]
    else:
        labels = split.annotations.objects.labels[split.annotations.objects.is_target]
    return {"images": len(split), "objects": len(labels), "classes": len(set(labels.tolist()))}


def _finish(
    settings: Recipe, run: Path, group: Processes, task: DetectionTask | ClassificationTask
) -> dict[str, float]:
    """Write `metrics.json` and pictures of the best checkpoint, and the report. Returns its scores."""
    group.barrier()
    path = best_checkpoint(run)
    best = read_checkpoint(path, parts=[])
    evaluation = task.best_evaluation
    if evaluation is None or task.best_step != best.step:  # older than this process: the run was resumed
        evaluation = task.evaluate_images(load(path).to(group.device))
    if group.is_main:
        evaluation.write(run, settings.data)
        write_report(run)
    group.barrier()  # SLURM ends the rest some time after the first process has ended
    return best.state["progress"]["scores"]


def _git_state() -> str | None:
    """Return the git commit of the current folder, with `+` if it has changes; None outside of git."""
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True)
        changes = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return None
    return commit.stdout.strip() + ("+" if changes.stdout.strip() else "")
