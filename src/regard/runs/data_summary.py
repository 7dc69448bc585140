"""The numbers of a detection data set from which the recipe `auto` chooses its settings."""

from __future__ import annotations

import numpy as np

from regard.data.coco.dataset import CocoDataset
from regard.evaluation.detection import ObjectDataset
from regard.recipes.auto import DataSummary

SMALL_BOX = 10  # percentile of the sides of boxes


def summarize(train: ObjectDataset, val: ObjectDataset) -> DataSummary:
    """Summarize both splits of a data set. Reads no image."""
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
