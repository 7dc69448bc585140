"""Images to check an exported file with and to calibrate int8: the user's, or generated ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from regard.data.class_images.dataset import open_classification
from regard.data.coco.layout import has_panoptic
from regard.data.generated.shapes import ShapesConfig, data_folder, render_scene
from regard.data.samples import ClassSample, Sample
from regard.data.splits import Split
from regard.data.transforms.classification import Evaluation
from regard.data.transforms.detection import EvaluationResize
from regard.data.transforms.image import resize_image
from regard.evaluation.detection import open_objects
from regard.models.build import Detector, Model
from regard.models.detr_demo import DETRDemo
from regard.models.vit import VisionTransformer
from regard.structures.image_batch import ImageBatch

CHECKED = 9  # images


def read_images(model: Model, data: str, split: Split, count: int) -> list[Tensor]:
    """Return up to `count` images (3, H, W) uint8 from everywhere in a split of a data set."""
    if isinstance(model, Detector):
        folder = data_folder(data)
        panoptic = model.card.panoptic and has_panoptic(folder)
        objects = open_objects(folder, split, panoptic=panoptic, masks=False)
        return [objects[index].image for index in _spread(len(objects), count)]
    labelled = open_classification(data, split)
    return [labelled[index].image for index in _spread(len(labelled), count)]


def generated_images(count: int) -> list[Tensor]:
    """Return drawn images (3, H, W) uint8 of several sizes."""
    scenes = (render_scene(ShapesConfig(size=160 + 32 * number), (0, number)) for number in range(count))
    return [torch.from_numpy(scene.image).permute(2, 0, 1) for scene in scenes]


def prepared(model: Model, image: Tensor) -> ImageBatch:
    """Return a batch of one image (3, H, W) uint8 as `predict` prepares it, normalised."""
    if isinstance(model, Detector):
        resized = EvaluationResize(model.card.short_side, model.card.max_size)(Sample(image)).image
    else:
        resized = Evaluation.of(model.card)(ClassSample(image, label=0)).image
    return ImageBatch.from_images([resized]).normalized()


def check_batches(model: Model, images: Sequence[Tensor]) -> list[ImageBatch]:
    """Return normalised batches of 1, 1, 2 and 5 images of several sizes, with padding where the model knows it.

    Args:
        images: `CHECKED` of them, or fewer, which then come several times.
    """
    shapes = iter(images[number % len(images)] for number in range(CHECKED))
    sizes = _sizes(model)
    batches = []
    for count, first in ((1, 0), (1, 1), (2, 2), (5, 0)):
        chosen = [sizes[(first + number) % len(sizes)] for number in range(count)]
        if not isinstance(model, Detector) or isinstance(model, DETRDemo):
            chosen = [chosen[0]] * count  # one size: no padding
        resized = [resize_image(next(shapes), size) for size in chosen]
        batches.append(ImageBatch.from_images(resized).normalized())
    return batches


def example_batch(model: Model, count: int) -> ImageBatch:
    """Return a normalised batch of drawn images, all of the size that the model is made for; of detectors 4 : 3."""
    size = _sizes(model)[0]
    return ImageBatch.from_images([resize_image(image, size) for image in generated_images(count)]).normalized()


def _sizes(model: Model) -> list[tuple[int, int]]:
    """Return heights and widths to check: the model's own first."""
    side = model.card.short_side
    if isinstance(model, VisionTransformer):
        patch = model.config.patch_size
        return [(side, side), (side + patch, side), (side, side + 3 * patch)]
    if not isinstance(model, Detector):
        return [(side, side), (side + 5, side + 2), (side, side + 33)]
    longer = min(model.card.max_size, side * 4 // 3)
    return [(side, longer), (longer * 4 // 5, side * 4 // 5), (side * 3 // 5, longer * 2 // 3), (side // 2, side // 2)]


def _spread(total: int, count: int) -> list[int]:
    return torch.linspace(0, total - 1, min(count, total)).long().tolist()
