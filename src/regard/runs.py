"""`regard.train` and `regard.evaluate`: a recipe becomes a run, a folder that holds all there is to know of it."""

from __future__ import annotations

import itertools
import json
import platform
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torchvision
import yaml
from torch import Tensor

import regard
from regard.config import apply_mapping, apply_overrides, line_of, read_yaml, to_mapping
from regard.data.checks import to_coco
from regard.data.formats import CocoDataset, open_detection
from regard.data.shapes import data_folder, data_text
from regard.data.transforms import EvaluationResize, Pipeline, RandomFlip, paper_augmentation, small_augmentation
from regard.detection import DetectionTask, DetectorEvaluation, evaluate_detector
from regard.errors import ConfigError, DataError, MachineError
from regard.evaluation.detection import DetectionScores, warn_of_surplus
from regard.evaluation.plots import plot_curves, plot_dataset, plot_detections
from regard.folders import is_used, make_writable
from regard.loading import best_checkpoint, load, model_state
from regard.losses import SetCriterion
from regard.models.catalog import Detector, build
from regard.models.weights import imagenet_weights, load_backbone, transfer
from regard.prediction import device_for
from regard.recipes import Recipe, recipe_for
from regard.training.checkpoints import newest_checkpoint, read_checkpoint
from regard.training.distributed import Processes, processes
from regard.training.loop import Trainer
from regard.training.reports import Reporter, read_rows, replace_text
from regard.training.run_lock import lock_run


@dataclass(frozen=True)
class Run:
    """A finished training run. folder: its files. scores: of the best checkpoint, AP and the like, 0..1."""

    folder: Path
    scores: dict[str, float]

    def load(self) -> Detector:
        """The best model of the run."""
        return load(self.folder)


def train(
    model: str | None = None,
    data: str | Path | None = None,
    *,
    epochs: int | None = None,
    output: str | Path | None = None,
    resume: bool = False,
    recipe: str | None = None,
    config: str | Path | None = None,
    overrides: Sequence[str] = (),
    quiet: bool = False,
) -> Run:
    """Train a detector.

    Args:
        model: a name of `list_models()`.
        data: folder in COCO's layout, or `shapes` for generated images (`shapes:size=96,classes=5`).
        epochs: passes over the training images; the recipe's number if None.
        output: the run's folder; `runs/MODEL-N` if None.
        resume: go on with the run in `output`; its own settings apply, `overrides` on top.
        recipe: `paper`, `finetune`, `fast` or `small`; the model's own if None.
        config: a `config.yaml` of an earlier run to start from, instead of `model` and `recipe`.
        overrides: settings as `key=value`.
        quiet: print nothing.

    Raises:
        ConfigError, DataError, CheckpointError, DivergedError, MachineError: with one line that says what to do.
    """
    settings = resolve(model, data, epochs, output, resume, recipe, config, overrides)
    with processes(settings.device) as group:
        return _train(settings, Path(output) if output else None, resume, group, quiet)


def resolve(
    model: str | None,
    data: str | Path | None,
    epochs: int | None,
    output: str | Path | None,
    resume: bool,
    recipe: str | None,
    config: str | Path | None,
    overrides: Sequence[str],
) -> Recipe:
    """The settings of a run: recipe or file first, then arguments, then `key=value`, each over the one before."""
    given = [("--config", config is not None), ("--resume", resume), ("--recipe", recipe is not None)]
    ways = [name for name, is_given in given if is_given]
    if len(ways) > 1:
        raise ConfigError(f"{' and '.join(ways)} both say how to train", remedy="leave one of them out", code="C09")
    if resume:
        if output is None:
            raise ConfigError("--resume needs the run's folder", remedy="add --output RUN", code="C09")
        config = Path(output) / "config.yaml"
        if not config.exists():
            raise ConfigError("no run to go on with", where=output, remedy="leave out --resume", code="C09")
    if config is not None:
        settings = _from_file(Path(config))
        if model is not None and model != settings.name:
            raise ConfigError(f"the settings are for {settings.name}, not for {model}", where=config, code="C09")
    elif model is None:
        raise ConfigError("which model?", remedy="see: regard models", code="C09")
    else:
        settings = recipe_for(model, recipe)
    changes: dict[str, Any] = {} if data is None else {"data": data_text(data)}
    if epochs is not None:
        changes["epochs"] = epochs
    resolved = apply_overrides(apply_mapping(settings, changes), overrides)
    if resolved.name != settings.name:
        remedy = "name the run's folder with --output, the model before all settings"
        raise ConfigError("name is that of the model and cannot be set", where="name", remedy=remedy, code="C09")
    if not resolved.data:
        raise ConfigError("which data?", remedy="add --data FOLDER, or --data shapes", code="C09")
    return resolved


