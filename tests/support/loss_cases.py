"""Outputs and targets for the tests of losses, and the published loss written out image by image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision import ops

from regard.structures.outputs import DetectionOutput

Targets = list[dict[str, Tensor]]
GOLDEN = Path(__file__).parents[1] / "golden"


def random_output(batch: int, queries: int, classes: int, seed: int = 0) -> DetectionOutput:
    g = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(batch, queries, classes, generator=g)
    return DetectionOutput(logits, 0.2 + 0.6 * torch.rand(batch, queries, 4, generator=g))


def random_targets(counts: list[int], classes: int, seed: int = 0) -> Targets:
    g = torch.Generator().manual_seed(seed + 1000)
    return [
        {
            "labels": torch.randint(0, classes, (n,), generator=g),
            "boxes": 0.2 + 0.6 * torch.rand(n, 4, generator=g),
        }
        for n in counts
    ]


def golden_output() -> DetectionOutput:
    """All layers of the authors' DETR-R50 with reference weights on two reference images."""
    raw = load_file(GOLDEN / "detr_resnet50.outputs.safetensors")
    layers = [DetectionOutput(raw[f"aux{i}.pred_logits"], raw[f"aux{i}.pred_boxes"]) for i in range(5)]
    return DetectionOutput(raw["pred_logits"], raw["pred_boxes"], layers)


def golden_targets(golden: dict[str, Any]) -> Targets:
    """The targets of a golden JSON file as the losses take them."""
    return [
        {"labels": torch.tensor(t["labels"], dtype=torch.int64), "boxes": torch.tensor(t["boxes"]).reshape(-1, 4)}
        for t in golden["targets"]
    ]


def xyxy(boxes: Tensor) -> Tensor:
    return ops.box_convert(boxes, "cxcywh", "xyxy")


def plain_match(logits: Tensor, boxes: Tensor, target: dict[str, Tensor], kind: str) -> dict[int, int]:
    """Query -> target of one image and one group of queries."""
    if kind == "softmax":
        class_cost = -logits.softmax(-1)[:, target["labels"]]
    else:
        p = logits.sigmoid()[:, target["labels"]]
        class_cost = 2 * (0.25 * (1 - p) ** 2 * -(p + 1e-8).log() - 0.75 * p**2 * -(1 - p + 1e-8).log())
    l1 = (boxes[:, None] - target["boxes"][None]).abs().sum(-1)
    giou = ops.generalized_box_iou(xyxy(boxes), xyxy(target["boxes"]).to(boxes))
    queries, targets = linear_sum_assignment((class_cost + 5 * l1 - 2 * giou).detach())
    return dict(zip(queries.tolist(), targets.tolist(), strict=True))


def plain_losses(
    logits: Tensor,
    boxes: Tensor,
    targets: Targets,
    pairs: list[dict[int, int]],
    kind: str,
    num_boxes: float,
    counted: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Class, L1 and GIoU loss of one layer, given query -> target of each image and which queries learn a class."""
    zero = 0 * logits.sum() + 0 * boxes.sum()
    ce, weights, l1, giou = zero, 0.0, zero, zero
    for i, (target, matched) in enumerate(zip(targets, pairs, strict=True)):
        for q in range(logits.shape[1]):
            label = int(target["labels"][matched[q]]) if q in matched else None
            if not counted[i, q]:
                continue
            if kind == "softmax":
                weight = 0.1 if label is None else 1.0
                ce = ce - weight * logits[i, q].log_softmax(-1)[-1 if label is None else label]
                weights += weight
            else:
                truth = torch.zeros_like(logits[i, q])
                if label is not None:
                    truth[label] = 1
                ce = ce + ops.sigmoid_focal_loss(logits[i, q], truth, reduction="sum")
        for q, t in matched.items():
            box, true = boxes[i, q], target["boxes"][t].to(boxes)
            l1 = l1 + (box - true).abs().sum()
            giou = giou + 1 - ops.generalized_box_iou(xyxy(box[None]), xyxy(true[None]))[0, 0]
    return ce / (weights if kind == "softmax" else num_boxes), l1 / num_boxes, giou / num_boxes


def plain_criterion(output: DetectionOutput, targets: Targets, kind: str) -> dict[str, Tensor]:
    """All terms of an output by their names."""
    losses = {}
    groups = output.num_groups
    num_objects = sum(len(t["labels"]) for t in targets)
    layers = [*output.auxiliary, output]
    for number, layer in enumerate(layers):
        suffix = "" if layer is output else f"_{number}"
        size = layer.logits.shape[1] // groups
        pairs: list[dict[int, int]] = [{} for _ in targets]
        for i, target in enumerate(targets):
            for first in range(0, groups * size, size):
                part = slice(first, first + size)
                match = plain_match(layer.logits[i, part], layer.boxes[i, part], target, kind)
                pairs[i] |= {q + first: t for q, t in match.items()}
        everything = torch.ones(layer.logits.shape[:2])
        num_boxes = groups * max(1, num_objects)
        terms = plain_losses(layer.logits, layer.boxes, targets, pairs, kind, num_boxes, everything)
        losses |= {f"loss_{name}{suffix}": term for name, term in zip(("ce", "bbox", "giou"), terms, strict=True)}
        if output.denoising is not None:
            known = output.denoising.target
            pairs = [{q: t for q, t in enumerate(row) if t >= 0} for row in known.tolist()]
            num_boxes = sum(len(pair) for pair in pairs)
            noised = (output.denoising.logits[number], output.denoising.boxes[number])
            terms = plain_losses(*noised, targets, pairs, kind, num_boxes, known >= 0)
            losses |= {f"loss_{n}_dn{suffix}": term for n, term in zip(("ce", "bbox", "giou"), terms, strict=True)}
    return losses
