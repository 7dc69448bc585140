"""Milliseconds of DETR's loss on one core: Regard against transformers.

Both get the same tensors, and their totals have to agree. transformers follows the authors' code: layer by layer, each
with the costs of all queries of the batch for the targets of all its images. Ours does all layers at once, and images
with their own targets only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from regard.benchmarks.timing import TransformersRow, medians
from regard.errors import MachineError, install_command
from regard.losses import SetCriterion
from regard.structures.outputs import DetectionOutput

if TYPE_CHECKING:
    from rich.table import Table

Targets = list[dict[str, Tensor]]
Layers = list[tuple[Tensor, Tensor]]  # logits and boxes of every decoder layer


def main(rounds: int) -> list[TransformersRow]:
    """Measure and print the table."""
    from rich.console import Console

    rows = run(rounds)
    Console().print(table(rows))
    return rows


def run(
    rounds: int = 7, *, layers: int = 6, images: int = 16, queries: int = 100, objects: int = 20, classes: int = 91
) -> list[TransformersRow]:
    """Measure the matching alone, and matching with all losses and their gradients.

    Args:
        rounds: number of rounds; the two sides alternate.
        layers: decoder layers.
        images: of the batch, each with `objects` objects.
        queries: of each image.
        classes: without no-object.

    Raises:
        MachineError: transformers is missing.
    """
    targets, predictions = _tensors(layers, images, queries, objects, classes)
    their_matching, their_loss = _transformers(predictions, targets, classes)
    our_matching, our_loss = _ours(predictions, targets, classes)
    ours, theirs = our_loss(0), their_loss(0)
    assert math.isclose(ours, theirs, rel_tol=1e-4), f"the losses differ: {ours} and {theirs}"
    size = f"{layers} layers x {images} images x {queries} queries x {objects} objects"
    pairs = {
        f"matching, {size}": (their_matching, our_matching),
        "matching and losses, forward and backward": (their_loss, our_loss),
    }
    return [TransformersRow(what, *(1000 * s for s in medians(pair, rounds))) for what, pair in pairs.items()]


def table(rows: Sequence[TransformersRow]) -> Table:
    """Return a table of the rows."""
    from rich.table import Table

    result = Table(title="DETR's loss: milliseconds on one core (lower is better)")
    for header in ("", "transformers", "regard", "ratio"):
        result.add_column(header, justify="right" if header else "left")
    for row in rows:
        result.add_row(row.what, f"{row.transformers:.1f}", f"{row.regard:.1f}", f"{row.ratio:.1f}x")
    return result


def _tensors(layers: int, images: int, queries: int, objects: int, classes: int) -> tuple[Targets, Layers]:
    g = torch.Generator().manual_seed(0)

    def boxes(*shape: int) -> Tensor:
        return 0.2 + 0.6 * torch.rand(*shape, 4, generator=g)

    targets = [
        {"labels": torch.randint(0, classes, (objects,), generator=g), "boxes": boxes(objects)} for _ in range(images)
    ]
    predictions = [
        (
            (3 * torch.randn(images, queries, classes + 1, generator=g)).requires_grad_(),
            boxes(images, queries).requires_grad_(),
        )
        for _ in range(layers)
    ]
    return targets, predictions


def _ours(predictions: Layers, targets: Targets, classes: int) -> tuple[Callable[[int], Any], Callable[[int], float]]:
    criterion = SetCriterion(classes)

    def matching(_: int) -> object:
        logits, boxes = (torch.stack(part) for part in zip(*predictions, strict=True))
        return criterion.matcher.match_layers(logits, boxes, targets)

    def loss(_: int) -> float:
        *earlier, last = (DetectionOutput(logits, boxes) for logits, boxes in predictions)
        return _backward(criterion.total(criterion(last._replace(auxiliary=earlier), targets)), predictions)

    return matching, loss


def _transformers(
    predictions: Layers, targets: Targets, classes: int
) -> tuple[Callable[[int], Any], Callable[[int], float]]:
    try:
        from transformers.loss.loss_for_object_detection import HungarianMatcher, ImageLoss
    except ImportError as error:
        raise MachineError(
            "the comparison needs transformers", remedy=install_command("transformers", "scipy")
        ) from error
    matcher = HungarianMatcher(class_cost=1, bbox_cost=5, giou_cost=2)
    criterion = ImageLoss(matcher, classes, eos_coef=0.1, losses=["labels", "boxes", "cardinality"])
    weights = {"loss_ce": 1.0, "loss_bbox": 5.0, "loss_giou": 2.0}
    renamed = [{"class_labels": target["labels"], "boxes": target["boxes"]} for target in targets]

    def outputs() -> dict[str, Any]:
        *earlier, last = ({"logits": logits, "pred_boxes": boxes} for logits, boxes in predictions)
        return {**last, "auxiliary_outputs": earlier}

    def matching(_: int) -> object:
        return [matcher({"logits": logits, "pred_boxes": boxes}, renamed) for logits, boxes in predictions]

    def loss(_: int) -> float:
        losses = criterion(outputs(), renamed)
        names = {name: "_".join(name.split("_")[:2]) for name in losses}
        terms = [weights[names[name]] * value for name, value in losses.items() if names[name] in weights]
        return _backward(torch.stack(terms).sum(), predictions)

    return matching, loss


def _backward(total: Tensor, predictions: Layers) -> float:
    for leaf in (x for layer in predictions for x in layer):
        leaf.grad = None
    total.backward()
    return total.item()
