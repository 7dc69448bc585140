"""`regard.predict`: images in; detections, segments or classes out."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from PIL import Image
from torch import Tensor
from torchvision.ops import clip_boxes_to_image

from regard.data.samples import ClassSample, Sample
from regard.data.sources import expand, is_many, is_streamed, is_video, read_source
from regard.data.transforms.classification import Evaluation
from regard.data.transforms.detection import EvaluationResize
from regard.data.videos import read_frames
from regard.drawing.boxes import ShowLabels
from regard.errors import ConfigError, DataError, unknown_name
from regard.models.build import Detector, MaskedDetector, Model, predicts_masks
from regard.models.classifiers import Classifier
from regard.models.engine import engine_of
from regard.models.evaluation_mode import evaluation_mode
from regard.prediction.options import Precision, PredictionOptions
from regard.prediction.thresholds import default_threshold, makes_segments
from regard.prediction.tiles import ViewedBoxes, merge, views_of
from regard.results.classification import Classification, class_probabilities
from regard.results.detections import Detections
from regard.results.postprocess import (
    ImageSizes,
    ScoredQueries,
    SegmentMethod,
    boxes_in_pixels,
    instance_masks,
    panoptic_segments,
    score_queries,
    segment_method,
    segment_queries,
)
from regard.results.result import Rejected
from regard.results.segmentation import Segmentation
from regard.structures.image_batch import ImageBatch, of_equal_size
from regard.structures.precision import check_precision, inference_precision
from regard.structures.transfer import download, upload
from regard.weights.load import load_on

Prediction = Detections | Segmentation | Classification
MIN_TILE = 16  # pixels


def predict(
    model: Model | str | Path,
    images: Any,
    *,
    threshold: float | None = None,
    segments: SegmentMethod | Literal["auto"] = "auto",
    multi_label: bool = False,
    tile_size: int | None = None,
    tile_overlap: float = 0.2,
    flip: bool = False,
    precision: Precision = "auto",
    batch_size: int = 1,
    device: str = "auto",
    allow_urls: bool = True,
) -> Prediction | list[Prediction] | Iterator[Prediction]:
    """Detect objects in images, cut them into segments, or classify them.

    Args:
        model: a detector or classifier, or what `regard.load` takes.
        images: a path, an http or https address, a PIL image, an array (H, W, 3) uint8 or float 0..1, a tensor
            (3, H, W) uint8 or float 0..1, `-` for the standard input, or a list of these. Or a folder, a pattern such
            as `photos/**/*.jpg`, a video file or `camera:0`. Arrays and tensors are RGB.
        threshold: minimum score of detections or segments, 0..1. If None, for detections the best of the run as
            `regard.evaluate` found it, else 0.5, and for segments 0.85 as published (0.3 if scores are sigmoids).
        segments: how a panoptic model's masks become segments: `published` as in the authors' code, `clean`, at full
            resolution and with stuff in one piece, or `scored`, without objects that are found twice (see
            `regard.results.postprocess.panoptic_segments`); `auto`: `scored` if scores are sigmoids, else `published`.
        multi_label: sigmoid scores may give an object several labels. False: each query has its best one.
        tile_size: side in pixels of square tiles in which a detector looks too; about the size of its training images.
        tile_overlap: part of a tile's side that the next tile shares, 0..0.9; objects should fit into it.
        flip: a detector looks at mirror images too. Boxes are merged as with tiles, see `regard.prediction.tiles`.
        precision: `fp32`, `tf32` (GPUs), `bf16`, `fp16` (mixed precision), `auto`: tf32 on CUDA, else fp32.
        batch_size: images or tiles per forward pass. Only those of one size share a pass: results do not depend on it.
        device: `cpu`, `cuda`, ...; `auto` leaves a model where it is and takes the best for one that is loaded.
        allow_urls: False refuses addresses: a server should not fetch what its users name.

    Returns:
        One result for an image; a list for a list, folder or pattern; an iterator over the frames of a video or camera.
        `Detections` (clipped to the image, with masks if the model has them), `Segmentation` or `Classification`.

    Raises:
        ConfigError: a number is out of range (C03) or of the wrong type (C02), a word is unknown (C02), or the model
            (C09) or the device (C10) cannot take an option.
        DataError: an image cannot be read; the message names it.
        MachineError: a video needs the package av, which is not installed, or there is no such camera.
    """
    options = PredictionOptions(
        threshold=threshold, segments=segments, multi_label=multi_label, tile_size=tile_size,
        tile_overlap=tile_overlap, flip=flip, precision=precision,
    )  # fmt: skip
    check_options(options, batch_size)
    each = partial(predict_each, model, options=options, batch_size=batch_size, device=device, allow_urls=allow_urls)
    if isinstance(images, (list, tuple)):
        return list(each(images))
    if isinstance(images, (str, Path)):
        if is_video(images):
            return each(frame.image for frame in read_frames(images))
        if is_many(images):
            return list(each(expand(images)))
    return next(each([images]))


@torch.no_grad()  # not inference_mode, whose results may not be changed in place
def predict_each(
    model: Model | str | Path,
    sources: Iterable[Any],
    *,
    options: PredictionOptions | None = None,
    batch_size: int = 1,
    device: str = "auto",
    keep_pixels: bool = False,
    allow_urls: bool = True,
    on_error: Callable[[DataError], None] | None = None,
) -> Iterator[Prediction]:
    """Yield the results of `predict` one after the other, with one batch in memory at a time.

    Args:
        sources: single images; they are asked for one batch at a time.
        keep_pixels: results hold the pixels of image files too, so that drawing them does not decode again.
        on_error: called with the error of each image that cannot be read; the image is skipped. None raises it.
    """
    options = options or PredictionOptions()
    check_options(options, batch_size)
    ready = make_ready(model, options, device=device, keep_pixels=keep_pixels, allow_urls=allow_urls)
    waiting = iter(sources)
    with evaluation_mode(ready.net):
        while batch_of := list(itertools.islice(waiting, batch_size)):
            images = []
            for source in batch_of:
                try:
                    images.append(ready.read(source))
                except DataError as error:
                    if on_error is None:
                        raise
                    on_error(error)
            yield from ready.results(images, batch_size)


def make_ready(
    model: Model | str | Path, options: PredictionOptions, *, device: str, keep_pixels: bool, allow_urls: bool = True
) -> ReadyModel:
    """Return a model on its device, with its engine and its threshold; arguments and errors as for `predict_each`."""
    net, place = load_on(model, device)
    check_model(net, options)
    # Half precision is that of the model, by autocast around each batch: an engine has one precision throughout.
    net = net if options.precision in ("bf16", "fp16") else engine_of(net)
    minimum = default_threshold(net) if options.threshold is None else options.threshold
    return ReadyModel(net, place, options, minimum, keep_pixels, allow_urls)


@dataclass(frozen=True)
class ReadyModel:
    """A model that is ready to predict. Threads may share it, inside one `evaluation_mode` of `net`.

    keep_pixels: results hold the pixels of image files too. threshold: minimum score, 0..1.
    """

    net: Model
    device: torch.device
    options: PredictionOptions
    threshold: float
    keep_pixels: bool
    allow_urls: bool

    @property
    def takes_views(self) -> bool:
        """Whether the model looks at several parts of an image, such as tiles."""
        return self.options.tile_size is not None or self.options.flip

    def input_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the (height, width) at which the model sees an image of `size`, in pixels."""
        if isinstance(self.net, Detector):
            return EvaluationResize(self.net.card.short_side, self.net.card.max_size).size_of(*size)
        return self.net.card.short_side, self.net.card.short_side

    def read(self, source: Any) -> Prepared:
        """Decode and resize an image. Raises DataError if it cannot be read."""
        pixels = read_source(source, allow_urls=self.allow_urls)
        again = isinstance(source, (str, Path)) and not is_streamed(source)
        return Prepared(
            path=str(source) if isinstance(source, (str, Path)) else None,
            size=(pixels.shape[-2], pixels.shape[-1]),
            resized=_resized(self.net, pixels),
            kept=pixels if self.keep_pixels or not again else None,
            pixels=pixels if self.takes_views else None,
        )

    def results(self, images: Sequence[Prepared], batch_size: int) -> Iterator[Prediction]:
        """Yield a result for each image, in order. batch_size: views of an image per forward pass."""
        if self.takes_views:
            net = self.net
            assert isinstance(net, Detector)
            for image in images:
                yield _detect_views(net, image, self.options, self.threshold, batch_size, self.device)
            return
        some = partial(_predict_batch, self.net, options=self.options, threshold=self.threshold, device=self.device)
        yield from _in_order(images, some)


