"""Judging a classifier: accuracy on data that may have some of its classes, and what else can be said of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from regard.data.check import advise
from regard.data.class_images.dataset import ClassificationDataset, open_classification
from regard.data.class_images.imagenet import CLASSES, read_real_labels, real_labels_of
from regard.data.transforms.classification import Evaluation
from regard.errors import ConfigError
from regard.evaluation.classification import ClassifierEvaluation, logits_of
from regard.evaluation.features import classifying_layers, images_per_second, probe
from regard.metrics.classification import evaluate_classification
from regard.metrics.imagenet_subsets import real_accuracy, restrict
from regard.models.classifiers import Classifier
from regard.structures.categories import Category, labels_by_name
from regard.training.distributed import Processes
from regard.weights.imagenet_names import imagenet_labels, named_alike


@dataclass(frozen=True)
class Questions:
    """What to find out beside the accuracy; see `regard.evaluate`."""

    probe: bool = False
    throughput: bool = False
    real: str | Path | None = None
    all_images: bool = False

    def __bool__(self) -> bool:
        return self != Questions()


def judge(
    net: Classifier, data: str, questions: Questions, *, device: torch.device, batch_size: int, workers: int
) -> ClassifierEvaluation:
    """Judge a classifier on the validation images of a data set.

    Where the data have some of the model's classes only, the best of these counts (`restrict`), and a note says so.

    Raises:
        ConfigError: questions that do not go together, or with this model.
        DataError: classes that the model does not know (K20), or data that are not what they should be.
    """
    with advise(data):
        dataset = open_classification(data, "val", all_images=questions.all_images)
        categories = net.card.categories
        present = model_labels(categories, dataset)
        # Before the work, which may take an hour.
        real = None if questions.real is None else _real_labels(net, dataset, questions.real)
        if questions.probe:
            _check_probe(net, data, questions)
        logits = logits_of(
            net.to(device), dataset, Evaluation(net.card.short_side, net.card.crop_pct), len(categories),
            batch_size=batch_size, workers=workers, processes=Processes(0, 1, device),
        )  # fmt: skip
    notes = [issue.what for issue in dataset.report.issues if issue.severity == "fix"]
    labels = torch.tensor(present)[dataset.labels]
    chosen = logits
    if len(present) < len(categories):
        chosen, categories = restrict(logits, categories, present)
        labels = dataset.labels
        notes.append(f"the best of the data's {len(present):,} classes counts, of {len(net.card.categories):,} known")
    scores = evaluate_classification(chosen, labels, categories)
    more, told = _answers(net, data, questions, device, batch_size, workers)
    if real is not None:
        more["real_top1"] = real_accuracy(logits, real)
        told.append(f"ReaL: {sum(map(bool, real)):,} of {len(real):,} images have labels")
    loss = {"loss": scores.stats["nll"]}
    return ClassifierEvaluation(replace(scores, stats={**scores.stats, **more}, notes=(*notes, *told)), loss)


def model_labels(categories: Sequence[Category], dataset: ClassificationDataset) -> list[int]:
    """The model's label of every class of a data set.

    Found by its name or, where both are ImageNet's, by its WordNet id, its number or its name, whichever each has.

    Raises:
        DataError: the data set has classes that the model does not know (K20).
    """
    known = named_alike(categories, dataset.categories)
    return labels_by_name(known, dataset.categories, str(dataset.report.path))


def _real_labels(net: Classifier, dataset: ClassificationDataset, path: str | Path) -> list[list[int]]:
    """For each image of a data set the labels of ReaL, as the model counts its classes."""
    classes = imagenet_labels(net.card.categories)
    if classes is None or len(classes) != CLASSES:
        what = f"ReaL is for ImageNet's 1000 classes, the model has {len(net.card.categories)} others"
        raise ConfigError(what, where=net.card.name, remedy="leave real out", code="C09")
    label_of = {number: label for label, number in enumerate(classes)}
    paths = [dataset.images.path(index) for index in range(len(dataset))]
    found = real_labels_of(paths, read_real_labels(path), path)
    return [[label_of[number] for number in labels] for labels in found]


def _check_probe(net: Classifier, data: str, questions: Questions) -> None:
    classifying_layers(net)
    if questions.all_images:
        what = "a probe learns from training images, and all images are for validation"
        raise ConfigError(what, remedy="leave probe or all_images out", code="C09")
    open_classification(data, "train")


def _answers(
    net: Classifier, data: str, questions: Questions, device: torch.device, batch_size: int, workers: int
) -> tuple[dict[str, float], list[str]]:
    """What was asked of features and speed, and what to know of it."""
    more, notes = {}, []
    if questions.probe:
        found = probe(net, data, device=device, batch_size=batch_size, workers=workers)
        more.update({name: found[name] for name in ("knn_top1", "linear_top1")})
        notes.append(f"features: 20 nearest neighbours, linear probe with l2=1, of {found['train_images']:,} images")
    if questions.throughput:
        side = net.card.short_side
        more["images_per_second"] = images_per_second(net, side, device=device, batch_size=batch_size)
        notes.append(f"speed: the model alone, {batch_size} images of {side} x {side} at once, on {_name_of(device)}")
    return more, notes


def _name_of(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads" if device.type == "cpu" else device.type
