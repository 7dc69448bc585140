"""Detections of every decoder layer of a detector, and non-maximum suppression among them. (DETR, figure 4.)"""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import torch
from torchvision.ops import batched_nms, clip_boxes_to_image

from regard.data.batches.detection import collate
from regard.data.coco.dataset import CocoDataset
from regard.data.transforms.detection import EvaluationResize
from regard.evaluation.batches import evaluation_batches
from regard.evaluation.detection import columns_of
from regard.metrics.detection import CocoDetections
from regard.models.build import Detector
from regard.models.evaluation_mode import evaluation_mode
from regard.results.postprocess import boxes_in_pixels, score_queries
from regard.structures.categories import labels_by_name
from regard.structures.image_batch import of_equal_size


@torch.inference_mode()
def layer_detections(
    net: Detector, dataset: CocoDataset, *, batch_size: int = 8, device: torch.device
) -> list[CocoDetections]:
    """Return the detections of each decoder layer, from the first to the last, as `evaluate` counts the last's.

    All layers share the heads, so that each has classes and boxes.

    Args:
        net: on `device`.
    """
    label_of = labels_by_name(net.card.categories, dataset.categories, str(dataset.annotations.path))
    category_of = {label: category.id for label, category in zip(label_of, dataset.categories, strict=True)}
    resize = EvaluationResize(net.card.short_side, net.card.max_size)
    sizes = [resize.size_of(image.height, image.width) for image in dataset.annotations.images]
    planned = of_equal_size(range(len(dataset)), sizes, batch_size)
    layers: list[list[tuple[np.ndarray, ...]]] = []
    with evaluation_mode(net):
        for batch in evaluation_batches(dataset, resize, collate, planned, workers=0, device=device):
            output = net(batch.images.to(device).normalized())
            outputs = [*output.auxiliary, output]
            layers = layers or [[] for _ in outputs]
            for found, layer in zip(layers, outputs, strict=True):
                queries = score_queries(layer, softmax=not net.config.sigmoid)
                sizes = [sample.original_size for sample in batch.samples]
                queries, boxes = queries.on_host(boxes_in_pixels(layer, queries, sizes))
                for number, sample in enumerate(batch.samples):
                    rows = queries.rows(number)
                    clipped = clip_boxes_to_image(boxes[rows], sample.original_size)
                    columns = queries.scores[rows], queries.labels[rows], clipped
                    found.append(columns_of(sample.image_id, *columns, category_of))
    return [CocoDetections(*(np.concatenate(column) for column in zip(*found, strict=True))) for found in layers]


def suppressed(detections: CocoDetections, iou: float = 0.5) -> CocoDetections:
    """Return the detections that non-maximum suppression keeps, in their order.

    Within an image and a class, a detection goes if a better one that is kept overlaps it by more than `iou`.
    """
    keys = np.stack((detections.image_ids, detections.category_ids), axis=1)
    _, groups = np.unique(keys, axis=0, return_inverse=True)
    corners = detections.boxes_xywh.astype(np.float64).copy()
    corners[:, 2:] += corners[:, :2]
    kept = batched_nms(
        torch.from_numpy(corners), torch.from_numpy(detections.scores), torch.from_numpy(groups.reshape(-1)), iou
    )
    rows = kept.sort().values.numpy()
    return CocoDetections(*(getattr(detections, field.name)[rows] for field in fields(detections)))