def _in_order(
    images: Sequence[Prepared], predict_some: Callable[[Sequence[Prepared]], Sequence[Prediction]]
) -> Iterator[Prediction]:
    """Yield a result for each image in order, from batches of images of one size: padding would change results."""
    results: dict[int, Prediction] = {}
    sizes = [(image.resized.shape[-2], image.resized.shape[-1]) for image in images]
    for numbers in of_equal_size(range(len(images)), sizes, len(images)):
        results |= zip(numbers, predict_some([images[number] for number in numbers]), strict=True)
    yield from (results[number] for number in range(len(images)))


def _predict_batch(
    net: Model, images: Sequence[Prepared], options: PredictionOptions, threshold: float, device: torch.device
) -> Sequence[Prediction]:
    """Return the results of images that have one size as the model sees them."""
    batch = ImageBatch.from_images([image.resized for image in images]).to(device).normalized()
    with inference_precision(options.precision, device):  # not of what runs between the results
        if not isinstance(net, Detector):
            return list(_classify(net, images, batch))
        if makes_segments(net):
            return list(_segment(net, images, batch, threshold, options.segments))
        return list(_detect(net, images, batch, threshold, multi_label=options.multi_label))


class Prepared(NamedTuple):
    """An image to predict for.

    path: its file, or None. size: (height, width) as decoded. resized: (3, h, w) uint8, as the model sees it.
    kept: (3, H, W) uint8 for the result to draw on, or None if that reads the file again.
    pixels: (3, H, W) uint8, or None if only `resized` is needed.
    """

    path: str | None
    size: tuple[int, int]
    resized: Tensor
    kept: Tensor | None
    pixels: Tensor | None


