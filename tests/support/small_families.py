"""A small network of each family of models, and trainings of them that take a second."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from color_data import ColorClassifier, write_colors
from exported_files import randomized
from regard.data.class_images.dataset import open_classification
from regard.data.coco.dataset import open_detection
from regard.data.coco.panoptic import open_panoptic
from regard.data.generated.shapes import ShapesConfig, write_shapes
from regard.models.build import Detector, Model, build
from regard.models.configs.detr import DETRConfig
from regard.models.configs.efficientnet import EfficientNetConfig
from regard.models.configs.mnasnet import MnasNetConfig
from regard.models.configs.resnet import ResNetConfig
from regard.models.configs.retinanet import RetinaNetConfig
from regard.models.configs.san import SANConfig
from regard.models.configs.vit import ViTConfig
from regard.models.configs.wide_resnet import WideResNetConfig
from regard.recipes.classification import ClassificationRecipe
from regard.recipes.detection import DetectionRecipe
from regard.recipes.retinanet import RetinaNetRecipe
from regard.runs.classification_task import ClassificationTask
from regard.runs.detection_task import DetectionTask
from regard.training.config import TrainingConfig
from regard.training.distributed import Processes
from regard.training.loop import Trainer
from regard.training.reports import Reporter

CPU = Processes(0, 1, torch.device("cpu"))
SIDE = 32
RESNET: dict[str, Any] = {
    "num_classes": 3, "image_size": SIDE, "block": "basic", "stem": "cifar", "layers": (1, 1), "widths": (8, 16),
}  # fmt: skip
VIT = ViTConfig(num_classes=3, image_size=SIDE, patch_size=8, embed_dim=24, depth=2, num_heads=3, initial="fan_in")
DETR: dict[str, Any] = {
    "num_classes": 3, "backbone": "small", "backbone_norm": "batch", "embed_dim": 32, "num_heads": 4,
    "decoder_layers": 2, "feedforward_dim": 48, "num_queries": 8, "dropout": 0.0,
}  # fmt: skip
ANCHORS: dict[str, Any] = {
    **DETR, "norm_first": True, "sigmoid": True, "anchors": True, "query_groups": 2, "denoising_groups": 2,
}  # fmt: skip
FAMILIES: dict[str, Any] = {
    "resnet": ResNetConfig(**RESNET),
    "augmented_resnet": ResNetConfig(**RESNET, key_ratio=0.25, value_ratio=0.25, num_heads=2, augmented_stages=(2,)),
    "wide_resnet": WideResNetConfig(
        num_classes=3, depth=10, width_factor=1, key_ratio=0.2, value_ratio=0.1, num_heads=2
    ),
    "mnasnet": MnasNetConfig(num_classes=3, width=0.25, key_ratio=0.1, value_ratio=0.1, image_size=SIDE),
    "efficientnet": EfficientNetConfig(num_classes=3, image_size=SIDE),
    "san": SANConfig(num_classes=3, layers=(1,) * 5, kernel_sizes=(3,) * 5, image_size=SIDE),
    "vit": VIT,
    "deit": replace(VIT, distilled=True, drop_path=0.1),
    "detr": DETRConfig(**DETR, encoder_layers=1),
    "detr_anchors": DETRConfig(**ANCHORS, encoder_layers=1, proposals=True),
    "panoptic": DETRConfig(**{**ANCHORS, "num_classes": 5}, encoder_layers=0, masks=True),  # with sky and ground
    "retinanet": RetinaNetConfig(
        num_classes=3, backbone="aa_small", image_size=SIDE, feature_maps=2, channels=16, head_norm=True, anchor_size=16
    ),
}  # fmt: skip
SIDES = {"wide_resnet": 16}  # it attends to every pixel
DETECTORS = ("detr", "detr_anchors", "panoptic", "retinanet")


def random_network(family: str) -> Model:
    """A network in evaluation, with random weights and statistics; its numbers stay small for images of any size."""
    torch.manual_seed(0)
    return randomized(build(FAMILIES[family], family, sizes=(SIDE, SIDE) if family in DETECTORS else None))


def small_network(family: str) -> Model:
    """A `random_network` whose norms have the statistics of random images of the size that the family takes."""
    net = random_network(family)
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.train().momentum = 1.0
    images = random_images(family, 8)
    with torch.no_grad():
        net(list(images) if isinstance(net, Detector) else images)
    return net.eval()


def random_images(family: str, count: int) -> Tensor:
    """Normalised images (B, 3, H, W) of a size that the family takes."""
    side = SIDES.get(family, SIDE)
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(count))


def write_data(folder: Path) -> Path:
    """8 images with boxes, masks and panoptic labels below `objects`, and 12 with classes below `classes`."""
    write_shapes(ShapesConfig(size=SIDE, train=8, val=2), folder / "objects")
    write_colors(folder / "classes", train=4)
    return folder


@dataclass(frozen=True)
class Trained:
    """What a training left."""

    model: nn.Module
    losses: list[float]  # of each step

    @property
    def weights(self) -> dict[str, Tensor]:
        return self.model.state_dict()


def train(
    family: str, data: Path, run: Path, steps: int, dtype: torch.dtype = torch.float32, **changes: Any
) -> Trained:
    """Train a small network with the task and the loop of `regard train`; 4 images a step.

    Args:
        data: of `write_data`.
        run: a new folder.
        changes: to the recipe.
    """
    task = task_of(family, data, **changes)
    settings = task.settings
    torch.manual_seed(settings.seed)
    net = build(settings.model, family, task.categories, (SIDE, SIDE)).to(dtype)
    losses: list[float] = []
    batches, loss = task.batches, task.loss

    def recorded(model: nn.Module, batch: Any) -> Any:
        value, parts = loss(model, batch)
        losses.append(value.item())
        return value, parts

    task.batches = lambda start: _in_dtype(batches(start), dtype)
    task.loss = recorded
    task.evaluate = lambda model, step: {}
    task.batches_per_epoch = steps  # one epoch, of as many steps as are asked for
    run.mkdir()
    reporter = Reporter(run, log_every=10**6, images_per_step=4, quiet=True)
    trainer = Trainer(net, task, settings, run, CPU, {}, reporter)
    trainer.fit()
    return Trained(trainer.result, losses)


def task_of(family: str, data: Path, **changes: Any) -> Any:
    """The task of a small network on the images of `write_data`, with which it is evaluated too."""
    shared: dict[str, Any] = {
        "name": family, "model": FAMILIES[family], "epochs": 1, "batch_size": 4, "lr": 2e-3, "lr_backbone": 2e-3,
        "max_norm": 1.0, "seed": 3, "workers": 0, "device": "cpu", "save_minutes": 1e6, **changes,
    }  # fmt: skip
    recipe: TrainingConfig
    if family not in DETECTORS:
        teacher = _teacher if family == "deit" else None
        shared = {"augmentation": "cifar", "teacher": "none" if teacher is None else "colors", **shared}
        recipe = ClassificationRecipe(**shared)
        train = open_classification(data / "classes", "train")
        return ClassificationTask(recipe, train, train, CPU, teacher=teacher)
    shared = {"augmentation": "flip", "short_side": SIDE, "max_size": SIDE, **shared}
    recipe = (RetinaNetRecipe if family == "retinanet" else DetectionRecipe)(**shared)
    train: Any = (open_panoptic if family == "panoptic" else open_detection)(data / "objects", "train")
    return DetectionTask(recipe, train, train, CPU)


@torch.no_grad()
def _teacher(pixels: Tensor) -> Tensor:
    """Logits of the folders in their order: blue, green, red."""
    return ColorClassifier()(pixels).flip(1)


def _in_dtype(batches: Iterator[Any], dtype: torch.dtype) -> Iterator[Any]:
    for batch in batches:
        images = batch.images.normalized()
        yield replace(batch, images=replace(images, pixels=images.pixels.to(dtype)))
