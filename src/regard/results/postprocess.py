"""From a detector's raw output to detections, segments and masks of the original image.

The steps follow the authors' `PostProcess` (models/detr.py), `PostProcessSegm` and `PostProcessPanoptic`
(models/segmentation.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.ops import batched_nms

from regard.errors import ConfigError
from regard.structures.boxes import cxcywh_to_xyxy
from regard.structures.categories import Category
from regard.structures.outputs import DetectionOutput
from regard.structures.segments import PanopticSegments
from regard.structures.transfer import download, upload

MAX_DROPPED_AREA = 4  # pixels; segments of this area and below are dropped

MIN_VISIBLE = 0.5  # part of a mask that better ones leave to it, below which it shows the same object again
# Of dense detectors, as in torchvision's RetinaNet: most candidates of a level and their minimum score, the IoU above
# which the better of two boxes of a class suppresses the other, and most detections of an image.
CANDIDATES, MIN_SCORE, DUPLICATE_IOU, MAX_DETECTIONS = 1000, 0.05, 0.5, 300

SegmentMethod = Literal["published", "clean", "scored"]


class ImageSizes(NamedTuple):
    """Sizes (height, width) of one image in pixels: of its padded batch, of its resized pixels, of its file."""

    padded: tuple[int, int]
    resized: tuple[int, int]
    original: tuple[int, int]


class ScoredQueries(NamedTuple):
    """Queries of a batch that were chosen as detections or segments, image after image.

    image, query, labels: (N,) int64. scores: (N,) float32, 0..1.
    """

    image: Tensor
    query: Tensor
    labels: Tensor
    scores: Tensor

    def where(self, kept: Tensor) -> ScoredQueries:
        """Return the rows for which `kept` (N,) is True, or whose positions it holds."""
        rows = kept.nonzero()[:, 0] if kept.dtype == torch.bool else kept  # once, as a device waits for it
        return ScoredQueries(*(column[rows] for column in self))

    def on_host(self, boxes: Tensor) -> tuple[ScoredQueries, Tensor]:
        """Return these queries and their boxes (N, 4) on the host, for which the host waits once."""
        *columns, boxes = download(*self, boxes)
        return ScoredQueries(*columns), boxes

    def rows(self, image: int) -> Tensor:
        """Return the positions (M,) of the rows that belong to an image of the batch."""
        return (self.image == image).nonzero()[:, 0]


def score_queries(output: DetectionOutput, *, softmax: bool, multi_label: bool = True) -> ScoredQueries:
    """Choose the detections of each image. Scores are float32 under mixed precision too.

    This is the one place that knows how a detector's predictions become detections. Queries have agreed on the objects:
    each is one detection, Q of an image, or fewer without the duplicates that `output.duplicate_iou` tells. Anchors
    have not (`output.dense`): duplicates are suppressed, best first, and 0 to 300 detections with scores above 0.05 are
    left.

    Args:
        softmax: True if classes exclude each other and the last one is no-object, as in DETR: each query is one
            detection, in query order. False for sigmoid scores: the best Q of all (query, class) pairs, best first
            (Deformable DETR).
        multi_label: False to give each query one label with sigmoid scores too: its best class, in query order. Of
            anchors, a box then suppresses those of other classes too.
    """
    logits = output.logits.float()
    if output.dense is not None:
        return _suppress_duplicates(output, output.dense.levels, multi_label)
    num_images, num_queries, num_classes = logits.shape
    image = torch.arange(num_images, device=logits.device).repeat_interleave(num_queries)
    if softmax or not multi_label:
        scores, labels = (logits.softmax(-1)[..., :-1] if softmax else logits.sigmoid()).max(-1)
        query = torch.arange(num_queries, device=logits.device).repeat(num_images)
    else:
        best, pairs = logits.flatten(1).topk(num_queries)
        scores, labels, query = best.sigmoid(), pairs % num_classes, (pairs // num_classes).flatten()
    found = ScoredQueries(image, query, labels.flatten(), scores.flatten())
    return found if output.duplicate_iou == 1 else _without_duplicates(found, output)


def _without_duplicates(found: ScoredQueries, output: DetectionOutput) -> ScoredQueries:
    """Drop the worse of two boxes of a class and image that overlap by more than `output.duplicate_iou`."""
    boxes = cxcywh_to_xyxy(output.boxes[found.image, found.query].double())  # NMS adds the number of the group to them
    apart = found.image * output.logits.shape[-1] + found.labels
    return found.where(batched_nms(boxes, found.scores.double(), apart, output.duplicate_iou).sort().values)


def _suppress_duplicates(output: DetectionOutput, levels: Sequence[int], multi_label: bool) -> ScoredQueries:
    """Choose the detections of a dense detector: the best candidates of each level, then non-maximum suppression.

    Boxes that lie outside of the image have no area once they are clipped, and are left out.
    """
    chosen = []
    for image, (logits, boxes) in enumerate(zip(output.logits.float(), output.boxes.float(), strict=True)):
        parts, first = [], 0
        inside = (boxes[:, 2:] > 0).all(1, keepdim=True)
        for scores in (logits.sigmoid() * inside).split(list(levels)):
            values, labels = scores.max(-1)
            anchors = torch.arange(first, first + len(scores), device=scores.device)
            first += len(scores)
            if multi_label:
                anchors = anchors[:, None].expand_as(scores).flatten()
                labels = torch.arange(scores.shape[1], device=scores.device).expand_as(scores).flatten()
                values = scores.flatten()
            kept = (values > MIN_SCORE).nonzero()[:, 0]
            kept = kept[values[kept].topk(min(CANDIDATES, len(kept))).indices]
            parts.append((anchors[kept], labels[kept], values[kept]))
        anchors, labels, values = (torch.cat(column) for column in zip(*parts, strict=True))
        groups = labels if multi_label else torch.zeros_like(labels)
        best = batched_nms(cxcywh_to_xyxy(boxes[anchors]), values, groups, DUPLICATE_IOU)[:MAX_DETECTIONS]
        chosen.append((torch.full_like(best, image), anchors[best], labels[best], values[best]))
    return ScoredQueries(*(torch.cat(column) for column in zip(*chosen, strict=True)))


def segment_queries(output: DetectionOutput, *, softmax: bool, threshold: float) -> ScoredQueries:
    """Choose the queries that become segments: those whose best class is an object with a score above `threshold`."""
    logits = output.logits.float()
    probabilities = logits.softmax(-1) if softmax else logits.sigmoid()
    scores, labels = probabilities.max(-1)
    kept = scores > threshold
    if softmax:
        kept &= labels != logits.shape[-1] - 1
    image, query = kept.nonzero(as_tuple=True)
    return ScoredQueries(image, query, labels[image, query], scores[image, query])


def segment_threshold(*, softmax: bool, of_run: float | None = None) -> float:
    """Return the default minimum score of a segment.

    The one that the run found best, if it is known. Otherwise 0.85 as published, and 0.3 for sigmoid scores of a focal
    loss, which rarely come near 1.
    """
    if of_run is not None:
        return of_run
    return 0.85 if softmax else 0.3


def segment_method(method: SegmentMethod | Literal["auto"], *, softmax: bool) -> SegmentMethod:
    """Return a method as it is; `auto` is `published` for softmax scores and `scored` for sigmoid scores."""
    if method == "auto":
        return "published" if softmax else "scored"
    return method


def boxes_in_pixels(output: DetectionOutput, queries: ScoredQueries, sizes: Sequence[tuple[int, int]]) -> Tensor:
    """Return the boxes (N, 4) of chosen queries, xyxy in pixels, float32, not clipped to the image.

    Args:
        sizes: (height, width) of each image of the batch in pixels.
    """
    boxes = cxcywh_to_xyxy(output.boxes[queries.image, queries.query].float())
    scale = upload(torch.tensor([(w, h, w, h) for h, w in sizes], dtype=boxes.dtype), boxes.device)
    return boxes * scale[queries.image]


def postprocess(
    output: DetectionOutput, sizes: Sequence[tuple[int, int]], *, softmax: bool
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return the detections of each image: scores (N,) 0..1, labels (N,) int64, boxes (N, 4) xyxy in pixels.

    Args:
        sizes: (height, width) in pixels of each original image.
        softmax: as in `score_queries`, which chooses and orders the detections.

    Raises:
        ConfigError: the number of sizes is not the number of images.
    """
    if len(sizes) != len(output.logits):
        raise ConfigError(f"{len(sizes)} sizes for predictions of {len(output.logits)} images")
    queries = score_queries(output, softmax=softmax)
    boxes, rows = boxes_in_pixels(output, queries, sizes), [queries.rows(image) for image in range(len(sizes))]
    return [(queries.scores[mine], queries.labels[mine], boxes[mine]) for mine in rows]


