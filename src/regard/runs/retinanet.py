"""The job of a RetinaNet: how a recipe, data and starting weights become a run."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from regard.data.check import advise
from regard.data.coco.dataset import open_detection
from regard.data.generated.shapes import data_folder
from regard.errors import ArchitectureError, ConfigError
from regard.metrics.charts.detection import plot_dataset
from regard.models.build import Detector, build
from regard.models.catalog import WEIGHTS
from regard.models.configs import CONFIGS
from regard.models.configs.resnet import ResNetConfig
from regard.models.retinanet import RetinaNet
from regard.recipes.retinanet import RetinaNetRecipe
from regard.runs.detection_task import DetectionTask
from regard.runs.few_steps import DETECTOR
from regard.training.distributed import Processes
from regard.weights.backbone import classifier_file, fit_backbone
from regard.weights.detr import imagenet_weights, load_backbone
from regard.weights.load import load_to_train
from regard.weights.retinanet import transfer_retinanet
from regard.weights.state_dict import read_weights


class RetinaNetJob:
    """Prepares the run of a RetinaNet. `DetectionJob` has the same steps.

    Args:
        settings: the recipe.

    Attributes:
        settings: the recipe, with the number of classes of the data.
        train_data, val_data: both splits.
        enough: steps that such a model needs.

    Raises:
        DataError: the data set cannot be used.
    """

    enough = DETECTOR

    def __init__(self, settings: RetinaNetRecipe) -> None:
        folder = data_folder(settings.data)
        self.train_data = open_detection(folder, "train")
        self.val_data = open_detection(folder, "val", categories=self.train_data.categories)
        self.settings = replace(settings, model=replace(settings.model, num_classes=len(self.train_data.categories)))
        self.backbone: Mapping[str, Tensor] = {}
        self.source: RetinaNet | None = None

    @property
    def findings(self) -> list[str]:
        """Warnings about the data, one line each; each once, though both splits may have it."""
        splits = (self.train_data, self.val_data)
        return list(dict.fromkeys(str(issue) for data in splits for issue in data.annotations.report.issues))

    def fetch_weights(self) -> list[str]:
        """Load the weights to start from. Returns notes for the user.

        Raises:
            ConfigError: the model to start from has no released weights (K01).
            CheckpointError: the weights are of another model (K07).
            MachineError: the weights cannot be downloaded.
        """
        settings, start = self.settings, self.settings.start_from
        if start == "none":
            return []
        if start == "backbone":
            self.backbone = imagenet_weights(settings.model.backbone)
            return []
        if start in CONFIGS and start not in WEIGHTS:
            what = f"no released weights of {start} to start from"
            raise ConfigError(what, remedy="set start_from=RUN, or leave out --recipe", code="K01")
        if (file := classifier_file(start)) is not None:
            self.backbone = fit_backbone(settings.model, read_weights(file).tensors, file)
            return [f"the backbone starts from {file}"]
        source = load_to_train(start)
        if isinstance(source, RetinaNet):
            self.source = source
            return []
        if isinstance(source, Detector) or source.card.name != settings.model.backbone:
            what = f"weights of {source.card.name} for {settings.name} with the backbone {settings.model.backbone}"
            raise ArchitectureError(what, where=start, remedy="start from one of the two", code="K07")
        self.backbone = source.state_dict()
        side = source.config.image_size
        if isinstance(source.config, ResNetConfig) and source.config.key_ratio and side != settings.model.image_size:
            # Its tables of relative positions fit larger maps too, and training goes on from what they have learned.
            self.settings = replace(settings, model=replace(settings.model, image_size=side))
            return [f"the backbone starts from {start}, with its tables of positions: model.image_size={side}"]
        return [f"the backbone starts from {start}"]

    def starting_model(self) -> tuple[RetinaNet, list[str]]:
        """Build the model as it is before the first step. Returns it with notes for the user."""
        settings = self.settings
        torch.manual_seed(settings.seed)
        sizes = (settings.short_side, settings.max_size)
        net = build(settings.model, settings.name, self.train_data.categories, sizes)
        assert isinstance(net, RetinaNet)
        if self.backbone:
            load_backbone(net.backbone, self.backbone, where=settings.start_from)
        return net, [] if self.source is None else [transfer_retinanet(self.source, net)]

    def task(self, processes: Processes, pictures: Path | None) -> DetectionTask:
        """Build the task for the training loop. `pictures`: folder for pictures, or None."""
        return DetectionTask(self.settings, self.train_data, self.val_data, processes, pictures)

    def draw_data(self, folder: Path) -> None:
        """Draw an overview of the data set to `folder`."""
        plot_dataset(self.train_data.to_coco(), folder)

    def advice(self) -> AbstractContextManager[None]:
        """Add to errors about images how to find all bad images of the data set."""
        return advise(data_folder(self.settings.data))