def _resized(net: Model, pixels: Tensor) -> Tensor:
    """Return an image (3, h, w) as the model sees it, for pixels (3, H, W)."""
    if isinstance(net, Detector):
        return EvaluationResize(net.card.short_side, net.card.max_size)(Sample(pixels)).image
    return Evaluation.of(net.card)(ClassSample(pixels, label=0)).image


def _detect(
    net: Detector, images: Sequence[Prepared], batch: ImageBatch, threshold: float, *, multi_label: bool
) -> Iterator[Detections]:
    with_masks = net if predicts_masks(net) else None
    output = net(batch) if with_masks is None else with_masks(batch, masks=False)
    everything = score_queries(output, softmax=not net.config.sigmoid, multi_label=multi_label)
    everything, boxes = everything.on_host(boxes_in_pixels(output, everything, [image.size for image in images]))
    kept, device = everything.scores > threshold, output.logits.device
    queries, boxes, logits = everything.where(kept), boxes[kept], None
    if with_masks is not None:
        logits = with_masks.masks(output, upload(queries.image, device), upload(queries.query, device))
    for number, (image, sizes) in enumerate(zip(images, _sizes(images, batch), strict=True)):
        rows = queries.rows(number)
        yield Detections(
            scores=queries.scores[rows],
            labels=queries.labels[rows],
            boxes=clip_boxes_to_image(boxes[rows], image.size),
            categories=net.card.categories,
            size=image.size,
            masks=None if logits is None else instance_masks(logits[upload(rows, device)], sizes),
            queries=queries.query[rows],
            rejected=_rejected(net, everything, number, threshold),
            path=image.path,
            image=image.kept,
        )


def _detect_views(
    net: Detector, image: Prepared, options: PredictionOptions, threshold: float, batch_size: int, device: torch.device
) -> Detections:
    """Detect objects in an image and its tiles, and in their mirror images."""
    assert image.pixels is not None
    views = views_of(image.size, options.tile_size, options.tile_overlap, flip=options.flip)
    found: list[ViewedBoxes] = []
    rejected: list[Rejected] = []
    for _, same_size in itertools.groupby(enumerate(views), key=lambda pair: pair[1].size):
        while some := list(itertools.islice(same_size, batch_size)):
            resized = [_resized(net, view.cut_out(image.pixels)) for _, view in some]
            with inference_precision(options.precision, device):
                output = net(ImageBatch.from_images(resized).to(device).normalized())
            everything = score_queries(output, softmax=not net.config.sigmoid, multi_label=options.multi_label)
            everything, boxes = everything.on_host(boxes_in_pixels(output, everything, [view.size for _, view in some]))
            kept = everything.scores > threshold
            queries, boxes = everything.where(kept), boxes[kept]
            for row, (number, view) in enumerate(some):
                mine = queries.rows(row)
                columns = view.in_image(boxes[mine]), queries.scores[mine], queries.labels[mine]
                found.append(ViewedBoxes(*columns, torch.full((len(mine),), number)))
                best = _rejected(net, everything, row, threshold)
                rejected += [] if best is None else [best]
    merged = merge(ViewedBoxes(*(torch.cat(column) for column in zip(*found, strict=True))), views, image.size)
    return Detections(
        scores=merged.scores,
        labels=merged.labels,
        boxes=merged.boxes,
        categories=net.card.categories,
        size=image.size,
        rejected=max(rejected) if len(rejected) == len(views) else None,
        path=image.path,
        image=image.kept,
    )


