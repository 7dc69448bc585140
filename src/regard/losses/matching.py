"""Bipartite matching between predictions and targets. (DETR, section 3.1, eq. 1-2.)"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from regard.errors import DivergedError, MachineError, install_command
from regard.structures.boxes import cxcywh_to_xyxy, generalized_iou
from regard.structures.outputs import DetectionOutput
from regard.structures.precision import at_least_float32
from regard.structures.transfer import upload

Target = Mapping[str, Tensor]


class Matches(NamedTuple):
    """Matched pairs of all decoder layers, one row each: (M,) int64 tensors on the device of the predictions.

    host: (4, M) the same four rows on the host: to choose among the pairs there does not wait for the device.
    """

    layer: Tensor
    image: Tensor
    query: Tensor
    target: Tensor
    host: Tensor

    @classmethod
    def of(cls, rows: Tensor, device: torch.device) -> Matches:
        """Return the pairs whose rows (4, M) are on the host."""
        layer, image, query, target = upload(rows, device)
        return cls(layer, image, query, target, rows)


class HungarianMatcher:
    """Find the one-to-one assignment of targets to queries with the lowest total cost.

    The cost of a pair is `class_cost * class + bbox_cost * L1 + giou_cost * (-GIoU)`, boxes as fractions of the image.
    The class term is -p(class) for softmax models and the difference of the focal terms for sigmoid ones
    (Deformable DETR, models/matcher.py).

    Args:
        class_cost: weight of the class term.
        bbox_cost: weight of the L1 term.
        giou_cost: weight of the GIoU term.
        classification: `softmax` or `focal`, as in `SetCriterion`.
        focal_alpha: alpha of the focal terms.
        focal_gamma: gamma of the focal terms.
    """

    def __init__(
        self,
        *,
        class_cost: float = 1.0,
        bbox_cost: float = 5.0,
        giou_cost: float = 2.0,
        classification: Literal["softmax", "focal"] = "softmax",
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
    ) -> None:
        self.class_cost = class_cost
        self.bbox_cost = bbox_cost
        self.giou_cost = giou_cost
        self.classification = classification
        self.focal_alpha = focal_alpha
        self.focal_gamma = focal_gamma

    def __call__(self, output: DetectionOutput, targets: Sequence[Target]) -> list[tuple[Tensor, Tensor]]:
        """Match the last layer of `output`.

        Returns:
            Per image (query indices, target indices), int64 on the host, in query order; min(Q, T) pairs for each
            query group.

        Raises:
            DivergedError: a prediction is not finite.
        """
        pairs = self._solve(output.logits[None], output.boxes[None], targets, output.num_groups)
        return [(torch.from_numpy(query), torch.from_numpy(target)) for query, target in pairs[0]]

    def match_layers(self, logits: Tensor, boxes: Tensor, targets: Sequence[Target], num_groups: int = 1) -> Matches:
        """Match all decoder layers at once: logits (L, B, Q, C) and boxes (L, B, Q, 4).

        There is one copy from the device to the host, of the costs of each image against its own targets.
        """
        pairs = self._solve(logits, boxes, targets, num_groups)
        columns: list[list[np.ndarray]] = [[], [], [], []]
        for layer, images in enumerate(pairs):
            for image, (query, target) in enumerate(images):
                for column, values in zip(
                    columns,
                    (np.full_like(query, layer), np.full_like(query, image), query, target),
                    strict=True,
                ):
                    column.append(values)
        rows = torch.from_numpy(np.stack([np.concatenate(column) for column in columns]))
        return Matches.of(rows, logits.device)

    @torch.no_grad()
    def _solve(
        self, logits: Tensor, boxes: Tensor, targets: Sequence[Target], num_groups: int
    ) -> list[list[tuple[np.ndarray, np.ndarray]]]:
        """Pairs [layer][image] as (query indices, target indices)."""
        linear_sum_assignment = _import_assignment()

        counts = [len(target["labels"]) for target in targets]
        costs = self.costs(logits, boxes, targets).cpu().numpy()  # (L, B, Q, T): the one copy to the host
        _check_finite(costs)
        per_group = costs.shape[2] // num_groups
        pairs = []
        for layer in costs:
            of_images = []
            for cost, count in zip(layer, counts, strict=True):
                query, target = [], []
                for group in range(num_groups):
                    first = group * per_group
                    rows, columns = linear_sum_assignment(cost[first : first + per_group, :count])
                    query.append(rows + first)
                    target.append(columns)
                of_images.append((np.concatenate(query), np.concatenate(target)))
            pairs.append(of_images)
        return pairs

    @torch.no_grad()
    def costs(self, logits: Tensor, boxes: Tensor, targets: Sequence[Target]) -> Tensor:
        """Compute the cost of every query for every target of its image: (L, B, Q, T), T the most targets.

        Columns beyond an image's own number of targets hold padding.
        """
        labels, target_boxes = _pad_targets(targets, logits.device)
        with torch.autocast(logits.device.type, enabled=False):
            logits, boxes = at_least_float32(logits), at_least_float32(boxes)
            index = labels[None, :, None, :].expand(*logits.shape[:3], -1)
            class_term = self._class_term(logits, index)
            target_boxes = target_boxes[None, :, None]  # (1, B, 1, T, 4) against (L, B, Q, 1, 4)
            l1 = torch.cdist(boxes, target_boxes[:, :, 0].to(boxes.dtype).expand(len(boxes), -1, -1, -1), p=1)
            giou = generalized_iou(cxcywh_to_xyxy(boxes)[..., None, :], cxcywh_to_xyxy(target_boxes))
            return self.class_cost * class_term + self.bbox_cost * l1 - self.giou_cost * giou

    def _class_term(self, logits: Tensor, index: Tensor) -> Tensor:
        if self.classification == "softmax":
            return -logits.softmax(-1).gather(-1, index)
        p = logits.gather(-1, index).sigmoid()
        positive = self.focal_alpha * (1 - p) ** self.focal_gamma * -(p + 1e-8).log()
        negative = (1 - self.focal_alpha) * p**self.focal_gamma * -(1 - p + 1e-8).log()
        return positive - negative


def _pad_targets(targets: Sequence[Target], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return labels (B, T) and boxes (B, T, 4) of all images, padded with class 0 and a centred box."""
    most = max((len(target["labels"]) for target in targets), default=0)
    source = targets[0]["labels"].device if targets else device
    labels = torch.zeros(len(targets), most, dtype=torch.int64, device=source)
    boxes = torch.full((len(targets), most, 4), 0.5, device=source)
    for i, target in enumerate(targets):
        count = len(target["labels"])
        labels[i, :count] = target["labels"]
        boxes[i, :count] = target["boxes"]
    return upload(labels, device), upload(boxes, device)


def _check_finite(costs: np.ndarray) -> None:
    """Check the costs, which are already on the host: no synchronisation is needed."""
    broken = np.flatnonzero(~np.isfinite(costs).all(axis=(0, 2, 3))).tolist()
    if broken:
        raise DivergedError(
            f"predictions for images {broken} of the batch are not finite",
            remedy="lower the learning rate, or train in float32 (amp=off)",
            code="T09",
        )


def _import_assignment() -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        remedy = install_command("scipy")
        raise MachineError("matching needs the package scipy", remedy=remedy) from error
    return linear_sum_assignment
