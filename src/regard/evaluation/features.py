"""The features of a classifier, the inputs of its classification layer: how good they are, and how fast it is."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from regard.data.batches.classification import collate
from regard.data.class_images.dataset import ClassificationDataset
from regard.data.transforms.classification import Evaluation
from regard.errors import ConfigError
from regard.evaluation.batches import evaluation_batches
from regard.metrics.features import knn_accuracy, linear_probe_accuracy
from regard.models.classifiers import HEADS, Classifier
from regard.models.evaluation_mode import evaluation_mode
from regard.structures.image_batch import consecutive


def probe(
    net: Classifier,
    train: ClassificationDataset,
    val: ClassificationDataset,
    *,
    device: torch.device,
    batch_size: int = 64,
    workers: int = 2,
    k: int = 20,
) -> dict[str, float]:
    """Measure how well the features of a classifier separate the classes of any data set.

    Args:
        net: on `device`.
        train: the neighbours, and the images that the linear classifier is fitted to.
        val: the images to classify.
        k: number of neighbours.

    Returns:
        `knn_top1` (`knn_accuracy`) and `linear_top1` (`linear_probe_accuracy`), 0..1.

    Raises:
        ConfigError: the model has no linear layer at its end (C09).
    """
    known, queries = (
        image_features(net, split, device=device, batch_size=batch_size, workers=workers).to(device)
        for split in (train, val)
    )
    pairs = known, train.labels.to(device), queries, val.labels.to(device), len(train.categories)
    with torch.autocast(device.type, enabled=False):  # whatever precision the model has
        return {"knn_top1": knn_accuracy(*pairs, k=k), "linear_top1": linear_probe_accuracy(*pairs)}


@torch.inference_mode()
def image_features(
    net: Classifier, dataset: ClassificationDataset, *, device: torch.device, batch_size: int = 64, workers: int = 2
) -> Tensor:
    """Return the input of the classification layer for each image: (N, D) float32 on the CPU, in order.

    For a convolutional network that is the pooled map, for a vision transformer the normalised class token; for a
    distilled one the mean of class and distillation token, as its prediction is the mean of both heads.

    Args:
        net: on `device`; its last linear layers in `fc`, `classifier`, `head` and `head_dist` are those that classify.
        dataset: of either split; its images are not augmented.

    Raises:
        ConfigError: the model has no such layer (C09).
    """
    layers = classification_layers(net)
    transform = Evaluation.of(net.card)
    features = []
    with evaluation_mode(net), _inputs_of(layers) as inputs:
        planned = consecutive(range(len(dataset)), batch_size)
        for batch in evaluation_batches(dataset, transform, collate, planned, workers=workers, device=device):
            inputs.clear()
            net(batch.images.to(device).normalized().pixels)
            features.append(torch.stack(inputs).mean(dim=0).float().cpu())
    return torch.cat(features)


@torch.inference_mode()
def images_per_second(
    model: nn.Module, image_size: int, *, device: torch.device, batch_size: int = 64, rounds: int = 7
) -> float:
    """Measure the speed of a model alone, on square images already on its device, in evaluation mode.

    The result is the median of `rounds` batches after two of warm-up, each synchronised on a GPU.
    """
    images = torch.randn(batch_size, 3, image_size, image_size, device=device)
    seconds = []
    with evaluation_mode(model):
        for _ in range(2 + rounds):
            _synchronize(device)
            start = time.perf_counter()
            model(images)
            _synchronize(device)
            seconds.append(time.perf_counter() - start)
    return batch_size / statistics.median(seconds[2:])


def classification_layers(model: nn.Module) -> list[nn.Linear]:
    """Return the linear layers that compute a model's logits.

    Raises:
        ConfigError: the model has none under a known name (C09).
    """
    parts = [part for name, part in model.named_children() if name in HEADS]
    linear = [[layer for layer in part.modules() if isinstance(layer, nn.Linear)] for part in parts]
    if not linear or not all(linear):
        what = f"{type(model).__name__} has no linear layer {', '.join(HEADS[:-1])} or {HEADS[-1]} at its end"
        raise ConfigError(what, remedy="features are the inputs of such a layer", code="C09")
    return [layers[-1] for layers in linear]


@contextmanager
def _inputs_of(layers: list[nn.Linear]) -> Iterator[list[Tensor]]:
    """Collect the inputs of layers while the block runs."""
    inputs: list[Tensor] = []
    hooks = [layer.register_forward_pre_hook(lambda _, given: inputs.append(given[0])) for layer in layers]
    try:
        yield inputs
    finally:
        for hook in hooks:
            hook.remove()


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
