"""Runs of detectors: what a recipe, data and a model become for `regard.train` and `regard.evaluate`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from regard.data.check import advise
from regard.data.coco.dataset import CocoDataset, open_detection
from regard.data.coco.panoptic import PanopticDataset, PanopticWriter, has_panoptic, open_panoptic
from regard.data.generated.shapes import data_folder
from regard.data.splits import Split
from regard.data.transforms.detection import EvaluationResize, Pipeline, paper_augmentation, small_augmentation
from regard.data.transforms.image import RandomFlip
from regard.errors import ConfigError, MachineError
from regard.evaluation.detection import DetectorEvaluation, ObjectDataset, evaluate_detector
from regard.losses import SetCriterion
from regard.metrics.charts.detection import plot_dataset
from regard.metrics.detection import warn_of_surplus
from regard.metrics.masks import check_outlines
from regard.models.build import Detector, build
from regard.models.detr import DETR
from regard.recipes import recipe_from_file
from regard.recipes.detection import DetectionRecipe
from regard.runs.detection_task import DetectionTask
from regard.safe_files import is_used, make_writable, replace_text
from regard.structures.categories import Category
from regard.training.distributed import Processes
from regard.weights.detr import imagenet_weights, load_backbone, transfer
from regard.weights.load import load

MOST_DRAWN = 500  # panoptic images in the picture of the data
START_FROZEN = "set start_from=RUN, a detector trained on these data with --recipe panoptic_boxes"


class DetectionJob:
    """The run of a detector.

    Attributes:
        settings: the recipe, with the number of classes of the data.
        train_data, val_data: both splits.
    """

    def __init__(self, settings: DetectionRecipe) -> None:
        _check_freezing(settings)
        folder = data_folder(settings.data)
        panoptic = settings.annotations == "panoptic"
        if settings.annotations == "auto":
            panoptic = settings.model.masks and has_panoptic(folder)
        masks = settings.model.masks
        self.train_data = open_objects(folder, "train", panoptic=panoptic, masks=masks)
        self.val_data = open_objects(folder, "val", panoptic=panoptic, masks=masks, like=self.train_data.categories)
        if masks and isinstance(self.val_data, CocoDataset):
            check_outlines(self.val_data.to_coco(masks=True))  # now, not at the first evaluation
        num_queries, self._more_queries = settings.model.num_queries, list[str]()
        if not settings.freeze_detector:  # which brings its queries with it
            num_queries, self._more_queries = self._count_queries(settings)
        num_classes = len(self.train_data.categories)
        model = replace(settings.model, num_classes=num_classes, num_queries=num_queries)
        self.settings = replace(settings, model=model)
        self.backbone: Mapping[str, Tensor] = {}
        self.source: Detector | None = None

    def _count_queries(self, settings: DetectionRecipe) -> tuple[int, list[str]]:
        """How many queries the data need, and what is to be said of it."""
        most, name = self.train_data.max_objects
        given = settings.model.num_queries
        if most <= given:
            return given, []
        what = f"image {name} has {most} objects but the model has {given} queries"
        if not settings.fit_queries:
            remedy = f"set model.num_queries={most} or more"
            raise ConfigError(what, where=settings.data, remedy=remedy, code="A43")
        most = max(most, self.val_data.max_objects[0])
        fitting = math.ceil(1.2 * most / 10) * 10  # images to come may have a few more
        return fitting, [f"{what}: it gets {fitting} (model.num_queries)"]

    @property
    def findings(self) -> list[str]:
        """What is worth a line of the data."""
        found = [str(issue) for data in (self.train_data, self.val_data) for issue in data.annotations.report.issues]
        return found + self._more_queries

    def fetch_weights(self) -> list[str]:
        """Get what the training starts from; gives what the user has to know of it.

        Without ImageNet weights the backbone has to be trained whole: frozen batch norm with random weights learns
        nothing.
        """
        settings = self.settings
        if settings.start_from == "backbone":
            return self._fetch_backbone()
        if settings.start_from != "none":
            source = load(settings.start_from)
            if isinstance(source, Detector):
                self.source = source
                return self._keep_queries(source) if settings.freeze_detector else []
            if settings.freeze_detector:
                what = f"freeze_detector with weights of {source.card.name}: the detector would stay untrained"
                raise ConfigError(what, where=settings.start_from, remedy=START_FROZEN, code="C09")
            if source.card.name != settings.model.backbone:
                what = f"weights of {source.card.name} for the backbone {settings.model.backbone}"
                remedy = f"set model.backbone={source.card.name}"
                raise ConfigError(what, where=settings.start_from, remedy=remedy, code="K07")
            self.backbone = source.state_dict()
            return [f"the backbone starts from {settings.start_from}"]
        return []

    def _keep_queries(self, source: Detector) -> list[str]:
        """A detector that stays as it is keeps the number of its queries."""
        count, given = source.config.num_queries, self.settings.model.num_queries
        model = replace(self.settings.model, num_queries=count)
        self.settings = replace(self.settings, model=model, fit_queries=False)
        self._count_queries(self.settings)
        return [] if count == given else [f"model.num_queries={count}, as the detector that it starts from"]

    def _fetch_backbone(self) -> list[str]:
        settings = self.settings
        try:
            self.backbone = imagenet_weights(settings.model.backbone)
        except MachineError as error:
            whole = replace(settings.model, backbone_norm="batch")
            self.settings = replace(settings, start_from="none", model=whole, lr_backbone=settings.lr)
            return [
                f"warning: no ImageNet weights for {settings.model.backbone} ({error}). The backbone starts from "
                "nothing and all of it is trained: expect far lower scores."
            ]
        return []

    def starting_model(self) -> tuple[Detector, list[str]]:
        """The model before the first step, and what the user has to know of it."""
        settings = self.settings
        torch.manual_seed(settings.seed)
        sizes = (settings.short_side, settings.max_size)
        net = build(settings.model, settings.name, self.train_data.categories, sizes)
        if self.backbone:
            load_backbone(net.backbone, self.backbone, where=settings.start_from)
        net.card = replace(net.card, panoptic=isinstance(self.train_data, PanopticDataset))
        frozen = settings.freeze_detector
        notes = [] if self.source is None else [transfer(self.source, net, whole=frozen)]
        if frozen:
            assert isinstance(net, DETR)
            net.freeze_detector()
        return net, notes

    def task(self, processes: Processes, pictures: Path | None) -> DetectionTask:
        """What the training loop is told. `pictures`: folder for them."""
        settings = self.settings
        return DetectionTask(
            self.train_data,
            self.val_data,
            augmentation=augmentation_of(settings),
            resize=EvaluationResize(settings.short_side, settings.max_size),
            criterion=criterion_of(settings),
            softmax=not settings.model.sigmoid,
            batch_size=settings.batch_size,
            workers=settings.workers,
            seed=settings.seed,
            processes=processes,
            pictures=pictures,
        )

    def draw_data(self, folder: Path) -> None:
        """A picture of what the data hold."""
        data = self.train_data
        if isinstance(data, PanopticDataset):  # whose boxes are known when the PNG files are read
            shown = range(0, len(data), -(-len(data) // MOST_DRAWN))
            plot_dataset(data.objects(shown), folder, of=len(data))
        else:
            plot_dataset(data.to_coco(), folder)

    def advice(self) -> AbstractContextManager[None]:
        """Errors of images say how to find all of them."""
        return advise(data_folder(self.settings.data))


def _check_freezing(settings: DetectionRecipe) -> None:
    if settings.freeze_detector and not settings.model.masks:
        what = f"freeze_detector leaves nothing to train: {settings.name} has no mask head"
        raise ConfigError(what, remedy="set model.masks=true", code="C09")
    if settings.freeze_detector and settings.start_from in ("backbone", "none"):
        what = f"freeze_detector with start_from={settings.start_from}: the detector would stay untrained"
        raise ConfigError(what, remedy=START_FROZEN, code="C09")


def open_objects(
    folder: str | Path, split: Split, *, panoptic: bool, masks: bool, like: Sequence[Category] | None = None
) -> ObjectDataset:
    """One split: things and stuff of panoptic annotations, or objects; with their masks, or boxes alone."""
    if panoptic:
        return open_panoptic(folder, split, categories=like, masks=masks)
    return open_detection(folder, split, categories=like, masks=masks)


def criterion_of(settings: DetectionRecipe) -> SetCriterion:
    """The loss of a recipe."""
    return SetCriterion(
        settings.model.num_classes,
        classification="focal" if settings.model.sigmoid else "softmax",
        no_object_weight=settings.no_object_weight,
        class_weight=settings.class_weight,
        bbox_weight=settings.bbox_weight,
        giou_weight=settings.giou_weight,
        mask_weight=settings.mask_weight,
        dice_weight=settings.dice_weight,
    )


def augmentation_of(settings: DetectionRecipe) -> Pipeline:
    """The training augmentation of a recipe."""
    if settings.augmentation == "flip":
        return Pipeline((RandomFlip(), EvaluationResize(settings.short_side, settings.max_size)))
    if settings.augmentation == "small":
        return small_augmentation(settings.short_side)
    return paper_augmentation(settings.short_side, settings.max_size)


def evaluate_on(
    net: Detector,
    data: str,
    *,
    run: Path | None,
    device: torch.device,
    batch_size: int,
    workers: int,
    submission: Path | None = None,
) -> DetectorEvaluation:
    """Judge a detector on the validation images of a data set.

    Args:
        run: where the detector comes from; its loss is taken if it is a run.
        submission: file to write what was found to, as `regard.evaluate` says.

    Raises:
        ConfigError: the file or the folder of its PNG files is there already (C11).
    """
    folder = data_folder(data)
    masks = isinstance(net, DETR) and net.config.masks
    panoptic = net.card.panoptic and has_panoptic(folder)
    dataset = open_objects(folder, "val", panoptic=panoptic, masks=masks)
    writer = None
    if submission is not None:
        writer = PanopticWriter(submission, categories=dataset.categories) if panoptic and masks else None
        taken = [submission] if submission.exists() else []
        taken += [writer.folder] if writer is not None and is_used(writer.folder) else []
        if taken:
            remedy = "name another file, or remove what an earlier evaluation left"
            raise ConfigError("this is there already", where=taken[0], remedy=remedy, code="C11")
        make_writable(submission.parent)
    with advise(folder):
        evaluation = evaluate_detector(
            net.to(device),
            dataset,
            resize=EvaluationResize(net.card.short_side, net.card.max_size),
            softmax=not net.config.sigmoid,
            criterion=_criterion_for(run, net),
            categories=net.card.categories,
            batch_size=batch_size,
            workers=workers,
            processes=Processes(0, 1, device),
            writer=writer,
        )
    if writer is not None:
        writer.close()
    elif submission is not None:
        replace_text(submission, json.dumps(evaluation.rows()))
    warn_of_surplus(evaluation.ground_truth, evaluation.detections)
    return evaluation


def _criterion_for(run: Path | None, net: Detector) -> SetCriterion:
    """The loss of the run, if there is one: with its weights, so that losses compare to those in training."""
    settings = None if run is None else run / "config.yaml"
    recipe = recipe_from_file(settings) if settings is not None and settings.is_file() else None
    if isinstance(recipe, DetectionRecipe):
        return criterion_of(replace(recipe, model=replace(recipe.model, num_classes=net.config.num_classes)))
    return SetCriterion(net.config.num_classes, classification="focal" if net.config.sigmoid else "softmax")
