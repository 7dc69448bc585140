"""`regard.predict`: images in, detections or classes out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regard.batches import ImageBatch
from regard.classification_results import TOP, Classification, classify
from regard.data.classification import ClassSample
from regard.data.classification_transforms import evaluation
from regard.data.image_folders import list_images
from regard.data.images import to_image
from regard.data.samples import Sample
from regard.data.transforms import EvaluationResize
from regard.errors import ConfigError, DataError, escape
from regard.folders import make_writable
from regard.loading import load
from regard.models.catalog import Detector, Model
from regard.models.classifiers import Classifier
from regard.results import Detections, postprocess
from regard.training.distributed import choose_device
from regard.training.reports import replace_text

Result = Detections | Classification


def predict(
    model: Model | str | Path,
    images: Any,
    *,
    threshold: float = 0.5,
    batch_size: int = 1,
    device: str = "auto",
) -> Result | list[Result]:
    """Detect objects in images, or classify them.

    Args:
        model: a detector or classifier, or whatever `regard.load` takes.
        images: a path, a PIL image, an array (H, W, 3) uint8 or float 0..1, a tensor (3, H, W) uint8 or float 0..1, a
            folder, or a list of all but folders. Arrays and tensors are RGB.
        threshold: least score of detections, 0..1.
        batch_size: images at once. Padding beside a larger image changes a detector's numbers a little; 1 does not pad.
        device: `cpu`, `cuda`, ...; `auto` leaves a model where it is and takes the best device for one that is
            loaded.

    Returns:
        One result for one image, a list for a list or a folder: `Detections` or `Classification`, by the model.

    Raises:
        ConfigError: `threshold` or `batch_size` is out of range.
        DataError: an image that cannot be read; the line names it.
    """
    _check_numbers(threshold, batch_size)
    if isinstance(images, (list, tuple)):
        sources = list(images)
    elif isinstance(images, (str, Path)) and Path(images).is_dir():
        sources = list(list_images(images))
    else:
        return next(predict_each(model, [images], threshold=threshold, device=device))
    return list(predict_each(model, sources, threshold=threshold, batch_size=batch_size, device=device))


@torch.no_grad()  # not inference_mode, whose results may not be changed in place
def predict_each(
    model: Model | str | Path,
    sources: Sequence[Any],
    *,
    threshold: float = 0.5,
    batch_size: int = 1,
    device: str = "auto",
) -> Iterator[Result]:
    """`predict` for many images, one result after the other: nothing but the present batch is held in memory."""
    net = load(model) if isinstance(model, (str, Path)) else model
    where = device_for(model, device)
    was_training = net.training
    net = net.to(where).eval()
    try:
        for first in range(0, len(sources), batch_size):
            batch = sources[first : first + batch_size]
            pixels = [to_image(source) for source in batch]
            if isinstance(net, Detector):
                yield from _detect(net, batch, pixels, where, threshold)
            else:
                yield from _classify(net, batch, pixels, where)
    finally:
        net.train(was_training)


def device_for(model: Model | str | Path, name: str) -> torch.device:
    """The device by its name. `auto` leaves a model of the caller's where it is, and is else the best there is."""
    parameter = None if isinstance(model, (str, Path)) else next(model.parameters(), None)
    return choose_device(name) if parameter is None or name != "auto" else parameter.device


def _detect(
    net: Detector, sources: Sequence[Any], pixels: Sequence[Tensor], device: torch.device, threshold: float
) -> Iterator[Detections]:
    resize = EvaluationResize(net.card.short_side, net.card.max_size)
    samples = [resize(Sample(image)) for image in pixels]
    batch = ImageBatch.from_images([sample.image for sample in samples]).to(device).normalized()
    sizes = [_size(image) for image in pixels]
    found = postprocess(net(batch), sizes, softmax=not net.config.sigmoid)
    for source, image, (scores, labels, boxes) in zip(sources, pixels, found, strict=True):
        path = _path(source)
        yield Detections(
            scores=scores,
            labels=labels,
            boxes=boxes,
            categories=net.card.categories,
            path=path,
            size=_size(image),
            image=None if path else image,
        ).above(threshold)


def _classify(
    net: Classifier, sources: Sequence[Any], pixels: Sequence[Tensor], device: torch.device
) -> Iterator[Classification]:
    resize = evaluation(net.card.short_side, net.card.crop_ratio)
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


