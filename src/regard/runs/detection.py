"""The job of a DETR: how a recipe, data and starting weights become a run."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import fields, replace
from pathlib import Path

import torch
from torch import Tensor

from regard.data.check import advise
from regard.data.coco.dataset import CocoDataset
from regard.data.coco.layout import has_panoptic
from regard.data.coco.panoptic import PanopticDataset
from regard.data.generated.shapes import data_folder
from regard.errors import ArchitectureError, ConfigError, MachineError, counted
from regard.evaluation.detection import open_objects
from regard.metrics.charts.detection import plot_dataset
from regard.metrics.masks import check_outlines
from regard.models.build import Model, QueryDetector, build
from regard.models.catalog import WEIGHTS
from regard.models.configs import CONFIGS
from regard.models.configs.detr import DETRConfig
from regard.models.detr import DETR
from regard.models.retinanet import RetinaNet
from regard.recipes.auto import fit_to_data, scale_to_batch
from regard.recipes.detection import DetectionRecipe
from regard.runs.batch_size import MAX_BATCH, largest_batch
from regard.runs.data_summary import summarize
from regard.runs.detection_task import DetectionTask
from regard.runs.few_steps import DETECTOR
from regard.training.distributed import Processes, choose_device
from regard.weights.backbone import classifier_file, fit_backbone
from regard.weights.detr import imagenet_weights, load_backbone, transfer
from regard.weights.load import load, load_to_train
from regard.weights.state_dict import read_weights

MAX_DRAWN = 500  # panoptic images in the picture of the data
START_FROZEN = "set start_from=RUN, a detector trained on these data with --recipe panoptic_boxes"


class DetectionJob:
    """Prepares the run of a DETR. `ClassificationJob` has the same steps.

    Args:
        settings: the recipe.
        given: names of the settings that the user gave, where the data choose the others (recipe `auto`); else None.
        processes: this process among all that train together; None for the only one.
        find_batch: whether to train with the largest batch that a GPU can have (`batch_size=auto`).

    Attributes:
        settings: the recipe, with the number of classes of the data.
        train_data, val_data: both splits.
        enough: steps that such a model needs.

    Raises:
        ConfigError: settings that exclude each other (C09), or too few queries for the data (A43).
        DataError: the data set cannot be used.
    """

    enough = DETECTOR

    def __init__(
        self,
        settings: DetectionRecipe,
        given: Collection[str] | None = None,
        processes: Processes | None = None,
        find_batch: bool = False,
    ) -> None:
        _check_freezing(settings)
        folder = data_folder(settings.data)
        panoptic = settings.annotations == "panoptic"
        if settings.annotations == "auto":
            panoptic = settings.model.masks and has_panoptic(folder)
        masks = settings.model.masks
        self.train_data = open_objects(folder, "train", panoptic=panoptic, masks=masks)
        self.val_data = open_objects(folder, "val", panoptic=panoptic, masks=masks, like=self.train_data.categories)
        if masks and isinstance(self.val_data, CocoDataset):
            check_outlines(self.val_data.to_coco(masks=True))  # fails now, not at the first evaluation
        self._decisions: list[str] = []
        self._start_is_chosen = given is not None and "start_from" not in given
        if given is not None:
            processes = processes or Processes(0, 1, choose_device(settings.device))
            settings = self._fit(settings, given, processes, find_batch)
        num_queries, self._more_queries = settings.model.num_queries, list[str]()
        if not settings.freeze_detector:  # a frozen detector keeps its own number of queries
            num_queries, self._more_queries = self._count_queries(settings)
        num_classes = len(self.train_data.categories)
        model = replace(settings.model, num_classes=num_classes, num_queries=num_queries)
        self.settings = replace(settings, model=model)
        self.backbone: Mapping[str, Tensor] = {}
        self.source: QueryDetector | None = None

    def _fit(
        self, settings: DetectionRecipe, given: Collection[str], processes: Processes, find_batch: bool
    ) -> DetectionRecipe:
        """Return settings that the data and the device choose, see `fit_to_data`; keeps what to say of them."""
        settings, given = _with_model_of_source(settings, given)
        gpu, together = processes.device.type != "cpu", processes.world_size
        summary = summarize(self.train_data, self.val_data)
        fitted, lines = fit_to_data(settings, summary, gpu=gpu, given=given, processes=together)
        if find_batch and processes.device.type == "cuda":
            model = replace(fitted.model, num_classes=summary.classes)
            most = max(1, min(MAX_BATCH, summary.images // (4 * together)))
            trial, objects = replace(fitted, model=model), summary.max_objects
            found = largest_batch(trial, self.train_data, self.val_data, objects, processes, most)
            settings, scaled = scale_to_batch(settings, found, fitted.batch_size, given)
            fitted, lines = fit_to_data(settings, summary, gpu=gpu, given={*given, "batch_size"}, processes=together)
            lines.insert(2, f"batch_size={found}: the largest that fits the GPU, of at most {most}; {scaled}")
        elif find_batch:
            what = (
                f"batch_size=auto is for CUDA GPUs: on {processes.device.type} the recipe chooses {fitted.batch_size}"
            )
            lines.insert(2, what)
        self._decisions = lines
        return fitted

    def _count_queries(self, settings: DetectionRecipe) -> tuple[int, list[str]]:
        """Return the number of queries that the data need, and notes for the user."""
        num_objects, name = self.train_data.max_objects
        given = settings.model.num_queries
        if num_objects <= given:
            return given, []
        what = f"image {name} has {num_objects} objects but the model has {counted(given, 'query', 'queries')}"
        if not settings.fit_queries:
            remedy = f"set model.num_queries={num_objects} or more"
            raise ConfigError(what, where=settings.data, remedy=remedy, code="A43")
        num_objects = max(num_objects, self.val_data.max_objects[0])
        fitting = math.ceil(1.2 * num_objects / 10) * 10  # future images may have a few more
        return fitting, [f"{what}: it gets {fitting} (model.num_queries)"]

    @property
    def findings(self) -> list[str]:
        """What the data decided, and warnings about them, one line each."""
        found = [str(issue) for data in (self.train_data, self.val_data) for issue in data.annotations.report.issues]
        return list(
            dict.fromkeys(self._decisions + found + self._more_queries)
        )  # both splits tell how the data were split

    def fetch_weights(self) -> list[str]:
        """Load the weights to start from. Returns notes for the user."""
        settings = self.settings
        if settings.start_from == "backbone":
            return self._fetch_backbone()
        if settings.start_from in CONFIGS and settings.start_from not in WEIGHTS:
            what = f"no released weights of {settings.start_from} to start from"
            raise ConfigError(what, remedy="set start_from=RUN, or leave out --recipe", code="K01")
        if (file := classifier_file(settings.start_from)) is not None:
            return self._read_backbone(file)
        if settings.start_from != "none":
            source = self._load_source()
            if isinstance(source, RetinaNet):
                what = f"weights of {source.card.name} for a DETR"
                raise ArchitectureError(what, where=settings.start_from, remedy="start from a DETR", code="K07")
            if isinstance(source, QueryDetector):
                self.source = source
                return self._keep_queries(source) if settings.freeze_detector else []
            if settings.freeze_detector:
                what = f"freeze_detector with weights of {source.card.name} would leave the detector untrained"
                raise ConfigError(what, where=settings.start_from, remedy=START_FROZEN, code="C09")
            if source.card.name != settings.model.backbone:
                what = f"weights of {source.card.name} for the backbone {settings.model.backbone}"
                remedy = f"set model.backbone={source.card.name}"
                raise ConfigError(what, where=settings.start_from, remedy=remedy, code="K07")
            self.backbone = source.state_dict()
            return [f"the backbone starts from {settings.start_from}"]
        return []

    def _load_source(self) -> Model:
        """Load the model to start from. An error about weights that nobody asked for tells how to do without."""
        settings = self.settings
        try:
            return load_to_train(settings.start_from)
        except MachineError as error:
            if not self._start_is_chosen:
                raise
            model = "detr_lite_panoptic " if settings.model.masks else ""
            other = f"without a download: regard train {model}--data {settings.data}"
            remedy = f"{error.remedy}; {other}" if error.remedy else other
            raise MachineError(error.what, where=error.where, remedy=remedy, code=error.code) from error

    def _read_backbone(self, file: Path) -> list[str]:
        """Read the weights of the backbone from a file of a classifier. Returns notes for the user."""
        settings = self.settings
        if settings.freeze_detector:
            what = "freeze_detector with weights of a backbone would leave the detector untrained"
            raise ConfigError(what, where=settings.start_from, remedy=START_FROZEN, code="C09")
        self.backbone = fit_backbone(settings.model, read_weights(file).tensors, file)
        return [f"the backbone starts from {file}"]

    def _keep_queries(self, source: QueryDetector) -> list[str]:
        """Take the number of queries of a detector that stays frozen. Returns notes for the user."""
        count, given = source.config.num_queries, self.settings.model.num_queries
        model = replace(self.settings.model, num_queries=count)
        self.settings = replace(self.settings, model=model, fit_queries=False)
        self._count_queries(self.settings)
        return [] if count == given else [f"model.num_queries={count}, as in the detector it starts from"]

    def _fetch_backbone(self) -> list[str]:
        """Load ImageNet weights for the backbone. Returns notes for the user.

        If they cannot be had, the whole backbone is trained: frozen batch norm with random weights learns nothing.
        """
        settings = self.settings
        try:
            self.backbone = imagenet_weights(settings.model.backbone)
        except MachineError as error:
            whole = replace(settings.model, backbone_norm="batch")
            self.settings = replace(settings, start_from="none", model=whole, lr_backbone=settings.lr)
            return [
                f"warning: no ImageNet weights for {settings.model.backbone} ({error}). The backbone starts from "
                "random weights and all of it is trained: expect far lower scores."
            ]
        return []

    def starting_model(self) -> tuple[QueryDetector, list[str]]:
        """Build the model as it is before the first step. Returns it with notes for the user."""
        settings = self.settings
        torch.manual_seed(settings.seed)
        sizes = (settings.short_side, settings.max_size)
        net = build(settings.model, settings.name, self.train_data.categories, sizes)
        assert isinstance(net, QueryDetector)
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
        """Build the task for the training loop. `pictures`: folder for pictures, or None."""
        return DetectionTask(self.settings, self.train_data, self.val_data, processes, pictures)

    def draw_data(self, folder: Path) -> None:
        """Draw an overview of the data set to `folder`."""
        data = self.train_data
        if isinstance(data, PanopticDataset):  # boxes are known only after its PNG files are read: draw some
            shown = range(0, len(data), -(-len(data) // MAX_DRAWN))
            plot_dataset(data.objects(shown), folder, of=len(data))
        else:
            plot_dataset(data.to_coco(), folder)

    def advice(self) -> AbstractContextManager[None]:
        """Add to errors about images how to find all bad images of the data set."""
        return advise(data_folder(self.settings.data))


def _with_model_of_source(settings: DetectionRecipe, given: Collection[str]) -> tuple[DetectionRecipe, Collection[str]]:
    """Return settings with the network of the run that they start from, whose weights fit no other.

    The second value is `given` with the settings of that network, which the data then leave as they are.
    """
    if not (Path(settings.start_from) / "checkpoints").is_dir():
        return settings, given
    config = load(settings.start_from).config
    if not isinstance(config, DETRConfig):
        return settings, given
    own = {
        field.name: getattr(settings.model, field.name) for field in fields(config) if f"model.{field.name}" in given
    }
    own |= {name: getattr(settings.model, name) for name in ("masks", "mask_dim")}  # the data were opened for these
    kept = {f"model.{field.name}" for field in fields(config)} - {"model.num_queries"}
    return replace(settings, model=replace(config, **own)), {*given, *kept}


def _check_freezing(settings: DetectionRecipe) -> None:
    if settings.freeze_detector and not settings.model.masks:
        what = f"freeze_detector would leave nothing to train: {settings.name} has no mask head"
        raise ConfigError(what, remedy="set model.masks=true", code="C09")
    if settings.freeze_detector and settings.start_from in ("backbone", "none"):
        what = f"freeze_detector with start_from={settings.start_from} would leave the detector untrained"
        raise ConfigError(what, remedy=START_FROZEN, code="C09")
