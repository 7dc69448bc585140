"""`regard.predict`: images in, detections out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from regard.batches import ImageBatch
from regard.data.images import list_images, to_image
from regard.data.samples import Sample
from regard.data.transforms import EvaluationResize
from regard.loading import load
from regard.results import Detections, postprocess
from regard.training.distributed import choose_device


def predict(
    model: nn.Module | str | Path,
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
    model: nn.Module | str | Path,
    sources: Sequence[Any],
    *,
    threshold: float = 0.5,
    batch_size: int = 1,
    device: str = "auto",
) -> Iterator[Detections]:
    """`predict` for many images, one result after the other: nothing but the present batch is held in memory."""
    net = model if isinstance(model, nn.Module) else load(model)
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