def predict_files(
    model: Model | str | Path,
    paths: Sequence[Path],
    *,
    output: Path | None = None,
    json_file: Path | None = None,
    threshold: float = 0.5,
    top: int = TOP,
    batch_size: int = 1,
    device: str = "auto",
) -> Iterator[str]:
    """Predict for image files and folders of them; gives a line of text for each.

    An unreadable image does not stop the others: it is reported, and raised once all others are done.

    Args:
        output: folder for pictures with what was found drawn, named like the images, `.jpg`.
        json_file: file for all results. Detections are in COCO's result format; `image_id` counts the images from 1,
            and `file_name` stands beside it. Classes are rows `{"file_name", "classes": [{"name", "label", "score"}]}`.
        top: how many classes of a classifier are given.

    Raises:
        ConfigError: what is to be written would replace an image (C11), or a number is out of range.
        DataError: images cannot be read.
    """
    _check_numbers(threshold, batch_size)
    if top < 1:
        raise ConfigError(f"top={top}, expected at least 1", code="C03")
    files = list(dict.fromkeys(file for path in paths for file in list_images(path)))
    if not files:
        raise ConfigError("no images given", remedy="regard predict CHECKPOINT IMAGE|FOLDER ...", code="C09")
    names = picture_names(files)
    numbers = {file: number for number, file in enumerate(files, start=1)}
    _check_targets(files, [output / name for name in names.values()] if output else [], json_file)
    net = load(model) if isinstance(model, (str, Path)) else model
    for folder in (output, json_file.parent if json_file else None):
        if folder is not None:
            make_writable(folder)
    rows: list[dict[str, Any]] = []
    bad: list[DataError] = []
    for first in range(0, len(files), batch_size):
        group = files[first : first + batch_size]
        for result in _readable(net, group, bad, threshold, batch_size, device):
            file = Path(result.path or "")
            picture = None if output is None else output / names[file]
            if isinstance(result, Detections):
                if picture:
                    result.save(picture)
                rows += [{**row, "file_name": result.path} for row in result.to_coco(numbers[file])]
                yield escape(f"{result.path}: {result.summary()}")
            else:
                if picture:
                    result.save(picture, top)
                rows.append({"file_name": result.path, "classes": result.to_dicts(top)})
                yield escape(f"{result.path}: {result.summary(top)}")
    if json_file is not None:
        replace_text(json_file, json.dumps(rows))
    if len(bad) == 1:
        raise bad[0]
    if bad:
        yield from (error.line for error in bad)
        what = f"{len(bad)} of {len(files)} images cannot be used, the first: {bad[0].what}"
        raise DataError(what, where=bad[0].where, remedy=bad[0].remedy, code=bad[0].code)


def picture_names(files: Sequence[Path]) -> dict[Path, str]:
    """A name of its own for the picture of each file: `cat.jpg`, and `cat-2.jpg` for the next one of that name."""
    names: dict[Path, str] = {}
    taken: set[str] = set()
    for file in files:
        number = 1
        name = f"{file.stem}.jpg"
        while name.lower() in taken:
            number += 1
            name = f"{file.stem}-{number}.jpg"
        taken.add(name.lower())
        names[file] = name
    return names


def _readable(
    net: Model, group: Sequence[Path], bad: list[DataError], threshold: float, batch_size: int, device: str
) -> list[Result]:
    """Results of those files of a batch that can be read; the errors of the others are added to `bad`."""
    try:
        return list(predict_each(net, group, threshold=threshold, batch_size=batch_size, device=device))
    except DataError as error:
        if len(group) == 1:
            bad.append(error)
            return []
    return [r for file in group for r in _readable(net, [file], bad, threshold, 1, device)]


def _check_numbers(threshold: float, batch_size: int) -> None:
    if not 0 <= threshold <= 1 or batch_size < 1:
        what = f"threshold={threshold} and batch_size={batch_size}, expected 0 to 1 and at least 1"
        raise ConfigError(what, code="C03")


def _is_result(path: Path) -> bool:
    try:
        rows = json.loads(path.read_text()) if path.is_file() else None  # a pipe would be waited for
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(rows, list) and all(isinstance(row, dict) and "file_name" in row for row in rows)


def _check_targets(files: Sequence[Path], pictures: Sequence[Path], json_file: Path | None) -> None:
    """Nothing of the user's is written over: no image, no neighbour of one, no JSON but an earlier result."""
    images = {file.resolve() for file in files}
    folders = {file.parent for file in images} | {file.parent.resolve() for file in files}
    for target in (*pictures, *([json_file] if json_file else [])):
        place = target.resolve()
        if place in images or (place.parent in folders and target in pictures and place.exists()):
            raise ConfigError("this would replace an image", where=target, remedy="write to another folder", code="C11")
    if json_file is not None and json_file.exists() and not _is_result(json_file):
        what = "this file is no earlier result and would be replaced"
        raise ConfigError(what, where=json_file, remedy="name another file", code="C11")