def panoptic_segments(
    scores: Tensor,
    labels: Tensor,
    masks: Tensor,
    sizes: ImageSizes,
    categories: Sequence[Category],
    method: SegmentMethod = "published",
) -> PanopticSegments:
    """Cut an image into segments, by default so that each pixel goes to the query with the highest mask logit.

    `published` follows `PostProcessPanoptic`: segments of one stuff class are merged into the first of them, and the
    result is resized by nearest neighbour as Pillow does. Segments of at most 4 pixels are then dropped and their
    pixels reassigned until none is left. Reassignment does not merge stuff: a query that was merged into another
    counts as empty and loses its pixels to the next best mask, of whatever class.

    The authors squeeze a padded mask into the image. Here the mask is enlarged to the padded size and then cropped,
    which is the same for a single image.

    `clean` enlarges the logits directly to the original size, and merged stuff stays merged.

    `scored` is for models that may find an object twice: `scored_segments`.

    Args:
        scores: (M,), 0..1, of the M queries of one image.
        labels: (M,) int64.
        masks: (M, h, w) logits.
        categories: the model's.

    Returns:
        Segments whose `queries` are positions among the M queries.
    """
    if method == "scored":
        return scored_segments(scores, labels, masks, sizes, categories)
    rows, owner = torch.arange(len(labels), device=labels.device), _first_of_stuff(labels, categories)
    logits = _enlarged(masks, sizes, to_original=method == "clean")
    while True:
        ids = _nearest(_owners(logits, owner), sizes.original)
        areas = torch.bincount(ids.flatten(), minlength=len(labels) + 1)[1:]
        kept = areas[owner if method == "clean" else rows] > MAX_DROPPED_AREA
        if kept.all():
            break
        rows, logits, owner = rows[kept], logits[kept], owner[kept]
        if method == "published":
            owner = rows
    return _numbered(ids, labels, scores, categories)


