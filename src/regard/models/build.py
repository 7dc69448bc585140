"""Models from their configurations, with random weights and a card."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TypeGuard, overload

from regard.errors import ConfigError
from regard.models.catalog import SHORT_SIDES, crop_pct_of, preset
from regard.models.classifiers import Classifier, build_classifier
from regard.models.configs import ClassifierConfig, DetectorConfig, ModelConfig
from regard.models.configs.detr import DETRConfig, DETRDemoConfig
from regard.models.configs.retinanet import RetinaNetConfig
from regard.models.detr import DETR
from regard.models.detr_demo import DETRDemo
from regard.models.exported import ExportedDetector
from regard.models.retinanet import RetinaNet
from regard.structures.categories import COCO, COCO_PANOPTIC, Category, ModelCard, knows_stuff

QueryDetector = DETR | DETRDemo  # its predictions are queries, one for each detection
Detector = QueryDetector | RetinaNet | ExportedDetector
MaskedDetector = DETR | ExportedDetector  # those that may have masks
Model = Detector | Classifier


def create(name: str, *, num_classes: int | None = None) -> Model:
    """Create a model by name with random weights. Nothing is downloaded.

    Args:
        name: one of `list_models()`.
        num_classes: number of classes without no-object; by default that of the model (COCO's 91 for detectors).

    Raises:
        ConfigError: an unknown name (the nearest one is offered).
    """
    config = preset(name)
    if num_classes is not None:
        config = dataclasses.replace(config, num_classes=num_classes)
    return build(config, name)


def predicts_masks(model: Model) -> TypeGuard[MaskedDetector]:
    """Return whether a model predicts a mask for each detection."""
    config = model.config if isinstance(model, MaskedDetector) else None
    return isinstance(config, DETRConfig) and config.masks


@overload
def build(
    config: DetectorConfig,
    name: str,
    categories: Sequence[Category] | None = ...,
    sizes: tuple[int, int] | None = ...,
) -> Detector: ...


@overload
def build(
    config: ClassifierConfig,
    name: str,
    categories: Sequence[Category] | None = ...,
    sizes: tuple[int, int] | None = ...,
) -> Classifier: ...


def build(
    config: ModelConfig,
    name: str,
    categories: Sequence[Category] | None = None,
    sizes: tuple[int, int] | None = None,
) -> Model:
    """Build a model with its card from any configuration. Classes without names are named by their number."""
    model = _construct(config)
    if categories is None:
        known = (COCO, COCO_PANOPTIC) if isinstance(model, Detector) else ()
        categories = next((c for c in known if len(c) == config.num_classes), _numbered(config.num_classes))
    if len(categories) != config.num_classes:
        raise ConfigError(f"{len(categories)} categories for a model of {config.num_classes} classes", where=name)
    if isinstance(config, ClassifierConfig):
        side = config.image_size
        model.card = ModelCard(name, tuple(categories), side, side, crop_pct_of(config))
        return model
    short_side, max_size = sizes or SHORT_SIDES.get(name, (800, 1333))
    model.card = ModelCard(name, tuple(categories), short_side, max_size, panoptic=knows_stuff(categories))
    return model


def _construct(config: ModelConfig) -> Model:
    if isinstance(config, DETRDemoConfig):
        return DETRDemo(config)
    if isinstance(config, ClassifierConfig):
        return build_classifier(config)
    if isinstance(config, RetinaNetConfig):
        return RetinaNet(config)
    return DETR(config)


def _numbered(count: int) -> list[Category]:
    return [Category(i, str(i)) for i in range(count)]
