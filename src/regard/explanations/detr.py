"""Explanations of DETR: attention of its queries, and of the image in its encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import clip_boxes_to_image

from regard.errors import ConfigError
from regard.explanations.checks import cell_of, check_kind, chosen
from regard.explanations.explanation import Box, SaliencyMap
from regard.explanations.options import ExplanationOptions
from regard.explanations.recording import Attended, AttentionRecorder, gradients
from regard.models.detr import DETR, AttentionMaps
from regard.results.postprocess import ScoredQueries, score_queries
from regard.structures.boxes import cxcywh_to_xyxy
from regard.structures.image_batch import ImageBatch
from regard.structures.outputs import DetectionOutput

# Kinds of explanation with the options that each uses; all use the threshold.
KINDS = {
    "decoder": ("layer", "head", "query"),
    "heads": ("point", "layer", "query"),
    "encoder": ("point", "layer", "head"),
    "layers": ("query",),
    "relevance": ("query",),
}
MAX_DETECTIONS = 12
COLUMNS = 4  # maps per row of the picture
POINTS = 4  # maps of the encoder if no point is given


@dataclass(frozen=True, eq=False)
class Found:
    """The best detections of an image: queries (N,), labels, "name score"; boxes (N, 4) xyxy, original pixels."""

    queries: Tensor
    labels: list[int]
    titles: list[str]
    boxes: Tensor

    def __len__(self) -> int:
        return len(self.titles)

    def saliency_map(self, number: int, weights: Tensor, title: str, extent: Box) -> SaliencyMap:
        """A map (h, w) with the box of one detection."""
        return SaliencyMap(weights, title, extent, boxes=self.boxes[number][None], labels=[self.labels[number]])


def explain_detr(
    net: DETR, batch: ImageBatch, size: tuple[int, int], what: str, options: ExplanationOptions
) -> tuple[list[SaliencyMap], int]:
    """Return maps over the feature map of one image, and the number of maps per row of the picture.

    * `decoder`: cross-attention of each detection in a decoder layer, mean of heads (or one head). DETR, figure 6.
    * `heads`: each head, for the detection at `point`, or the best one.
    * `encoder`: self-attention in an encoder layer from `point`, or from the centres of the best detections. Figure 3.
    * `layers`: boxes of the detections of the last layer and their mean attention in every decoder layer.
    * `relevance`: for the class of each detection, through all layers. Chefer et al. 2021, equations 5 to 11.

    Rows of attention sum to 1 over the tokens that are not padding.

    Args:
        batch: one image, normalised.
        size: (height, width) of the original image in pixels.
        what: kind of maps.
        options: `threshold` is the minimum score of a detection.

    Raises:
        ConfigError: no such kind, layer, head or point (C01, C03); the model has no encoder layer (C09).
    """
    given = {"point": options.point, "layer": options.layer, "head": options.head, "query": options.query}
    check_kind(what, KINDS, net.card.name, **given)
    if what == "encoder" and net.config.encoder_layers == 0:
        remedy = f"take one of {', '.join(kind for kind in KINDS if kind != 'encoder')}"
        raise ConfigError(f"{net.card.name} has no encoder layer", remedy=remedy, code="C09")
    if what == "relevance":
        return _relevance(net, batch, size, options), COLUMNS
    with torch.no_grad():
        maps = net.attention(batch, encoder=what == "encoder")
    grid = maps.feature_size
    extent = covered(net, grid, batch.sizes[0], size)
    found = _detections(net, maps.output, size, options)
    if what == "encoder":
        return _encoder(maps, found, extent, size, options), COLUMNS
    if what == "layers":
        return _layers(maps.output, maps.decoder_cross[:, 0], found, grid, extent, size), COLUMNS
    cross = maps.decoder_cross[chosen("layer", options.layer, len(maps.decoder_cross), -1), 0]  # (heads, Q, N)
    if what == "heads":
        if not len(found):
            return [], COLUMNS
        one = _at(found, options.point, size)
        heads = cross[:, found.queries[one]].unflatten(1, grid)
        titles = [f"{found.titles[one]}, head {i}" for i in range(len(heads))]
        return [found.saliency_map(one, row, title, extent) for row, title in zip(heads, titles, strict=True)], COLUMNS
    rows = _heads(cross, options.head)[found.queries].unflatten(1, grid)
    pairs = enumerate(zip(rows, found.titles, strict=True))
    return [found.saliency_map(i, row, title, extent) for i, (row, title) in pairs], COLUMNS


def _encoder(
    maps: AttentionMaps, found: Found, extent: Box, size: tuple[int, int], options: ExplanationOptions
) -> list[SaliencyMap]:
    assert maps.encoder is not None
    grid = maps.feature_size
    weights = _heads(maps.encoder[chosen("layer", options.layer, len(maps.encoder), -1), 0], options.head)
    points = [options.point] if options.point is not None else _middles(found, size)
    place_of: dict[tuple[int, int], tuple[float, float]] = {}  # one map per cell
    for point in points:
        place_of.setdefault(cell_of(point, extent, grid), point)
    return [
        SaliencyMap(weights[y * grid[1] + x].unflatten(0, grid), f"from {at[0]:.0f}, {at[1]:.0f}", extent, at)
        for (y, x), at in list(place_of.items())[:POINTS]
    ]


def covered(net: DETR, grid: tuple[int, int], resized: tuple[int, int], original: tuple[int, int]) -> Box:
    """What the cells (h, w) of the feature map cover together, in pixels of the original; it may reach past the image.

    Args:
        resized, original: (height, width) of the image as the model sees it, and as it is.
    """
    stride = feature_stride(net)
    bottom, right = (cells * stride * whole / seen for cells, whole, seen in zip(grid, original, resized, strict=True))
    return 0.0, 0.0, right, bottom


@torch.no_grad()
def feature_stride(net: DETR) -> int:
    """Return the side of a cell of the feature map, in pixels of the image as the model sees it."""
    side = 64
    parameter = next(net.parameters())
    pixels = torch.zeros(1, 3, side, side, device=parameter.device, dtype=parameter.dtype)
    return side // net.backbone(pixels)[-1].shape[-1]


def _detections(net: DETR, output: DetectionOutput, size: tuple[int, int], options: ExplanationOptions) -> Found:
    """Return the best detections above the threshold of the first image, at most one per query; or that of one query.

    Raises:
        ConfigError: there is no such query (C03).
    """
    if options.query is None:
        scored = score_queries(output, softmax=not net.config.sigmoid)
        best = scored.where((scored.image == 0) & (scored.scores > (options.threshold or 0.0)))
    else:  # with its best class; `duplicate_iou` might have dropped it
        query = chosen("query", options.query, output.logits.shape[1], 0)
        kept = output._replace(logits=output.logits[:1, query, None], boxes=output.boxes[:1, query, None])
        scored = score_queries(kept, softmax=not net.config.sigmoid, multi_label=False)
        best = scored._replace(query=torch.full_like(scored.query, query))
    order = best.scores.argsort(descending=True, stable=True)
    rows: dict[int, int] = {}  # query -> its best row
    for row, query in zip(*torch.stack((order, best.query[order])).tolist(), strict=True):
        rows.setdefault(query, row)
    best = best.where(torch.tensor([*rows.values()][:MAX_DETECTIONS], dtype=torch.int64, device=best.query.device))
    return Found(best.query, best.labels.tolist(), _titles(net, best), _in_pixels(output.boxes[0, best.query], size))


def _titles(net: DETR, best: ScoredQueries) -> list[str]:
    pairs = zip(best.labels.tolist(), best.scores.tolist(), strict=True)
    return [f"{net.card.categories[label].name} {score:.2f}" for label, score in pairs]


def _in_pixels(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    height, width = size
    corners = cxcywh_to_xyxy(boxes.float()) * torch.tensor([width, height, width, height], device=boxes.device)
    return clip_boxes_to_image(corners, size).cpu()


def _heads(weights: Tensor, head: int | None) -> Tensor:
    """(heads, N, M) -> (N, M), the mean or one."""
    return weights.mean(0) if head is None else weights[chosen("head", head, len(weights), 0)]


def _middles(found: Found, size: tuple[int, int]) -> list[tuple[float, float]]:
    """Return the centres of the best detections inside the image, or the centre of the image if there are none."""
    middles = [((x0 + x1) / 2, (y0 + y1) / 2) for x0, y0, x1, y1 in found.boxes.tolist()]
    inside = [(min(max(x, 0.0), size[1] - 1.0), min(max(y, 0.0), size[0] - 1.0)) for x, y in middles]
    return inside or [(size[1] / 2, size[0] / 2)]


def _at(found: Found, point: tuple[float, float] | None, size: tuple[int, int]) -> int:
    """Return the smallest detection with the point in its box; without a point the best one.

    Args:
        size: (height, width) of the image.

    Raises:
        ConfigError: the point is outside the image, or no detection contains it (C03).
    """
    if point is None:
        return 0
    x, y = point
    if not (0 <= x < size[1] and 0 <= y < size[0]):
        raise ConfigError(f"point {x:g} {y:g} is outside the image of {size[1]}x{size[0]} pixels", code="C03")
    boxes = found.boxes
    inside = (boxes[:, 0] <= x) & (x < boxes[:, 2]) & (boxes[:, 1] <= y) & (y < boxes[:, 3])
    if not inside.any():
        raise ConfigError(f"no detection at point {x:g} {y:g}", remedy="lower the threshold", code="C03")
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return int(areas.masked_fill(~inside, torch.inf).argmin())


def _layers(
    output: DetectionOutput, cross: Tensor, found: Found, grid: tuple[int, int], extent: Box,
    size: tuple[int, int],
) -> list[SaliencyMap]:  # fmt: skip
    """Return one map per decoder layer: the mean of the maps of all detections, with their boxes of that layer."""
    maps = []
    for number, (layer, weights) in enumerate(zip([*output.auxiliary, output], cross, strict=True)):
        if not len(found):
            break
        mean = weights[:, found.queries].mean((0, 1)).unflatten(0, grid)
        boxes = _in_pixels(layer.boxes[0, found.queries], size)
        maps.append(SaliencyMap(mean, f"decoder layer {number}", extent, boxes=boxes, labels=found.labels))
    return maps


def _relevance(net: DETR, batch: ImageBatch, size: tuple[int, int], options: ExplanationOptions) -> list[SaliencyMap]:
    with torch.no_grad():
        features = net.backbone(batch.pixels)[-1]
    grid = features.shape[-2], features.shape[-1]
    extent = covered(net, grid, batch.sizes[0], size)
    with AttentionRecorder() as recorder:
        moved = ImageBatch(batch.pixels.clone().requires_grad_(), batch.sizes)
        output = net(moved, masks=False)
    # Those of the transformer come last: a backbone may have attention of its own.
    calls = recorder.calls[-(net.config.encoder_layers + 2 * net.config.decoder_layers) :]
    found = _detections(net, output, size, options)
    maps = []
    for number, (query, label) in enumerate(zip(found.queries.tolist(), found.labels, strict=True)):
        row = relevance(output.logits[0, query, label], calls, net.config.encoder_layers)[query]
        maps.append(found.saliency_map(number, row.unflatten(0, grid), found.titles[number], extent))
    return maps


def relevance(score: Tensor, calls: Sequence[Attended], encoder_layers: int) -> Tensor:
    """Compute the relevance (Q, N) of each image token to each query, for a score computed with `calls`.

    Self-attention in the encoder: R_ii += A R_ii. In a decoder layer, self-attention R_qq += A R_qq and
    R_qi += A R_qi, then cross-attention R_qi += norm(R_qq)^T A norm(R_ii), with A the gradient-weighted mean of heads
    (equation 5) and norm(R) = I + the rest of R with rows that sum to 1 (equations 8 and 9).
    """
    weighted = [one[0] for one in gradients(score, calls)]
    of_encoder, of_decoder = weighted[:encoder_layers], weighted[encoder_layers:]
    queries, tokens = of_decoder[1].shape
    qq = torch.eye(queries, device=score.device)
    qi = torch.zeros(queries, tokens, device=score.device)
    for own, cross in zip(of_decoder[::2], of_decoder[1::2], strict=True):
        qq, qi = qq + own @ qq, qi + own @ qi
        qi = qi + _through(_normalized(qq).T @ cross, of_encoder)
    return qi


def _through(rows: Tensor, layers: Sequence[Tensor]) -> Tensor:
    """rows @ norm(R_ii) without R_ii, which would cost N^3 a layer: R_ii = (I + A_last) ... (I + A_first).

    I is left out of all sums because A is small compared with it.
    """
    total = torch.zeros(rows.shape[1], 1, device=rows.device)  # of each row of R_ii - I
    for one in layers:
        total = total + one @ (1 + total)
    scaled = rows / total.T.clamp(min=1e-12)
    rest = torch.zeros_like(rows)
    for one in reversed(layers):
        rest = rest + (scaled + rest) @ one
    return rows + rest


def _normalized(relevance: Tensor) -> Tensor:
    rest = relevance - torch.eye(len(relevance), device=relevance.device)
    return rest / rest.sum(-1, keepdim=True).clamp(min=1e-12) + torch.eye(len(relevance), device=relevance.device)