def evaluate(
    source: str | Path | Detector,
    data: str | Path,
    *,
    output: str | Path | None = None,
    device: str = "auto",
    batch_size: int = 1,
    workers: int = 2,
    tell: Callable[[DetectionScores], None] | None = None,
) -> DetectionScores:
    """COCO scores of a model on the validation split of a data set.

    Args:
        source: whatever `regard.load` takes, or a model.
        data: folder in COCO's layout, or `shapes`.
        output: folder for `metrics.json` and pictures; the run itself if `source` is one; none if None otherwise.
        batch_size: images at once. 1 does not pad, and padding changes a detector's numbers: those with a dilated
            last stage (DC5) were published with 1.
        device: `auto` leaves a model that is passed in where it is, and takes the best device for all others.
        tell: is called with the scores as soon as they are known, before anything is written.
    """
    if batch_size < 1 or workers < 0:
        what = f"batch_size={batch_size} and workers={workers}, expected at least 1 and 0"
        raise ConfigError(what, code="C03")
    if output is None and not isinstance(source, Detector) and (Path(source) / "checkpoints").is_dir():
        output = source
    net = source if isinstance(source, Detector) else load(source)
    where = device_for(source, device)
    dataset = open_detection(data_folder(data), "val")
    if output is not None:  # not an hour later
        make_writable(Path(output))
    criterion = _criterion_for(source, net)
    with _advice(data_text(data)):
        evaluation = evaluate_detector(
            net.to(where),
            dataset,
            resize=EvaluationResize(net.card.short_side, net.card.max_size),
            softmax=not net.config.sigmoid,
            criterion=criterion,
            categories=net.card.categories,
            batch_size=batch_size,
            workers=workers,
            processes=Processes(0, 1, where),
        )
    warn_of_surplus(evaluation.ground_truth, evaluation.detections)
    if tell is not None:
        tell(evaluation.scores)
    if output is not None:
        _write_evaluation(Path(output), evaluation, data_text(data))
    return evaluation.scores


def _criterion_for(source: str | Path | Detector, net: Detector) -> SetCriterion:
    """The loss of the run, if there is one: with its weights, so that losses compare to those in training."""
    settings = None if isinstance(source, Detector) else Path(source) / "config.yaml"
    if settings is not None and settings.is_file():
        recipe = _from_file(settings)
        return criterion_of(replace(recipe, model=replace(recipe.model, num_classes=net.config.num_classes)))
    return SetCriterion(net.config.num_classes, classification="focal" if net.config.sigmoid else "softmax")


def _from_file(path: Path) -> Recipe:
    values = read_yaml(path)
    name = values.get("name")
    if not isinstance(name, str):
        raise ConfigError(
            "no name of a model", where=path, remedy="add a line such as: name: detr_resnet50", code="C01"
        )
    try:
        recipe = recipe_for(name)
    except ConfigError as error:
        raise _placed(error, line_of(path, "name")) from error
    try:
        return apply_mapping(recipe, values)
    except ConfigError as error:
        # It names the setting: the first of its words that is a key of the file.
        lines = (line_of(path, word) for word in re.findall(r"[a-z_][\w.]*", error.what))
        raise _placed(error, next((line for line in lines if line != str(path)), str(path))) from error


