"""A classifier over a data set: logits and scores. `evaluate_on` is the entry of `regard.evaluate`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from regard.data.batches.classification import collate
from regard.data.check import advise
from regard.data.class_images.dataset import ClassificationDataset, open_classification
from regard.data.class_images.imagenet import CLASSES, read_real_labels, real_labels_of
from regard.data.transforms.classification import Evaluation
from regard.errors import ConfigError
from regard.evaluation.batches import evaluation_batches
from regard.evaluation.classification_pictures import MAX_IMAGES, draw_class_predictions
from regard.evaluation.features import classification_layers, images_per_second, probe
from regard.evaluation.options import ClassificationEvaluationOptions
from regard.evaluation.worst_images import WorstPrediction, worst_predictions, write_worst_predictions
from regard.metrics.charts.classification import plot_classification
from regard.metrics.classification import ClassificationScores, evaluate_classification
from regard.metrics.imagenet_subsets import real_accuracy, restrict
from regard.models.classifiers import Classifier
from regard.models.engine import engine_of
from regard.models.evaluation_mode import evaluation_mode
from regard.safe_files import replace_text
from regard.structures.categories import Category, labels_by_name
from regard.structures.image_batch import consecutive
from regard.training.distributed import Processes
from regard.weights.imagenet_names import imagenet_labels, match_imagenet_names


@dataclass(frozen=True)
class ClassifierEvaluation:
    """The result of an evaluation.

    losses: `loss`, the mean cross-entropy of unsmoothed labels.
    dataset: the images that were evaluated.
    worst: those of largest loss.
    """

    scores: ClassificationScores
    losses: dict[str, float]
    dataset: ClassificationDataset
    worst: Sequence[WorstPrediction]

    def write(self, folder: Path, data: str) -> None:
        """Write `metrics.json`, `worst_images.json` and pictures. `data`: the data set, as the user named it."""
        content = {"data": data, "losses": self.losses, **self.scores.to_dict()}
        replace_text(folder / "metrics.json", json.dumps(content))
        plot_classification(self.scores, folder / "pictures")
        names = [score.name for score in self.scores.per_class]
        write_worst_predictions(self.dataset, self.worst, names, folder)


def evaluate_on(
    net: Classifier,
    data: str,
    options: ClassificationEvaluationOptions,
    *,
    device: torch.device,
    batch_size: int,
    workers: int,
) -> ClassifierEvaluation:
    """Evaluate a classifier, which is on `device`, on the validation images of a data set.

    If the data set has only some of the model's classes, only their scores compete (`restrict`), and a note says so.

    Raises:
        ConfigError: options that exclude each other or do not suit this model (C09).
        DataError: the data set has classes that the model does not know (K20), or cannot be read.
    """
    with advise(data):
        dataset = open_classification(data, "val", all_images=options.all_images)
        present = model_labels(net.card.categories, dataset)
        # Both are checked before the work, which may take an hour.
        real = None if options.real is None else _real_labels(net, dataset, options.real)
        train = _open_train(net, data, options) if options.probe else None
        processes = Processes(0, 1, device)
        logits = predict_logits(net, dataset, batch_size=batch_size, workers=workers, processes=processes)
        notes = [issue.what for issue in dataset.report.issues if issue.severity == "note"]
        categories, competing, labels = net.card.categories, logits, torch.tensor(present)[dataset.labels]
        if len(present) < len(categories):
            notes.append(f"the best of the data's {len(present):,} classes counts, of {len(categories):,} known")
            competing, categories = restrict(logits, categories, present)
            labels = dataset.labels
        scores = evaluate_classification(competing, labels, categories)
        stats = dict(scores.stats)
        if train is not None:
            stats |= probe(net, train, dataset, device=device, batch_size=batch_size, workers=workers)
            notes.append(f"features: 20 nearest neighbours, linear probe with l2=1, of {len(train):,} images")
    if options.throughput:
        side = net.card.short_side
        stats["images_per_second"] = images_per_second(engine_of(net), side, device=device, batch_size=batch_size)
        notes.append(f"speed: the model alone, {batch_size} images of {side} x {side} at once, on {_name_of(device)}")
    if real is not None:
        stats["real_top1"] = real_accuracy(logits, real)
        notes.append(f"ReaL: {sum(map(bool, real)):,} of {len(real):,} images have labels")
    scores = replace(scores, stats=stats, notes=tuple(notes))
    return ClassifierEvaluation(scores, {"loss": stats["nll"]}, dataset, worst_predictions(competing, labels))


@torch.inference_mode()
def evaluate_classifier(
    net: Classifier,
    dataset: ClassificationDataset,
    *,
    batch_size: int,
    workers: int,
    processes: Processes,
    picture: Path | None = None,
) -> ClassifierEvaluation:
    """Run a classifier over a data set and score it. Several processes share the images; all return the same result.

    Classes of the data set are matched to those of the model by name.

    Args:
        net: on the device of `processes`; its card gives categories and image size.
        picture: file for some images with their predictions.
    """
    categories = net.card.categories
    label_of = torch.tensor(labels_by_name(categories, dataset.categories, dataset.report.at()))
    logits = predict_logits(net, dataset, batch_size=batch_size, workers=workers, processes=processes)
    labels = label_of[dataset.labels]
    scores = evaluate_classification(logits, labels, categories)
    if picture is not None:
        # Files are ordered by class: take images from everywhere, the same in every evaluation.
        chosen = torch.linspace(0, len(dataset) - 1, min(MAX_IMAGES, len(dataset))).long()
        images = [dataset[i].image for i in chosen.tolist()]
        draw_class_predictions(images, labels[chosen], logits[chosen], categories).save(picture, quality=90)
    return ClassifierEvaluation(scores, {"loss": scores.stats["nll"]}, dataset, worst_predictions(logits, labels))


@torch.inference_mode()
def predict_logits(
    net: Classifier, dataset: ClassificationDataset, *, batch_size: int, workers: int, processes: Processes
) -> Tensor:
    """Return the logits of a classifier for every image of a data set: (N, C) float32 on the CPU, in every process."""
    plan = consecutive(range(len(dataset)), batch_size)  # of one process: several share its batches
    transform = Evaluation.of(net.card)
    planned, device = plan[processes.rank :: processes.world_size], processes.device
    batches = evaluation_batches(dataset, transform, collate, planned, workers=workers, device=device)
    num_classes = len(net.card.categories)
    net = engine_of(net)
    with evaluation_mode(net):
        parts = [net(batch.images.to(device).normalized().pixels).float().cpu() for batch in batches]
    own = torch.cat(parts) if parts else torch.zeros(0, num_classes)
    logits = torch.empty(len(dataset), num_classes)
    for rank, part in enumerate(processes.gather(own)):
        logits[[index for batch in plan[rank :: processes.world_size] for index in batch]] = part
    return logits


def model_labels(categories: Sequence[Category], dataset: ClassificationDataset) -> list[int]:
    """Return the model's label of every class of a data set.

    Classes are matched by name or, if both sets are ImageNet's, by WordNet id, number or name.

    Raises:
        DataError: the data set has classes that the model does not know (K20).
    """
    known = match_imagenet_names(categories, dataset.categories)
    return labels_by_name(known, dataset.categories, dataset.report.at())


def _open_train(net: Classifier, data: str, options: ClassificationEvaluationOptions) -> ClassificationDataset:
    """Open the training images for a probe. Raises ConfigError if the model or the options allow none (C09)."""
    classification_layers(net)
    if options.all_images:
        what = "a probe learns from training images, and all_images makes all of them validation images"
        raise ConfigError(what, remedy="leave probe or all_images out", code="C09")
    return open_classification(data, "train")


def _real_labels(net: Classifier, dataset: ClassificationDataset, path: str | Path) -> list[list[int]]:
    """Return the ReaL labels of each image of a data set, as labels of the model."""
    classes = imagenet_labels(net.card.categories)
    if classes is None or len(classes) != CLASSES:
        what = f"ReaL labels ImageNet's 1000 classes, the model has {len(net.card.categories)} others"
        raise ConfigError(what, where=net.card.name, remedy="leave real out", code="C09")
    label_of = {number: label for label, number in enumerate(classes)}
    paths = [dataset.images.path(index) for index in range(len(dataset))]
    real = real_labels_of(paths, read_real_labels(path), path)
    return [[label_of[number] for number in labels] for labels in real]


def _name_of(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads" if device.type == "cpu" else device.type
