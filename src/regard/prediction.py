"""`regard.predict`: images in, detections out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from regard.batches import ImageBatch
from regard.data.images import list_images, to_image
from regard.data.samples import Sample
from regard.data.transforms import EvaluationResize
from regard.errors import ConfigError, DataError, escape
from regard.loading import load
from regard.models.catalog import Detector
from regard.results import Detections, postprocess
from regard.training.distributed import choose_device


def predict(
    model: Detector | str | Path,
    images: Any,
    *,
    threshold: float = 0.5,
    batch_size: int = 1,
    device: str = "auto",
) -> Detections | list[Detections]:
    """Detect objects in images.

    Args:
        model: a detector, or whatever `regard.load` takes.
        images: a path, a PIL image, an array (H, W, 3) uint8 or float 0..1, a tensor (3, H, W) uint8 or float 0..1, a
            folder, or a list of these. Arrays and tensors are RGB.
        threshold: least score, 0..1.
        batch_size: images at once. Padding beside a larger image changes a detector's numbers a little; 1 does not pad.
        device: `auto`, `cpu`, `cuda`, ...

    Returns:
        One result for one image, a list for a list or a folder.

    Raises:
        DataError: an image that cannot be read; the line names it.
    """
    if isinstance(images, (list, tuple)):
        sources = list(images)
    elif isinstance(images, (str, Path)) and Path(images).is_dir():
        sources = list(list_images(images))
    else:
        return next(predict_each(model, [images], threshold=threshold, device=device))
    return list(predict_each(model, sources, threshold=threshold, batch_size=batch_size, device=device))


@torch.inference_mode()
def predict_each(
    model: Detector | str | Path,
    sources: Sequence[Any],
    *,
    threshold: float = 0.5,
    batch_size: int = 1,
    device: str = "auto",
) -> Iterator[Detections]:
    """`predict` for many images, one result after the other: nothing but the present batch is held in memory."""
    net = model if isinstance(model, Detector) else load(model)
    where = choose_device(device)
    net = net.to(where).eval()
    resize = EvaluationResize(net.card.short_side, net.card.max_size)
    for first in range(0, len(sources), batch_size):
        group = sources[first : first + batch_size]
        pixels = [to_image(source) for source in group]
        samples = [resize(Sample(image)) for image in pixels]
        batch = ImageBatch.from_images([sample.image for sample in samples]).to(where).normalized()
        sizes = [(image.shape[-2], image.shape[-1]) for image in pixels]
        found = postprocess(net(batch), sizes, softmax=not net.config.sigmoid)
        for source, image, size, (scores, labels, boxes) in zip(group, pixels, sizes, found, strict=True):
            is_file = isinstance(source, (str, Path))
            yield Detections(
                scores=scores.cpu(),
                labels=labels.cpu(),
                boxes=boxes.cpu(),
                categories=net.card.categories,
                path=str(source) if is_file else None,
                size=size,
                image=None if is_file else image,
            ).above(threshold)


def predict_files(
    model: Detector | str | Path,
    paths: Sequence[Path],
    *,
    output: Path | None = None,
    json_file: Path | None = None,
    threshold: float = 0.5,
    batch_size: int = 1,
    device: str = "auto",
) -> Iterator[str]:
    """Predict for image files and folders of them; gives a line of text for each.

    An unreadable image does not stop the others: it is reported, and raised once all others are done.

    Args:
        output: folder for pictures with boxes drawn, named like the images, `.jpg`.
        json_file: file for all detections, in COCO's result format, with the image's file name beside its number.
    """
    files = [file for path in paths for file in list_images(path)]
    if not files:
        raise ConfigError("no images given", remedy="regard predict CHECKPOINT IMAGE|FOLDER ...", code="C09")
    if not 0 <= threshold <= 1 or batch_size < 1:
        raise ConfigError(f"threshold={threshold}, batch_size={batch_size}, expected 0..1 and at least 1", code="C03")
    net = model if isinstance(model, Detector) else load(model)
    for folder in (output, json_file.parent if json_file else None):
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
    names = picture_names(files)
    rows: list[dict[str, Any]] = []
    bad: list[DataError] = []
    for first in range(0, len(files), batch_size):
        group = files[first : first + batch_size]
        for number, result in enumerate(_readable(net, group, bad, threshold, batch_size, device), start=first + 1):
            if output is not None:
                result.save(output / names[Path(result.path or "")])
            rows += [{**row, "file_name": result.path} for row in result.to_coco(number)]
            yield escape(f"{result.path}: {result.summary()}")
    if json_file is not None:
        json_file.write_text(json.dumps(rows))
    for error in bad[:-1]:
        yield error.line
    if bad:
        raise bad[-1]


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
    net: Detector, group: Sequence[Path], bad: list[DataError], threshold: float, batch_size: int, device: str
) -> list[Detections]:
    """Results of those files of a batch that can be read; the errors of the others are added to `bad`."""
    try:
        return list(predict_each(net, group, threshold=threshold, batch_size=batch_size, device=device))
    except DataError as error:
        if len(group) == 1:
            bad.append(error)
            return []
    return [r for file in group for r in _readable(net, [file], bad, threshold, 1, device)]
