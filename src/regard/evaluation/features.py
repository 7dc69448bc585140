"""A classifier without its classifying layer: features of images, how good they are, and how fast it is."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from regard.data.check import advise
from regard.data.class_images.dataset import ClassificationDataset, open_classification
from regard.data.paths import data_text
from regard.data.transforms.classification import Evaluation
from regard.errors import ConfigError
from regard.evaluation.batches import evaluation_batches
from regard.metrics.features import knn_accuracy, linear_probe_accuracy
from regard.models.build import Detector
from regard.models.classifiers import HEADS, Classifier
from regard.models.evaluation_mode import evaluation_mode
from regard.weights.load import load


@torch.inference_mode()
def image_features(
    model: nn.Module,
    dataset: ClassificationDataset,
    resize: Evaluation,
    *,
    device: torch.device,
    batch_size: int = 64,
    workers: int = 2,
) -> Tensor:
    """What the classifying layer of a model gets to see of each image: (N, D) float32 on the CPU, in order.

    Of a convolutional network that is the pooled map, of a vision transformer the normalised class token; of a
    distilled one the mean of the class and the distillation token, as both heads count the same in its answer.

    Args:
        model: on `device`; its classifying layers are the last linear ones in `fc`, `classifier`, `head`, `head_dist`.
        dataset: its images are not augmented, be they for training or not.

    Raises:
        ConfigError: the model has no such layer.
    """
    heads = classifying_layers(model)
    found = []
    with evaluation_mode(model), _inputs_of(heads) as inputs:
        for batch in evaluation_batches(dataset, resize, batch_size, workers):
            inputs.clear()
            model(batch.images.to(device).normalized().pixels)
            found.append(torch.stack(inputs).mean(dim=0).float().cpu())
    return torch.cat(found)


def probe(
    model: Classifier | str | Path,
    data: str | Path,
    *,
    device: torch.device,
    batch_size: int = 64,
    workers: int = 2,
    k: int = 20,
) -> dict[str, float]:
    """How well the features of a classifier tell the classes of a data set apart, whatever classes it was trained on.

    Args:
        model: a classifier, or whatever `regard.load` takes.
        data: as for `regard.train`, with both splits: the training images are the neighbours, and the linear classifier
            is fitted to them.
        k: neighbours.

    Returns:
        `knn_top1` (`knn_accuracy`) and `linear_top1` (`linear_probe_accuracy`), 0..1, on the validation images;
        `train_images` and `val_images`, how many there were.

    Raises:
        DataError: a split is not there.
        ConfigError: a detector, or a classifier without a linear layer at its end.
    """
    net = load(model) if isinstance(model, (str, Path)) else model
    if isinstance(net, Detector):
        raise ConfigError("a detector has no features of whole images", where=net.card.name, code="C09")
    net.to(device)
    resize = Evaluation(net.card.short_side, net.card.crop_pct)
    text = data_text(data)
    with advise(text):
        train, val = (open_classification(text, split) for split in ("train", "val"))
        features = [
            image_features(net, split, resize, device=device, batch_size=batch_size, workers=workers).to(device)
            for split in (train, val)
        ]
    known, asked = ((x, split.labels.to(device)) for x, split in zip(features, (train, val), strict=True))
    classes = len(train.categories)
    return {
        "knn_top1": knn_accuracy(*known, *asked, classes, k=k),
        "linear_top1": linear_probe_accuracy(*known, *asked, classes),
        "train_images": len(train),
        "val_images": len(val),
    }


@torch.inference_mode()
def images_per_second(
    model: nn.Module, image_size: int, *, device: torch.device, batch_size: int = 64, rounds: int = 7
) -> float:
    """Speed of a model alone, on square images that lie on its device already; in evaluation mode, in float32.

    The median of `rounds` batches after two that do not count. With CUDA each is waited for.
    """
    images = torch.randn(batch_size, 3, image_size, image_size, device=device)
    seconds = []
    with evaluation_mode(model):
        for _ in range(2 + rounds):
            _wait_for(device)
            start = time.perf_counter()
            model(images)
            _wait_for(device)
            seconds.append(time.perf_counter() - start)
    return batch_size / statistics.median(seconds[2:])


def classifying_layers(model: nn.Module) -> list[nn.Linear]:
    """The linear layers that give a model's answers.

    Raises:
        ConfigError: there is none under a name that we know.
    """
    parts = [part for name, part in model.named_children() if name in HEADS]
    linear = [[layer for layer in part.modules() if isinstance(layer, nn.Linear)] for part in parts]
    if not linear or not all(linear):
        what = f"{type(model).__name__} has no linear layer {', '.join(HEADS[:-1])} or {HEADS[-1]} at its end"
        raise ConfigError(what, remedy="features are what such a layer gets", code="C09")
    return [layers[-1] for layers in linear]


@contextmanager
def _inputs_of(layers: list[nn.Linear]) -> Iterator[list[Tensor]]:
    """What the layers are called with, as long as the block lasts."""
    inputs: list[Tensor] = []
    hooks = [layer.register_forward_pre_hook(lambda _, given: inputs.append(given[0])) for layer in layers]
    try:
        yield inputs
    finally:
        for hook in hooks:
            hook.remove()


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