def scored_segments(
    scores: Tensor, labels: Tensor, masks: Tensor, sizes: ImageSizes, categories: Sequence[Category]
) -> PanopticSegments:
    """Cut an image into segments: each pixel goes to the mask around it with the highest score times probability.

    A mask that keeps less than half of its pixels shows what a better one shows, and is dropped (MaskFormer, Cheng et
    al. 2021, section 3.4). Pixels in no mask go to the likeliest stuff, which fills the image around the things. All
    segments of a stuff class are one. Arguments as in `panoptic_segments`.
    """
    if not len(labels):
        empty = torch.zeros(sizes.original, dtype=torch.long, device=labels.device)
        return PanopticSegments(empty, labels, scores, tuple(categories), queries=labels)
    probabilities = _enlarged(masks, sizes).sigmoid()
    values, inside = probabilities * scores[:, None, None], probabilities > 0.5
    claims = values * inside
    best, owner = claims.max(0)
    visible = torch.bincount(owner[best > 0], minlength=len(labels))
    kept = (visible > MAX_DROPPED_AREA) & (visible >= MIN_VISIBLE * inside.flatten(1).sum(1))
    claims = claims * kept[:, None, None]
    is_stuff = _is_stuff(labels, categories)[:, None, None]
    claims = torch.where((claims.amax(0) == 0) & is_stuff, values, claims)
    ids = _owners(claims, _first_of_stuff(labels, categories)) * (claims.amax(0) > 0)
    return _numbered(_nearest(ids, sizes.original), labels, scores, categories)