def _placed(error: ConfigError, where: str) -> ConfigError:
    return ConfigError(error.what, where=where, remedy=error.remedy, code=error.code)


@contextmanager
def _advice(data: str) -> Iterator[None]:
    """An image that cannot be used seldom is the only one: the error tells how to find them all."""
    try:
        yield
    except DataError as error:
        if not (error.code or "").startswith(("I", "A33")):
            raise
        remedy = f"{error.remedy}; find all such images: regard data check {data_folder(data)}"
        raise DataError(error.what, where=error.where, remedy=remedy, code=error.code) from error


def _train(settings: Recipe, output: Path | None, resume: bool, group: Processes, quiet: bool) -> Run:
    if settings.amp == "fp16" and group.device.type == "cpu":
        raise ConfigError("amp=fp16 needs a GPU", remedy="use amp=bf16 or amp=off", code="C10")
    train_data, val_data, settings = _open_data(settings)
    # A run that was stopped before its first checkpoint starts anew.
    started = resume and output is not None and newest_checkpoint(output / "checkpoints") is not None
    backbone: Mapping[str, Tensor] = {}
    notes: list[str] = []
    if not started:
        settings, backbone, notes = _with_reachable_weights(settings)
    run = _run_folder(output, settings.name, resume, group)
    with lock_run(run) if group.is_main else nullcontext():
        net, more = _starting_model(settings, train_data, backbone, started)
        reporter = Reporter(
            run if group.is_main else None,
            log_every=settings.log_every,
            images_per_step=settings.batch_size * settings.accumulate * group.world_size,
            quiet=quiet,
        )
        findings = [str(issue) for data in (train_data, val_data) for issue in data.annotations.report.issues]
        for note in [*findings, *notes, *more]:
            reporter.say(note)
        task = DetectionTask(
            train_data,
            val_data,
            augmentation=augmentation_of(settings),
            resize=EvaluationResize(settings.short_side, settings.max_size),
            criterion=criterion_of(settings),
            softmax=not settings.model.sigmoid,
            batch_size=settings.batch_size,
            workers=settings.workers,
            seed=settings.seed,
            processes=group,
            pictures=run / "pictures" if group.is_main else None,
        )
        trainer = Trainer(net.to(group.device), task, settings, run, group, {"model_state": model_state(net)}, reporter)
        if resume:
            trainer.resume()
        if group.is_main:  # not before: settings that the checkpoint refuses would stay in config.yaml
            _describe(run, settings, train_data, val_data)
        reporter.say(
            f"{settings.name}: {len(train_data)} training and {len(val_data)} validation images, "
            f"{len(train_data.categories)} classes, on {group.device} -> {run}"
        )
        with _advice(settings.data):
            trainer.fit()
        scores = _finish(settings, run, group, task)
    return Run(run, scores)


def _open_data(settings: Recipe) -> tuple[CocoDataset, CocoDataset, Recipe]:
    """Both splits; the model's class count comes from them."""
    folder = data_folder(settings.data)
    train_data = open_detection(folder, "train")
    val_data = open_detection(folder, "val", categories=train_data.categories)
    most, name = train_data.max_objects
    if most > settings.model.num_queries:
        raise ConfigError(
            f"image {name} has {most} objects but the model has {settings.model.num_queries} queries",
            where=settings.data,
            remedy=f"set model.num_queries={most} or more",
            code="A43",
        )
    model = replace(settings.model, num_classes=len(train_data.categories))
    return train_data, val_data, replace(settings, model=model)


def criterion_of(settings: Recipe) -> SetCriterion:
    """The loss of a recipe."""
    return SetCriterion(
        settings.model.num_classes,
        classification="focal" if settings.model.sigmoid else "softmax",
        no_object_weight=settings.no_object_weight,
        class_weight=settings.class_weight,
        bbox_weight=settings.bbox_weight,
        giou_weight=settings.giou_weight,
    )


