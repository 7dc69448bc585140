"""The numbers of a detection data set from which the recipe `auto` chooses its settings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from regard.data.coco.dataset import CocoDataset
from regard.data.coco.layout import has_panoptic
from regard.data.generated.shapes import data_folder
from regard.evaluation.detection import ObjectDataset, open_objects
from regard.recipes.auto import DataSummary, fit_to_data
from regard.recipes.detection import DetectionRecipe
from regard.training.distributed import choose_device

SMALL_BOX = 10  # percentile of the sides of boxes


def fit(settings: DetectionRecipe, given: Sequence[str]) -> tuple[DetectionRecipe, list[str]]:
    """Choose the settings of the recipe `auto` by the data and the device. Returns them, and why.

    Args:
        settings: the recipe, with what the user gave.
        given: names of the settings that the user gave.

    Raises:
        DataError: the data set cannot be used.
    """
    gpu = choose_device(settings.device).type != "cpu"
    return fit_to_data(settings, summarize(settings), gpu=gpu, given=given)


def is_panoptic(settings: DetectionRecipe) -> bool:
    """Return whether a recipe trains on panoptic annotations."""
    if settings.annotations == "auto":
        return settings.model.masks and has_panoptic(data_folder(settings.data))
    return settings.annotations == "panoptic"


def summarize(settings: DetectionRecipe) -> DataSummary:
    """Open both splits of a recipe's data, and summarize them. Reads no image.

    Raises:
        DataError: the data set cannot be used.
    """
    folder, panoptic = data_folder(settings.data), is_panoptic(settings)
    train = open_objects(folder, "train", panoptic=panoptic, masks=False)
    val = open_objects(folder, "val", panoptic=panoptic, masks=False, like=train.categories)
    sides = np.sort([(image.height, image.width) for image in train.annotations.images], axis=1)
    box_sides, count = _box_sides(train, sides[:, 0])
    return DataSummary(
        images=len(train),
        classes=len(train.categories),
        short_side=int(np.median(sides[:, 0])),
        long_side=int(np.median(sides[:, 1])),
        max_objects=max(train.max_objects[0], val.max_objects[0]),
        objects=count / len(train),
        box_side=float(np.percentile(box_sides, SMALL_BOX)) if len(box_sides) else 1.0,
        median_box_side=float(np.median(box_sides)) if len(box_sides) else 1.0,
    )


def _box_sides(data: ObjectDataset, short_sides: np.ndarray) -> tuple[np.ndarray, int]:
    """Return the root of each object's area over its image's short side, and the number of objects.

    Of panoptic data only things count, by the areas that the file states.
    """
    image_of = np.repeat(np.arange(len(data)), np.diff(data.annotations.first_row))
    if isinstance(data, CocoDataset):
        objects = data.annotations.objects
        areas, kept = objects.boxes_xywh[:, 2] * objects.boxes_xywh[:, 3], objects.is_target
    else:
        segments = data.annotations.segments
        is_thing = np.array([category.is_thing for category in data.categories])
        areas = segments.areas
        kept = is_thing[segments.labels] & ~segments.is_crowd & np.isfinite(areas)
    return np.sqrt(areas[kept]) / short_sides[image_of[kept]], int(kept.sum())