def _segment(
    net: MaskedDetector,
    images: Sequence[Prepared],
    batch: ImageBatch,
    threshold: float,
    method: SegmentMethod | Literal["auto"],
) -> Iterator[Segmentation]:
    output = net(batch, masks=False)
    softmax = not net.config.sigmoid
    method = segment_method(method, softmax=softmax)
    queries = segment_queries(output, softmax=softmax, threshold=threshold)
    everything = score_queries(output, softmax=softmax, multi_label=False)
    everything, _ = everything.on_host(everything.scores)
    logits = net.masks(output, queries.image, queries.query)
    for number, (image, sizes) in enumerate(zip(images, _sizes(images, batch), strict=True)):
        rows = queries.rows(number)
        scores, labels = queries.scores[rows], queries.labels[rows]
        found = panoptic_segments(scores, labels, logits[rows], sizes, net.card.categories, method)
        found = replace(found, queries=queries.query[rows].cpu()[found.queries])  # positions among the rows so far
        rejected = _rejected(net, everything, number, threshold)
        yield Segmentation(found, rejected, path=image.path, image=image.kept)


def _rejected(net: Detector, queries: ScoredQueries, image: int, threshold: float) -> Rejected | None:
    """Return the best query of an image of the batch if it does not reach the threshold."""
    rows = queries.rows(image)
    if not len(rows):
        return None
    best = rows[queries.scores[rows].argmax()]
    score = queries.scores[best].item()
    name = net.card.categories[int(queries.labels[best])].name
    return Rejected(score, name, threshold) if score <= threshold else None


def _classify(net: Classifier, images: Sequence[Prepared], batch: ImageBatch) -> Iterator[Classification]:
    (everything,) = download(class_probabilities(net(batch.pixels)))
    for image, probabilities in zip(images, everything, strict=True):
        yield Classification(probabilities, net.card.categories, image.size, path=image.path, image=image.kept)


def _sizes(images: Sequence[Prepared], batch: ImageBatch) -> list[ImageSizes]:
    padded = batch.pixels.shape[-2], batch.pixels.shape[-1]
    return [ImageSizes(padded, size, image.size) for image, size in zip(images, batch.sizes, strict=True)]


def draw(result: Prediction, options: PredictionOptions) -> Image.Image:
    """Draw a result on its image, as the options say."""
    if isinstance(result, Classification):
        return result.plot(options.top)
    return result.plot(labels=options.labels) if isinstance(result, Detections) else result.plot()


def check_options(options: PredictionOptions, batch_size: int | None) -> None:
    """Check the options of `predict`.

    Raises:
        ConfigError: a number is out of range (C03), is none, or a word is unknown (C02).
    """
    check_precision(options.precision)
    for name, value, known in (
        ("segments", options.segments, ("auto", *get_args(SegmentMethod))),
        ("labels", options.labels, get_args(ShowLabels)),
    ):
        if value not in known:
            raise unknown_name(f"value of {name}", str(value), known, code="C02")
    ranges: dict[str, tuple[float | None, float, float]] = {
        "threshold": (options.threshold, 0, 1),
        "batch_size": (batch_size, 1, math.inf),
        "tile_size": (options.tile_size, MIN_TILE, math.inf),
        "tile_overlap": (options.tile_overlap, 0, 0.9),
        "top": (options.top, 1, math.inf),
    }
    for name, (number, least, most) in ranges.items():
        whole = name not in ("threshold", "tile_overlap")
        if number is not None and (isinstance(number, bool) or not isinstance(number, Integral if whole else Real)):
            wanted = "a whole number" if whole else "a number"
            raise ConfigError(f"{name}={number!r:.60}, expected {wanted}", code="C02")
        if number is not None and not least <= number <= most:
            expected = f"at least {least}" if most == math.inf else f"{least} to {most}"
            raise ConfigError(f"{name}={number}, expected {expected}", code="C03")


def check_model(net: Model, options: PredictionOptions) -> None:
    """Check that the model can take the options.

    Raises:
        ConfigError: it cannot (C09).
    """
    asked = [name for name in ("multi_label", "flip") if getattr(options, name)]
    asked += ["tile_size"] if options.tile_size is not None else []
    if not asked:
        return
    name = net.card.name
    if not isinstance(net, Detector) or makes_segments(net):
        raise ConfigError(f"{asked[0]} is for detectors of boxes", where=name, remedy="leave it out", code="C09")
    if options.multi_label and not net.config.sigmoid:
        what = "multi_label is for sigmoid scores: classes of this model exclude each other"
        raise ConfigError(what, where=name, remedy="leave it out", code="C09")
    if predicts_masks(net) and asked != ["multi_label"]:
        what = "tile_size and flip merge boxes, and this model predicts masks too"
        raise ConfigError(what, where=name, remedy="leave them out", code="C09")
