"""`regard.predict`: images in; detections, segments or classes out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from regard.config import unknown_name
from regard.data.image_folders import list_images
from regard.data.images import to_image
from regard.data.samples import ClassSample, Sample
from regard.data.transforms.classification import Evaluation
from regard.data.transforms.detection import EvaluationResize
from regard.errors import ConfigError
from regard.models.build import Detector, Model
from regard.models.classifiers import Classifier
from regard.models.detr import DETR
from regard.models.evaluation_mode import evaluation_mode
from regard.results.classification import Classification, classify
from regard.results.detections import Detections, postprocess
from regard.results.postprocess import (
    Method,
    Sizes,
    choose_queries,
    instance_masks,
    panoptic_segments,
    score_queries,
)
from regard.results.segmentation import Segmentation
from regard.structures.image_batch import ImageBatch
from regard.structures.outputs import DetectionOutput
from regard.training.distributed import choose_device
from regard.weights.load import load

Result = Detections | Segmentation | Classification

LEAST_SCORE = 0.5  # of detections, where nothing else is said


def predict(
    model: Model | str | Path,
    images: Any,
    *,
    threshold: float | None = None,
    segments: Method = "published",
    batch_size: int = 1,
    device: str = "auto",
) -> Result | list[Result]:
    """Detect objects in images, cut them into segments, or classify them.

    Args:
        model: a detector or classifier, or whatever `regard.load` takes.
        images: a path, a PIL image, an array (H, W, 3) uint8 or float 0..1, a tensor (3, H, W) uint8 or float 0..1, a
            folder, or a list of all but folders. Arrays and tensors are RGB.
        threshold: least score of detections or segments, 0..1; if None 0.5, for segments 0.85 as published (0.3 where
            scores are sigmoids).
        segments: how a panoptic model's masks become segments: `published` as in the authors' code, or `clean`, at
            full resolution and with stuff in one piece (`mask_results.panoptic_segments`).
        batch_size: images at once. Padding beside a larger image changes a detector's numbers a little; 1 does not pad.
        device: `cpu`, `cuda`, ...; `auto` leaves a model where it is and takes the best device for one that is
            loaded.

    Returns:
        One result for one image, a list for a list or a folder. By the model a result is `Detections` (with masks if
        it has them), `Segmentation` (if it knows stuff) or `Classification`.

    Raises:
        ConfigError: `threshold` or `batch_size` is out of range (C03), or `segments` is unknown (C02).
        DataError: an image that cannot be read; the line names it.
    """
    check_options(threshold, batch_size, segments)
    if isinstance(images, (list, tuple)):
        sources = list(images)
    elif isinstance(images, (str, Path)) and Path(images).is_dir():
        sources = list(list_images(images))
    else:
        sources = [images]
        return next(predict_each(model, sources, threshold=threshold, segments=segments, device=device))
    return list(
        predict_each(model, sources, threshold=threshold, segments=segments, batch_size=batch_size, device=device)
    )


@torch.no_grad()  # not inference_mode, whose results may not be changed in place
def predict_each(
    model: Model | str | Path,
    sources: Sequence[Any],
    *,
    threshold: float | None = None,
    segments: Method = "published",
    batch_size: int = 1,
    device: str = "auto",
) -> Iterator[Result]:
    """`predict` for many images, one result after the other: nothing but the present batch is held in memory."""
    check_options(threshold, batch_size, segments)
    net = load(model) if isinstance(model, (str, Path)) else model
    where = device_for(model, device)
    with evaluation_mode(net.to(where)):
        for first in range(0, len(sources), batch_size):
            batch = sources[first : first + batch_size]
            pixels = [to_image(source) for source in batch]
            if isinstance(net, Detector):
                yield from _detect(net, batch, pixels, where, threshold, segments)
            else:
                yield from _classify(net, batch, pixels, where)


def device_for(model: nn.Module | str | Path, name: str) -> torch.device:
    """The device by its name. `auto` leaves a model of the caller's where it is, and is else the best there is."""
    parameter = None if isinstance(model, (str, Path)) else next(model.parameters(), None)
    return choose_device(name) if parameter is None or name != "auto" else parameter.device


