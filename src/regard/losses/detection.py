"""The loss of DETR: classes, boxes and masks of matched queries, no-object for the others. (DETR, section 3.1.)"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor

from regard.errors import DataError
from regard.losses.matching import HungarianMatcher, Matches, Target
from regard.losses.segmentation import mask_losses, padded_masks
from regard.structures.boxes import cxcywh_to_xyxy, generalized_iou
from regard.structures.outputs import Denoising, DetectionOutput
from regard.structures.precision import at_least_float32
from regard.structures.spans import span
from regard.structures.transfer import upload

COPIES = 4  # of an object for the proposals, as in hybrid matching (Jia et al. 2023)


class SetCriterion:
    """Match predictions with targets and compute the losses of all decoder layers.

    Args:
        num_classes: classes without no-object.
        matcher: the assignment; by default with the paper's costs (class 1, L1 5, GIoU 2; class 2 with focal).
        classification: `softmax`, cross-entropy with a no-object class (the paper), or `focal`, a sigmoid for each
            class (Deformable DETR; Lin et al. 2017).
        no_object_weight: weight of the no-object class in the cross-entropy.
        class_weight: weight of the classification loss in `total`; if None 1, or 2 with focal.
        bbox_weight: weight of the L1 loss of boxes.
        giou_weight: weight of the GIoU loss of boxes.
        mask_weight: weight of the focal loss of masks.
        dice_weight: weight of the dice loss of masks.
        auxiliary_losses: whether the earlier decoder layers have losses too (the paper).
        focal_alpha: alpha of the focal loss.
        focal_gamma: gamma of the focal loss.
    """

    def __init__(
        self,
        num_classes: int,
        matcher: HungarianMatcher | None = None,
        *,
        classification: Literal["softmax", "focal"] = "softmax",
        no_object_weight: float = 0.1,
        class_weight: float | None = None,
        bbox_weight: float = 5.0,
        giou_weight: float = 2.0,
        mask_weight: float = 1.0,
        dice_weight: float = 1.0,
        auxiliary_losses: bool = True,
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
    ) -> None:
        class_weight = (1.0 if classification == "softmax" else 2.0) if class_weight is None else class_weight
        self.num_classes = num_classes
        self.classification = classification
        self.no_object_weight = no_object_weight
        self.auxiliary_losses = auxiliary_losses
        self.focal_alpha = focal_alpha
        self.focal_gamma = focal_gamma
        self.weights = {
            "loss_ce": class_weight, "loss_bbox": bbox_weight, "loss_giou": giou_weight, "loss_mask": mask_weight,
            "loss_dice": dice_weight,
        }  # fmt: skip
        self.matcher = matcher or HungarianMatcher(
            class_cost=class_weight,
            classification=classification,
            focal_alpha=focal_alpha,
            focal_gamma=focal_gamma,
        )

    def __call__(
        self,
        output: DetectionOutput,
        targets: Sequence[Target],
        *,
        together: bool = True,
        masks: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Compute the losses of an output.

        Targets are `{"labels": (T,) int64 below num_classes, "boxes": (T, 4) cxcywh 0..1}` per image, with
        `masks` (T, H, W) bool of the size of the unpadded image if masks are trained.

        Args:
            masks: returns the mask logits (M, h, w) of queries (M,) of images (M,), so that they are computed only for
                matched queries of the first group; if None, `output.masks` is used.
            together: divide by the objects and queries of all processes, each of which must call this equally often;
                else by those of this batch.

        Returns:
            Unweighted scalars under the authors' names: `loss_ce`, `loss_bbox`, `loss_giou` of the last layer, with
            `_0`, `_1`, ... of the earlier ones if they have losses, `_dn...` of denoising queries; of the last layer
            only `loss_mask` and `loss_dice`, if there are masks; and for logs only `class_error` (percent of matched
            queries with a wrong class) and `cardinality_error` (mean difference between the number of predicted and of
            real objects).

        Raises:
            DivergedError: a prediction is not finite.
            DataError: a label is not below `num_classes`; checked on the host only, to avoid a synchronisation.
        """
        check_labels(targets, self.num_classes)
        layers = [*output.auxiliary, output] if self.auxiliary_losses else [output]
        logits = at_least_float32(torch.stack([layer.logits for layer in layers]))
        boxes = at_least_float32(torch.stack([layer.boxes for layer in layers]))
        with torch.autocast(logits.device.type, enabled=False):
            num_boxes, weights, noised_weights = self._divisors(output, logits, targets, together)
            with span("matching"):
                matches = self.matcher.match_layers(logits, boxes, targets, output.num_groups)
            losses = self._losses(logits, boxes, targets, matches, num_boxes * output.num_groups, weights=weights)
            losses |= self._statistics(logits, targets, matches, output.num_groups)
            named = _by_name(losses)
            if output.denoising is not None:
                first = 0 if self.auxiliary_losses else -1
                logits, boxes, target = output.denoising
                noised = Denoising(logits[first:], boxes[first:], target)
                named |= _by_name(self._denoising_losses(noised, targets, num_boxes, noised_weights), "_dn")
            if output.proposals is not None:
                named |= _by_name(self._proposal_losses(output.proposals, targets, num_boxes), "_proposals")
        if output.masks is not None or masks is not None:  # under autocast, as the rest of the model
            named |= self._mask_losses(output, masks, targets, matches, len(layers) - 1, num_boxes)
        return named

    def _divisors(
        self, output: DetectionOutput, logits: Tensor, targets: Sequence[Target], together: bool
    ) -> tuple[Tensor | float, Tensor | None, Tensor | None]:
        """Return what sums are divided by: the objects, and of a cross-entropy the weights of queries and noised ones.

        With `together` they are means over all processes, so that the mean of the processes' gradients is that of one
        process with all images; weights are then known without the device. Else they are None: those of the batch.
        """
        counts = [len(target["labels"]) for target in targets]
        matched = output.num_groups * sum(min(count, logits.shape[2] // output.num_groups) for count in counts)
        others = logits.shape[1] * logits.shape[2] - matched
        noised = 0 if output.denoising is None else int((output.denoising.target >= 0).sum())
        values = sum(counts), matched + self.no_object_weight * others, noised
        means = average_over_processes(values, logits.device) if together else None
        if means is None:
            return max(1.0, float(sum(counts))), None, None
        objects, weights, noised_weights = means.to(logits.dtype).unbind()
        return objects.clamp(min=1), weights, noised_weights

    def total(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Return the weighted sum of all losses, to be minimised."""
        terms = []
        for name, value in losses.items():
            weight = self.weights.get("_".join(name.split("_")[:2]))
            if weight is not None:
                terms.append(weight * value)
        return torch.stack(terms).sum()

    def _losses(
        self,
        logits: Tensor,
        boxes: Tensor,
        targets: Sequence[Target],
        matches: Matches,
        num_boxes: Tensor | float,
        counted: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Every term for every layer, (L,). `counted` (B, Q) bool: queries that learn a class at all.

        `weights`: divisor of the cross-entropy, or None (see `_divisors`).
        """
        at = (matches.layer, matches.image, matches.query)
        labels, target_boxes = _gather_targets(targets, matches)
        if self.classification == "softmax":
            loss_ce = self._cross_entropy(logits, at, labels, counted, weights)
        else:
            loss_ce = self._focal(logits, at, labels, counted) / num_boxes
        matched = boxes[at]
        loss_bbox = F.l1_loss(matched, target_boxes, reduction="none").sum(-1)
        loss_giou = 1 - generalized_iou(cxcywh_to_xyxy(matched), cxcywh_to_xyxy(target_boxes))
        return {
            "loss_ce": loss_ce,
            "loss_bbox": _sum_by_layer(loss_bbox, matches.layer, len(logits)) / num_boxes,
            "loss_giou": _sum_by_layer(loss_giou, matches.layer, len(logits)) / num_boxes,
        }

    def _mask_losses(
        self,
        output: DetectionOutput,
        masks: Callable[[Tensor, Tensor], Tensor] | None,
        targets: Sequence[Target],
        matches: Matches,
        last: int,
        num_boxes: Tensor | float,
    ) -> dict[str, Tensor]:
        """Of the pairs of the last layer and the first group; nothing where targets have no masks."""
        if any("masks" not in target for target in targets):
            return {}
        layer, image, query, target = matches.host
        chosen = (layer == last) & (query < output.logits.shape[1] // output.num_groups)
        index = _first_objects(targets)[image[chosen]] + target[chosen]
        image, query, index = upload(torch.stack((image[chosen], query[chosen], index)), output.logits.device)
        none = len(image) == 0  # a query of weight 0, so that every process has gradients of every parameter
        if none:
            image = query = torch.zeros(1, dtype=torch.int64, device=image.device)
        logits = masks(image, query) if masks is not None else output.masks[image, query]  # type: ignore[index]
        if none:
            nothing = 0.0 * logits.sum()
            return {"loss_mask": nothing, "loss_dice": nothing}
        sizes = [t["masks"].shape[-2:] for t in targets]
        largest = max(height for height, _ in sizes), max(width for _, width in sizes)
        truth = padded_masks([t["masks"] for t in targets], largest, logits.device)
        with torch.autocast(logits.device.type, enabled=False):
            return mask_losses(at_least_float32(logits), truth[index], num_boxes)

    def _cross_entropy(
        self,
        logits: Tensor,
        at: tuple[Tensor, ...],
        labels: Tensor,
        counted: Tensor | None,
        divisor: Tensor | None,
    ) -> Tensor:
        """Weighted mean over all queries, as in the authors' code (the paper divides by objects).

        The authors take those of the batch of one process; here `divisor` makes them those of all.
        """
        classes = torch.full(logits.shape[:3], self.num_classes, dtype=torch.int64, device=logits.device)
        weights = logits.new_full(logits.shape[:3], self.no_object_weight)
        classes[at] = labels
        weights[at] = 1.0
        if counted is not None:
            weights = weights * counted
        entropy = F.cross_entropy(logits.flatten(0, 2), classes.flatten(), reduction="none").view_as(weights)
        # The sum of weights is 0 in a batch without objects if no-object has weight 0.
        total = weights.sum((1, 2)) if divisor is None else divisor
        return (weights * entropy).sum((1, 2)) / total.clamp(min=torch.finfo(weights.dtype).tiny)

    def _focal(self, logits: Tensor, at: tuple[Tensor, ...], labels: Tensor, counted: Tensor | None) -> Tensor:
        """Sum of the sigmoid focal loss over all queries and classes (Lin et al. 2017, eq. 5)."""
        # Treat all classes as absent, then correct the few present ones: no one-hot tensor is needed.
        absent = self._focal_of_absent(logits).sum(-1)
        if counted is not None:
            absent = absent * counted
        present = logits[(*at, labels)]
        change = self._focal_of_present(present) - self._focal_of_absent(present)
        return absent.sum((1, 2)) + _sum_by_layer(change, at[0], len(logits))

    def _focal_of_absent(self, logits: Tensor) -> Tensor:
        return (1 - self.focal_alpha) * logits.sigmoid() ** self.focal_gamma * F.softplus(logits)

    def _focal_of_present(self, logits: Tensor) -> Tensor:
        return self.focal_alpha * (-logits).sigmoid() ** self.focal_gamma * F.softplus(-logits)

    def _denoising_losses(
        self, denoising: Denoising, targets: Sequence[Target], num_boxes: Tensor | float, weights: Tensor | None
    ) -> dict[str, Tensor]:
        """Compute the losses of noised copies, whose targets are known without matching, averaged over copies."""
        num_layers, device = len(denoising.logits), denoising.logits.device
        image, query = (denoising.target >= 0).nonzero(as_tuple=True)
        columns = torch.stack((image, query, denoising.target[image, query])).repeat(1, num_layers)
        layer = torch.arange(num_layers).repeat_interleave(len(image))
        matches = Matches.of(torch.cat((layer[None], columns)), device)
        copies = len(image) / max(1, sum(len(t["labels"]) for t in targets))
        counted = upload(denoising.target >= 0, device)
        logits, boxes = at_least_float32(denoising.logits), at_least_float32(denoising.boxes)
        return self._losses(logits, boxes, targets, matches, num_boxes * copies, counted, weights)

    def _proposal_losses(
        self, proposals: DetectionOutput, targets: Sequence[Target], num_boxes: Tensor | float
    ) -> dict[str, Tensor]:
        """Compute the losses of the proposals of all cells. Each object is matched with several, which learn sooner."""
        logits, boxes = at_least_float32(proposals.logits[None]), at_least_float32(proposals.boxes[None])
        copies = [
            {"labels": target["labels"].repeat(COPIES), "boxes": target["boxes"].repeat(COPIES, 1)}
            for target in targets
        ]
        matches = self.matcher.match_layers(logits, boxes, copies)
        return self._losses(logits, boxes, copies, matches, num_boxes * COPIES)

    @torch.no_grad()
    def _statistics(
        self, logits: Tensor, targets: Sequence[Target], matches: Matches, num_groups: int
    ) -> dict[str, Tensor]:
        """Return the numbers in the authors' logs: class error (last layer only) and cardinality error."""
        best = logits[matches.layer, matches.image, matches.query].argmax(-1)
        labels, _ = _gather_targets(targets, matches)
        last = matches.layer == len(logits) - 1
        class_error = 100 - 100 * ((best == labels) & last).sum() / last.sum().clamp(min=1)
        if self.classification == "softmax":
            found = logits[..., :-1].amax(-1) >= logits[..., -1]
        else:
            found = logits.amax(-1) > 0
        counts = upload(torch.tensor([float(len(t["labels"])) for t in targets]), logits.device)
        predicted = found.sum(-1) / num_groups
        return {"class_error": class_error[None], "cardinality_error": (predicted - counts).abs().mean(-1)}


def average_over_processes(values: Sequence[float], device: torch.device) -> Tensor | None:
    """Return the mean of each of `values` over all processes, (N,) float64 on `device`; None in a single process.

    Every process must call it, even without objects.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return None
    total = upload(torch.tensor(values, dtype=torch.float64), device)
    torch.distributed.all_reduce(total)
    return total / torch.distributed.get_world_size()


def check_labels(targets: Sequence[Target], num_classes: int) -> None:
    """Check labels: one beyond the classes would mean no-object, or crash a GPU with a misleading error.

    Raises:
        DataError: a label is not a class (A20); checked on the host only, to avoid a synchronisation.
    """
    for i, target in enumerate(targets):
        labels = target["labels"]
        if labels.device.type == "cpu" and len(labels):
            low, high = (int(value) for value in labels.aminmax())
            if low < 0 or high >= num_classes:
                raise DataError(
                    f"label {low if low < 0 else high} in image {i} of the batch, expected 0 to {num_classes - 1}",
                    remedy="labels count the categories from 0, whatever the ids of the data set",
                    code="A20",
                )


def _gather_targets(targets: Sequence[Target], matches: Matches) -> tuple[Tensor, Tensor]:
    """Label (M,) and box (M, 4) of every matched pair, chosen where the targets are and then sent to the device."""
    labels, boxes = (torch.cat([target[name] for target in targets]) for name in ("labels", "boxes"))
    index = upload(_first_objects(targets)[matches.host[1]] + matches.host[3], labels.device)
    device = matches.target.device
    return upload(labels[index], device), upload(boxes[index].float(), device)


def _first_objects(targets: Sequence[Target]) -> Tensor:
    """(B,) on the host, where the objects of each image begin among those of all."""
    counts = [len(target["labels"]) for target in targets[:-1]]
    return torch.tensor([0, *counts]).cumsum(0)


def _sum_by_layer(values: Tensor, layer: Tensor, num_layers: int) -> Tensor:
    """(M,) values and their layers -> sums (L,)."""
    return values.new_zeros(num_layers).index_add(0, layer, values)


def _by_name(losses: Mapping[str, Tensor], infix: str = "") -> dict[str, Tensor]:
    """Terms (L,) -> scalars by the authors' names: the last layer's is bare, earlier ones end in their number."""
    named = {}
    for name, values in losses.items():
        *earlier, last = values.unbind(0)
        named[f"{name}{infix}"] = last
        named |= {f"{name}{infix}_{i}": value for i, value in enumerate(earlier)}
    return named