def augmentation_of(settings: Recipe) -> Pipeline:
    """The training augmentation of a recipe."""
    if settings.augmentation == "flip":
        return Pipeline((RandomFlip(),))
    if settings.augmentation == "small":
        return small_augmentation(settings.short_side)
    return paper_augmentation(settings.short_side, settings.max_size)


def _with_reachable_weights(settings: Recipe) -> tuple[Recipe, Mapping[str, Tensor], list[str]]:
    """ImageNet weights of the backbone, if the recipe starts from them and they can be had.

    Without them the backbone has to be trained whole: frozen batch norm with random weights learns nothing.
    """
    if settings.start_from != "backbone":
        return settings, {}, []
    try:
        return settings, imagenet_weights(settings.model.backbone), []
    except MachineError as error:
        note = (
            f"warning: no ImageNet weights for {settings.model.backbone} ({error}). The backbone starts from nothing "
            "and all of it is trained: expect far lower scores."
        )
        whole = replace(settings.model, backbone_norm="batch")
        return replace(settings, start_from="none", model=whole, lr_backbone=settings.lr), {}, [note]


def _starting_model(
    settings: Recipe, data: CocoDataset, backbone: Mapping[str, Tensor], started: bool
) -> tuple[Detector, list[str]]:
    """The model before the first step, and what the user has to know of it."""
    torch.manual_seed(settings.seed)
    net = build(settings.model, settings.name, data.categories, (settings.short_side, settings.max_size))
    if backbone:
        load_backbone(net.backbone, backbone, where=settings.model.backbone)
    if started or settings.start_from in ("none", "backbone"):
        return net, []
    return net, [transfer(load(settings.start_from), net)]


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


def _describe(run: Path, settings: Recipe, train_data: CocoDataset, val_data: CocoDataset) -> None:
    """`config.yaml`, `environment.json` and a picture of the data set: what is needed to do it again."""
    # First of all: a run with settings can be gone on with, and a folder without anything can be started in.
    replace_text(run / "config.yaml", yaml.safe_dump(to_mapping(settings), sort_keys=False))
    environment = {
        "regard": regard.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "git": _git_state(),
        "data": {split.split: split.fingerprint() for split in (train_data, val_data)},
    }
    replace_text(run / "environment.json", json.dumps(environment, indent=2))
    (run / "pictures").mkdir(exist_ok=True)
    plot_dataset(to_coco(train_data.annotations), run / "pictures")


def _finish(settings: Recipe, run: Path, group: Processes, task: DetectionTask) -> dict[str, float]:
    """`metrics.json` and report pictures of the best checkpoint; training curves."""
    group.wait()
    best = read_checkpoint(best_checkpoint(run), parts=[])
    scores = best.state["progress"]["scores"]
    if group.is_main:
        plot_curves(read_rows(run / "metrics.jsonl"), run / "pictures" / "curves.png")
        evaluation = task.best_evaluation
        if evaluation is not None and evaluation.scores.stats["AP"] == scores.get("AP"):
            _write_evaluation(run, evaluation, settings.data)
        else:  # the best came before the run was stopped and resumed
            workers, batch_size = settings.workers, settings.batch_size
            evaluate(run, settings.data, device=settings.device, batch_size=batch_size, workers=workers)
    return scores


def _write_evaluation(folder: Path, evaluation: DetectorEvaluation, data: str | None) -> None:
    content = {"data": data, "losses": evaluation.losses, **evaluation.scores.to_dict()}
    replace_text(folder / "metrics.json", json.dumps(content, indent=2))
    plot_detections(evaluation.ground_truth, evaluation.detections, folder / "pictures")


def _git_state() -> str | None:
    """Commit of the folder in which we run, `+` if it has changes; None outside of git."""
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True)
        changes = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return None
    return commit.stdout.strip() + ("+" if changes.stdout.strip() else "")