def _detect(
    net: Detector,
    sources: Sequence[Any],
    pixels: Sequence[Tensor],
    device: torch.device,
    threshold: float | None,
    segments: Method,
) -> Iterator[Detections | Segmentation]:
    resize = EvaluationResize(net.card.short_side, net.card.max_size)
    samples = [resize(Sample(image)) for image in pixels]
    batch = ImageBatch.from_images([sample.image for sample in samples]).to(device).normalized()
    least = LEAST_SCORE if threshold is None else threshold
    masks: Sequence[Tensor | None] = [None] * len(pixels)
    if isinstance(net, DETR) and net.config.masks:
        output = net(batch, masks=False)
        padded = batch.pixels.shape[-2], batch.pixels.shape[-1]
        sizes = [Sizes(padded, size, _size(image)) for size, image in zip(batch.sizes, pixels, strict=True)]
        if net.card.panoptic:
            yield from _segment(net, output, sources, pixels, sizes, threshold, segments)
            return
        masks = _masks_above(net, output, sizes, least)
    else:
        output = net(batch)
    found = postprocess(output, [_size(image) for image in pixels], softmax=not net.config.sigmoid)
    for source, image, (scores, labels, boxes), own in zip(sources, pixels, found, masks, strict=True):
        path = _path(source)
        sure = scores > least
        yield Detections(
            scores=scores[sure],
            labels=labels[sure],
            boxes=boxes[sure],
            categories=net.card.categories,
            path=path,
            size=_size(image),
            image=None if path else image,
            masks=own,
        )


def _masks_above(net: DETR, output: DetectionOutput, sizes: Sequence[Sizes], least: float) -> list[Tensor]:
    """Of each image the masks of what has a higher score than `least`, in the order of `postprocess`."""
    chosen = score_queries(output, softmax=not net.config.sigmoid)
    chosen = chosen.where(chosen.scores > least)
    logits = net.masks(output, chosen.image, chosen.query)
    return [instance_masks(logits[chosen.of(number)[0]], size) for number, size in enumerate(sizes)]


def _segment(
    net: DETR,
    output: DetectionOutput,
    sources: Sequence[Any],
    pixels: Sequence[Tensor],
    sizes: Sequence[Sizes],
    threshold: float | None,
    method: Method,
) -> Iterator[Segmentation]:
    chosen = choose_queries(output, softmax=not net.config.sigmoid, threshold=threshold)
    logits = net.masks(output, chosen.image, chosen.query)
    for number, (source, image, size) in enumerate(zip(sources, pixels, sizes, strict=True)):
        rows, labels, scores = chosen.of(number)
        path = _path(source)
        found = panoptic_segments(scores, labels, logits[rows], size, net.card.categories, method)
        yield Segmentation(found, path=path, image=None if path else image)


def _classify(
    net: Classifier, sources: Sequence[Any], pixels: Sequence[Tensor], device: torch.device
) -> Iterator[Classification]:
    resize = Evaluation(net.card.short_side, net.card.crop_pct)
    images = [resize(ClassSample(image, label=0)).image for image in pixels]
    batch = ImageBatch.from_images(images).to(device).normalized()
    for source, image, probabilities in zip(sources, pixels, classify(net(batch.pixels)), strict=True):
        path = _path(source)
        yield Classification(
            probabilities, net.card.categories, path=path, size=_size(image), image=None if path else image
        )


def _path(source: Any) -> str | None:
    return str(source) if isinstance(source, (str, Path)) else None


def _size(image: Tensor) -> tuple[int, int]:
    return image.shape[-2], image.shape[-1]


def check_options(threshold: float | None, batch_size: int, segments: str) -> None:
    """Raises ConfigError for numbers out of range (C03) and an unknown way of making segments (C02)."""
    if segments not in get_args(Method):
        raise unknown_name("value of segments", str(segments), get_args(Method), code="C02")
    if not 0 <= (threshold or 0) <= 1 or batch_size < 1:
        what = f"threshold={threshold} and batch_size={batch_size}, expected 0 to 1 and at least 1"
        raise ConfigError(what, code="C03")