def _numbered(ids: Tensor, labels: Tensor, scores: Tensor, categories: Sequence[Category]) -> PanopticSegments:
    """Return segments for ids (H, W), 0 or 1 + the query of each pixel; queries without pixels get no segment."""
    left = torch.bincount(ids.flatten(), minlength=len(labels) + 1)[1:].nonzero()[:, 0]
    numbers = ids.new_zeros(len(labels) + 1)
    numbers[left + 1] = torch.arange(1, len(left) + 1, device=ids.device)
    return PanopticSegments(numbers[ids], labels[left], scores[left], tuple(categories), queries=left)


def instance_masks(masks: Tensor, sizes: ImageSizes) -> Tensor:
    """Return masks (M, H, W) bool of the original image for logits (M, h, w): True where the logit is above 0.

    As in `PostProcessSegm`: enlarge to the padded size, crop, resize by nearest neighbour.
    """
    if not len(masks):
        return torch.zeros(0, *sizes.original, dtype=torch.bool, device=masks.device)
    inside = _enlarged(masks, sizes) > 0
    return F.interpolate(inside[:, None].to(torch.uint8), sizes.original, mode="nearest")[:, 0].bool()


def _enlarged(masks: Tensor, sizes: ImageSizes, *, to_original: bool = False) -> Tensor:
    """Resize logits bilinearly and crop the padding away: (M, H, W) at the resized or the original size."""
    height, width = sizes.resized
    if not len(masks):
        return masks.new_zeros(0, *(sizes.original if to_original else sizes.resized))
    logits = F.interpolate(masks[:, None].float(), sizes.padded, mode="bilinear", align_corners=False)
    logits = logits[:, :, :height, :width]
    if to_original:
        logits = F.interpolate(logits, sizes.original, mode="bilinear", align_corners=False)
    return logits[:, 0]


def _first_of_stuff(labels: Tensor, categories: Sequence[Category]) -> Tensor:
    """Return (M,): for a query of a stuff class the first query of that class, else the query itself."""
    places = torch.arange(len(labels), device=labels.device)
    if not len(labels):
        return places
    first = (labels[:, None] == labels).long().argmax(1)
    return torch.where(_is_stuff(labels, categories), first, places)


def _is_stuff(labels: Tensor, categories: Sequence[Category]) -> Tensor:
    """Return (M,) bool: which of the labels are classes of stuff."""
    return torch.tensor([not category.is_thing for category in categories], device=labels.device)[labels]


def _owners(logits: Tensor, owner: Tensor) -> Tensor:
    """Return ids (H, W) for logits (M, H, W): 1 + the owner of the highest logit; 0 everywhere if M is 0."""
    if not len(logits):
        return torch.zeros(logits.shape[-2:], dtype=torch.long, device=logits.device)
    return owner[_highest(logits)] + 1


def _highest(values: Tensor) -> Tensor:
    """Return (H, W) int64: which of the values (M, H, W) is the highest; the first of equal ones, as `argmax` does."""
    return values.max(0).indices  # argmax takes five times as long on a CPU


def _nearest(ids: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize ids (h, w) to `size` with Pillow: its floating-point positions decide ties as in the authors' code."""
    if tuple(ids.shape) == tuple(size):
        return ids
    picture = Image.fromarray(ids.cpu().numpy().astype(np.int32))
    resized = np.array(picture.resize((size[1], size[0]), Image.Resampling.NEAREST), dtype=np.int64)
    return torch.from_numpy(resized).to(ids.device)
