"""The loss of a dense detector: anchors that overlap an object learn its class and its box. (RetinaNet.)

Lin et al. 2017, sections 3 and 4. The values are those of torchvision's RetinaNet: focal loss and L1 loss of the
offsets, each divided by the number of an image's foreground anchors, averaged over images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from regard.losses.detection import check_labels
from regard.structures.boxes import cxcywh_to_xyxy, encode_boxes, iou
from regard.structures.outputs import DensePredictions, DetectionOutput
from regard.structures.precision import at_least_float32
from regard.structures.transfer import upload

FOREGROUND_IOU, BACKGROUND_IOU = 0.5, 0.4  # an anchor with an IoU between them learns no class
BACKGROUND, IGNORED = -1, -2


class AnchorCriterion:
    """Assign objects to anchors and compute the losses. It is called as `SetCriterion` is.

    Args:
        num_classes: classes, each with a sigmoid.
        class_weight: weight of the focal loss in `total`.
        bbox_weight: weight of the L1 loss of the offsets.
        focal_alpha: alpha of the focal loss.
        focal_gamma: gamma of the focal loss.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        class_weight: float = 1.0,
        bbox_weight: float = 1.0,
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
    ) -> None:
        self.num_classes = num_classes
        self.focal_alpha = focal_alpha
        self.focal_gamma = focal_gamma
        self.weights = {"loss_ce": class_weight, "loss_bbox": bbox_weight}

    def __call__(
        self,
        output: DetectionOutput,
        targets: Sequence[Mapping[str, Tensor]],
        *,
        together: bool = True,
        masks: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Compute the losses of an output.

        Args:
            output: of a dense detector.
            targets: per image `{"labels": (T,) int64 below num_classes, "boxes": (T, 4) cxcywh 0..1}`.
            together: without effect: an image's loss is divided by its own anchors, whatever other processes have.
            masks: must be None: a dense detector has no masks.

        Returns:
            Unweighted scalars `loss_ce` (focal) and `loss_bbox`.

        Raises:
            DataError: a label is not below `num_classes` (A20); checked on the host only.
        """
        assert output.dense is not None and masks is None
        check_labels(targets, self.num_classes)
        device = output.logits.device
        with torch.autocast(device.type, enabled=False):
            matched, labels, boxes = self._assign(output.dense, targets, device)
            image, anchor = (matched >= 0).nonzero(as_tuple=True)
            target = matched[image, anchor]
            per_image = (matched >= 0).sum(1).clamp(min=1)
            # Treat all classes as absent, then correct the few present ones: no one-hot tensor is needed.
            logits = at_least_float32(output.logits)
            focal = (self._absent(logits).sum(-1) * (matched != IGNORED)).sum(1)
            present = logits[image, anchor, labels[target]]
            focal = focal.index_add(0, image, self._present(present) - self._absent(present))
            wanted = encode_boxes(boxes[target], output.dense.anchors.float()[anchor])
            distance = (at_least_float32(output.dense.offsets)[image, anchor] - wanted).abs().sum(1)
            l1 = torch.zeros_like(focal).index_add(0, image, distance)
            return {"loss_ce": (focal / per_image).mean(), "loss_bbox": (l1 / per_image).mean()}

    def total(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Return the weighted sum of the losses, to be minimised."""
        return torch.stack([weight * losses[name] for name, weight in self.weights.items()]).sum()

    def _assign(
        self, dense: DensePredictions, targets: Sequence[Mapping[str, Tensor]], device: torch.device
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return for each anchor (B, Q) the number of its object among all of the batch, and labels and boxes of those.

        Boxes are cxcywh in pixels.
        """
        matched, boxes, first = [], [], 0
        for target, (height, width) in zip(targets, dense.sizes, strict=True):
            scale = torch.tensor([width, height, width, height], dtype=torch.float32)
            own = upload(target["boxes"].float().cpu() * scale, device)
            found = assign_anchors(own, dense.anchors.float())
            matched.append(torch.where(found >= 0, found + first, found))
            boxes.append(own)
            first += len(own)
        labels = upload(torch.cat([target["labels"] for target in targets]), device)
        return torch.stack(matched), labels, torch.cat(boxes)

    def _absent(self, logits: Tensor) -> Tensor:
        return (1 - self.focal_alpha) * logits.sigmoid() ** self.focal_gamma * F.softplus(logits)

    def _present(self, logits: Tensor) -> Tensor:
        return self.focal_alpha * (-logits).sigmoid() ** self.focal_gamma * F.softplus(-logits)


@torch.no_grad()
def assign_anchors(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Return for each anchor the object that it learns (N,) int64, or BACKGROUND (-1) or IGNORED (-2).

    An anchor learns the object with which its IoU is highest, if that is at least 0.5; below 0.4 it is background.
    The anchors with the highest IoU of an object learn in any case, so that each object has one. As torchvision's
    `Matcher` does, such an anchor learns the object that overlaps it most, which may be another one.

    Args:
        boxes: (T, 4) cxcywh.
        anchors: (N, 4) cxcywh.
    """
    if not len(boxes):
        return torch.full((len(anchors),), BACKGROUND, device=anchors.device)
    overlap = iou(cxcywh_to_xyxy(boxes)[:, None], cxcywh_to_xyxy(anchors)[None])
    highest, best = overlap.max(0)
    found = best.masked_fill(highest < FOREGROUND_IOU, IGNORED).masked_fill(highest < BACKGROUND_IOU, BACKGROUND)
    is_best = ((overlap == overlap.amax(1, keepdim=True)) & (overlap > 0)).any(0)
    return torch.where(is_best, best, found)
