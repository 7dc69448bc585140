"""`regard.predict`: images in; detections, segments or classes out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard, get_args

import torch
from torch import Tensor

from regard.config import unknown_name
from regard.data.image_folders import list_images
from regard.data.images import to_image
from regard.data.samples import ClassSample, Sample
from regard.data.transforms.classification import Evaluation
from regard.data.transforms.detection import EvaluationResize
from regard.errors import ConfigError, DataError
from regard.models.build import Detector, Model
from regard.models.classifiers import Classifier
from regard.models.detr import DETR
from regard.models.evaluation_mode import evaluation_mode
from regard.results.classification import Classification, class_probabilities
from regard.results.detections import Detections
from regard.results.postprocess import (
    ImageSizes,
    SegmentMethod,
    boxes_in_pixels,
    instance_masks,
    panoptic_segments,
    score_queries,
    segment_queries,
    segment_threshold,
)
from regard.results.segmentation import Segmentation
from regard.structures.image_batch import ImageBatch
from regard.weights.load import load_on

Prediction = Detections | Segmentation | Classification


def predict(
    model: Model | str | Path,
    images: Any,
    *,
    threshold: float | None = None,
    segments: SegmentMethod = "published",
    batch_size: int = 1,
    device: str = "auto",
) -> Prediction | list[Prediction]:
    """Detect objects in images, cut them into segments, or classify them.

    Args:
        model: a detector or classifier, or what `regard.load` takes.
        images: a path, a PIL image, an array (H, W, 3) uint8 or float 0..1, a tensor (3, H, W) uint8 or float 0..1, a
            folder, or a list of all but folders. Arrays and tensors are RGB.
        threshold: minimum score of detections or segments, 0..1; if None 0.5 for detections, and for segments 0.85
            as published (0.3 if scores are sigmoids).
        segments: how a panoptic model's masks become segments: `published` as in the authors' code, or `clean`, at
            full resolution and with stuff in one piece (see `regard.results.postprocess.panoptic_segments`).
        batch_size: images per forward pass. Padding changes a detector's numbers slightly; a batch of 1 has none.
        device: `cpu`, `cuda`, ...; `auto` leaves a model where it is and takes the best device for one that is
            loaded.

    Returns:
        One result for one image, a list for a list or a folder: `Detections` (with masks if the model has them),
        `Segmentation` from a panoptic model, or `Classification`.

    Raises:
        ConfigError: `threshold` or `batch_size` is out of range (C03), or `segments` is unknown (C02).
        DataError: an image cannot be read; the message names it.
    """
    if isinstance(images, (list, tuple)):
        sources = list(images)
    elif isinstance(images, (str, Path)) and Path(images).is_dir():
        sources = list(list_images(images))
    else:
        check_options(threshold, batch_size, segments)
        return next(predict_each(model, [images], threshold=threshold, segments=segments, device=device))
    return list(
        predict_each(model, sources, threshold=threshold, segments=segments, batch_size=batch_size, device=device)
    )


@torch.no_grad()  # not inference_mode, whose results may not be changed in place
def predict_each(
    model: Model | str | Path,
    sources: Sequence[Any],
    *,
    threshold: float | None = None,
    segments: SegmentMethod = "published",
    batch_size: int = 1,
    device: str = "auto",
    keep_pixels: bool = False,
    on_error: Callable[[DataError], None] | None = None,
) -> Iterator[Prediction]:
    """Yield the results of `predict` one after the other, with one batch in memory at a time.

    Args:
        keep_pixels: results hold the pixels of image files too, so that drawing them does not decode again.
        on_error: called with the error of each image that cannot be read; the image is skipped. None raises it.
    """
    check_options(threshold, batch_size, segments)
    net, place = load_on(model, device)
    minimum = default_threshold(net) if threshold is None else threshold
    with evaluation_mode(net):
        for first in range(0, len(sources), batch_size):
            images = list(_read(net, sources[first : first + batch_size], keep_pixels, on_error))
            if not images:
                continue
            batch = ImageBatch.from_images([image.resized for image in images]).to(place).normalized()
            if not isinstance(net, Detector):
                yield from _classify(net, images, batch)
            elif makes_segments(net):
                yield from _segment(net, images, batch, minimum, segments)
            else:
                yield from _detect(net, images, batch, minimum)


class _Input(NamedTuple):
    """An image to predict for.

    path: its file, or None. size: (height, width) as decoded. resized: (3, h, w) uint8, as the model sees it.
    kept: (3, H, W) uint8 for the result to draw on, or None if that reads the file again.
    """

    path: str | None
    size: tuple[int, int]
    resized: Tensor
    kept: Tensor | None


def _read(
    net: Model, sources: Sequence[Any], keep_pixels: bool, on_error: Callable[[DataError], None] | None
) -> Iterator[_Input]:
    """Decode and resize images, each once; skip those that cannot be read if `on_error` takes their error."""
    for source in sources:
        try:
            pixels = to_image(source)
        except DataError as error:
            if on_error is None:
                raise
            on_error(error)
            continue
        if isinstance(net, Detector):
            resized = EvaluationResize(net.card.short_side, net.card.max_size)(Sample(pixels)).image
        else:
            resized = Evaluation.of(net.card)(ClassSample(pixels, label=0)).image
        path = str(source) if isinstance(source, (str, Path)) else None
        size = pixels.shape[-2], pixels.shape[-1]
        yield _Input(path, size, resized, pixels if keep_pixels or path is None else None)


def _detect(net: Detector, images: Sequence[_Input], batch: ImageBatch, threshold: float) -> Iterator[Detections]:
    with_masks = net if isinstance(net, DETR) and net.config.masks else None
    output = net(batch) if with_masks is None else with_masks(batch, masks=False)
    queries = score_queries(output, softmax=not net.config.sigmoid)
    queries = queries.where(queries.scores > threshold)
    boxes = boxes_in_pixels(output, queries, [image.size for image in images])
    logits = None if with_masks is None else with_masks.masks(output, queries.image, queries.query)
    for number, (image, sizes) in enumerate(zip(images, _sizes(images, batch), strict=True)):
        rows = queries.rows(number)
        yield Detections(
            scores=queries.scores[rows],
            labels=queries.labels[rows],
            boxes=boxes[rows],
            categories=net.card.categories,
            size=image.size,
            masks=None if logits is None else instance_masks(logits[rows], sizes),
            path=image.path,
            image=image.kept,
        )


def _segment(
    net: DETR, images: Sequence[_Input], batch: ImageBatch, threshold: float, method: SegmentMethod
) -> Iterator[Segmentation]:
    output = net(batch, masks=False)
    queries = segment_queries(output, softmax=not net.config.sigmoid, threshold=threshold)
    logits = net.masks(output, queries.image, queries.query)
    for number, (image, sizes) in enumerate(zip(images, _sizes(images, batch), strict=True)):
        rows = queries.rows(number)
        scores, labels = queries.scores[rows], queries.labels[rows]
        found = panoptic_segments(scores, labels, logits[rows], sizes, net.card.categories, method)
        yield Segmentation(found, path=image.path, image=image.kept)


def _classify(net: Classifier, images: Sequence[_Input], batch: ImageBatch) -> Iterator[Classification]:
    for image, probabilities in zip(images, class_probabilities(net(batch.pixels)), strict=True):
        yield Classification(probabilities, net.card.categories, image.size, path=image.path, image=image.kept)


def _sizes(images: Sequence[_Input], batch: ImageBatch) -> list[ImageSizes]:
    padded = batch.pixels.shape[-2], batch.pixels.shape[-1]
    return [ImageSizes(padded, size, image.size) for image, size in zip(images, batch.sizes, strict=True)]


def makes_segments(net: Model) -> TypeGuard[DETR]:
    """Return whether predictions of a model are segments: a detector with masks, trained on panoptic annotations."""
    return isinstance(net, DETR) and net.config.masks and net.card.panoptic


def default_threshold(net: Model) -> float:
    """Return the minimum score, 0..1, of what `predict` reports if it is given no threshold."""
    return segment_threshold(softmax=not net.config.sigmoid) if makes_segments(net) else 0.5


def check_options(threshold: float | None, batch_size: int, segments: str) -> None:
    """Check the options of `predict`.

    Raises:
        ConfigError: a number is out of range (C03), or the way of making segments is unknown (C02).
    """
    if segments not in get_args(SegmentMethod):
        raise unknown_name("value of segments", str(segments), get_args(SegmentMethod), code="C02")
    if not 0 <= (threshold or 0) <= 1 or batch_size < 1:
        what = f"threshold={threshold} and batch_size={batch_size}, expected 0 to 1 and at least 1"
        raise ConfigError(what, code="C03")
