"""A classification job: data, model, loss and score joined for the training loop and for evaluation."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from regard.batches import ImageBatch
from regard.categories import Category, labels_by_name
from regard.classification_pictures import MOST_IMAGES, draw_class_batch, draw_class_predictions
from regard.data.classification import ClassificationDataset, ClassSample
from regard.data.classification_transforms import ClassPipeline, Evaluation
from regard.data.mixing import Mixing
from regard.evaluation.classification import ClassificationScores, evaluate_classification
from regard.evaluation.classification_plots import plot_classification
from regard.folders import replace_text
from regard.losses import DistillationLoss
from regard.models.evaluation_mode import evaluation_mode
from regard.outputs import DistilledLogits
from regard.training.batches import (
    Augmented,
    Caught,
    EndlessBatches,
    collate_caught,
    outlive_signals,
    raising,
    training_loader,
    worker_count,
)
from regard.training.distributed import Processes


@dataclass(frozen=True)
class ClassificationBatch:
    """Samples of one step.

    images: uint8, all of one size. labels: (B,) int64. paths: where the images come from.
    number: of the batch in the run, from 0: mixing depends on it.
    answers: (B, C) logits of a teacher that were stored, or None.
    """

    images: ImageBatch
    labels: Tensor
    paths: tuple[str, ...]
    number: int = 0
    answers: Tensor | None = None

    def pin_memory(self) -> ClassificationBatch:
        answers = None if self.answers is None else self.answers.pin_memory()
        return replace(self, images=self.images.pin_memory(), labels=self.labels.pin_memory(), answers=answers)


def collate(samples: Sequence[ClassSample]) -> ClassificationBatch:
    """Put images of one size side by side."""
    images = ImageBatch.from_images([sample.image for sample in samples])
    labels = torch.tensor([sample.label for sample in samples])
    known = [sample.answer for sample in samples if sample.answer is not None]
    answers = torch.stack(known) if known else None
    return ClassificationBatch(images, labels, tuple(sample.path for sample in samples), answers=answers)


class Answers(Protocol):
    """Stored logits (C,) of a teacher by (view, image)."""

    views: int

    def __getitem__(self, place: tuple[int, int]) -> Tensor: ...


class Answered(Augmented):
    """Samples in those views for which a teacher's answers are stored, with the answers."""

    def __init__(self, dataset: ClassificationDataset, transform: ClassPipeline, seed: int, answers: Answers) -> None:
        super().__init__(dataset, transform, seed)
        self.answers = answers

    def __getitem__(self, place: tuple[int, int]) -> ClassSample:
        view, index = place[0] % self.answers.views, place[1]
        return replace(super().__getitem__((view, index)), answer=self.answers[view, index])


class ClassificationTask:
    """What the training loop is told about learning to classify.

    The loss is cross-entropy: with smoothed labels, or with the soft labels of `mixing`, which smooths them itself.
    With a teacher it is that of `distillation`, for which a model without a distillation token uses its one head twice.
    Without one, both heads of a distilled model learn the labels.

    Args:
        train: data to learn from.
        val: data to judge by, with the categories of `train`.
        augmentation: of the training images; all of one size after it.
        resize: of the validation images.
        mixing: Mixup and CutMix of whole batches, or None.
        label_smoothing: share of a label that goes to all classes alike, 0..1; not used with `mixing`.
        batch_size: images of a step in each process.
        workers, seed: of the data loader.
        processes: this process among all.
        sigmoid: learn a yes or no for every class of its own (binary cross-entropy; DeiT III), where all classes of a
            mixed image are yes; in place of one choice among all.
        repeats: views of an image in an epoch, see `EndlessBatches`.
        distillation: the loss of a student.
        teacher: normalised, mixed pixels (B, 3, H, W) -> logits (B, C).
        answers: of a teacher, in its place; they are for whole images, so `mixing` has to be None.
        pictures: folder for pictures of the first batch and of evaluations, or None.
    """

    score = "top1"

    def __init__(
        self,
        train: ClassificationDataset,
        val: ClassificationDataset,
        *,
        augmentation: ClassPipeline,
        resize: Evaluation,
        mixing: Mixing | None,
        label_smoothing: float,
        batch_size: int,
        workers: int,
        seed: int,
        processes: Processes,
        sigmoid: bool = False,
        repeats: int = 1,
        distillation: DistillationLoss | None = None,
        teacher: Callable[[Tensor], Tensor] | None = None,
        answers: Answers | None = None,
        pictures: Path | None = None,
    ) -> None:
        assert answers is None or mixing is None
        self.data = (
            Augmented(train, augmentation, seed) if answers is None else Answered(train, augmentation, seed, answers)
        )
        self.val = val
        self.categories = train.categories
        self.resize = resize
        self.mixing = mixing
        self.label_smoothing = label_smoothing
        self.sigmoid = sigmoid
        self.batch_size = batch_size
        self.workers = workers
        self.seed = seed
        self.processes = processes
        self.distillation = distillation
        self.teacher = teacher
        self.pictures = pictures
        self.repeats = repeats
        self.batches_per_epoch = self._order(0).batches_per_epoch
        self.best_evaluation: ClassifierEvaluation | None = None  # of this process's lifetime

    def batches(self, start: int) -> Iterator[ClassificationBatch]:
        """Batches without end; the first of a run is drawn to `pictures/train_batch.jpg`."""
        loader = training_loader(self.data, self._order(start), collate, self.workers, self.processes.device)
        batches = (replace(batch, number=number) for number, batch in enumerate(raising(loader), start))
        if start == 0 and self.pictures is not None:
            first = next(batches)
            self._draw(first, self.pictures / "train_batch.jpg")
            return itertools.chain([first], batches)
        return batches

    def _order(self, start: int) -> EndlessBatches:
        length = len(self.data.dataset)
        return EndlessBatches(length, self.batch_size, self.seed, self.processes, start, self.repeats)

    def loss(self, model: nn.Module, batch: ClassificationBatch) -> tuple[Tensor, Mapping[str, Tensor]]:
        device = self.processes.device
        pixels = batch.images.to(device).normalized().pixels
        labels = batch.labels.to(device, non_blocking=True)
        targets = labels
        if self.mixing is not None:
            pixels, targets = self.mixing(pixels, labels, batch.number, self.processes.rank)
        output = model(pixels)
        if self.distillation is not None:
            student = output if isinstance(output, DistilledLogits) else DistilledLogits(output, output)
            return self.distillation(student, self._answers(batch, pixels), targets), {}
        heads = output if isinstance(output, DistilledLogits) else (output,)
        loss = torch.stack([self._entropy(logits.float(), targets) for logits in heads]).mean()
        if self.mixing is not None:
            return loss, {}
        return loss, {"top1": (heads[0].detach().argmax(1) == labels).float().mean()}

    def _entropy(self, logits: Tensor, targets: Tensor) -> Tensor:
        if self.sigmoid:
            present = F.one_hot(targets, logits.shape[1]) if targets.ndim == 1 else targets > 0
            return F.binary_cross_entropy_with_logits(logits, present.float())
        return F.cross_entropy(logits, targets, label_smoothing=0.0 if targets.ndim == 2 else self.label_smoothing)

    def _answers(self, batch: ClassificationBatch, pixels: Tensor) -> Tensor:
        if batch.answers is not None:
            return batch.answers.to(pixels.device, non_blocking=True).float()
        assert self.teacher is not None
        return self.teacher(pixels)

    def describe(self, batch: ClassificationBatch) -> str:
        return ", ".join(batch.paths)

    def evaluate(self, model: nn.Module, step: int) -> dict[str, float]:
        folder = self.pictures if self.processes.is_main else None
        evaluation = evaluate_classifier(
            model,
            self.val,
            resize=self.resize,
            categories=self.categories,
            batch_size=self.batch_size,
            workers=self.workers,
            processes=self.processes,
            picture=folder / f"predictions_step_{step}.jpg" if folder else None,
        )
        best = self.best_evaluation
        if best is None or evaluation.scores.stats["top1"] > best.scores.stats["top1"]:
            self.best_evaluation = evaluation
        return {**evaluation.losses, **evaluation.scores.stats}

    def _draw(self, batch: ClassificationBatch, path: Path) -> None:
        pixels, targets = batch.images.pixels, batch.labels
        if self.mixing is not None:
            mixed, targets = self.mixing(pixels.float(), targets, batch.number, self.processes.rank)
            pixels = mixed.round().to(torch.uint8)
        draw_class_batch(pixels, targets, self.categories).save(path, quality=90)


@dataclass(frozen=True)
class ClassifierEvaluation:
    """Scores, and the mean loss (of unsmoothed labels)."""

    scores: ClassificationScores
    losses: dict[str, float]

    def write(self, folder: Path, data: str) -> None:
        """`metrics.json` and pictures. `data`: what was judged on."""
        content = {"data": data, "losses": self.losses, **self.scores.to_dict()}
        replace_text(folder / "metrics.json", json.dumps(content))
        plot_classification(self.scores, folder / "pictures")


@torch.inference_mode()
def evaluate_classifier(
    model: nn.Module,
    dataset: ClassificationDataset,
    *,
    resize: Evaluation,
    categories: Sequence[Category],
    batch_size: int,
    workers: int,
    processes: Processes,
    picture: Path | None = None,
) -> ClassifierEvaluation:
    """Run a classifier over a data set and score it. Several processes share the images; all get the result.

    Args:
        categories: the model's; those of the data set are found among them by their names.
        picture: where to draw some images with what they are taken for.
    """
    label_of = torch.tensor(labels_by_name(categories, dataset.categories, str(dataset.report.path)))
    logits = logits_of(
        model, dataset, resize, len(categories), batch_size=batch_size, workers=workers, processes=processes
    )
    labels = label_of[dataset.labels]
    scores = evaluate_classification(logits, labels, categories)
    if picture is not None:
        # Class after class in the files: some from everywhere, the same in every evaluation.
        chosen = torch.linspace(0, len(dataset) - 1, min(MOST_IMAGES, len(dataset))).long()
        images = [dataset[i].image for i in chosen.tolist()]
        draw_class_predictions(images, labels[chosen], logits[chosen], categories).save(picture, quality=90)
    return ClassifierEvaluation(scores, {"loss": scores.stats["nll"]})


@torch.inference_mode()
def logits_of(
    model: nn.Module,
    dataset: ClassificationDataset,
    resize: Evaluation,
    num_classes: int,
    *,
    batch_size: int,
    workers: int,
    processes: Processes,
) -> Tensor:
    """What a classifier, in evaluation mode, answers for every image of a data set: (N, C) float32 on the CPU."""
    mine = range(processes.rank, len(dataset), processes.world_size)
    batches = evaluation_batches(dataset, resize, batch_size, workers, mine)
    with evaluation_mode(model):
        parts = [model(batch.images.to(processes.device).normalized().pixels).float().cpu() for batch in batches]
    found = torch.cat(parts) if parts else torch.zeros(0, num_classes)
    logits = torch.empty(len(dataset), num_classes)
    for rank, part in enumerate(processes.gather(found)):
        logits[rank :: processes.world_size] = part
    return logits


def evaluation_batches(
    dataset: ClassificationDataset, resize: Evaluation, batch_size: int, workers: int, indices: range | None = None
) -> Iterator[ClassificationBatch]:
    """Images at the size for evaluation, in order; all, or those of `indices`."""
    chosen = range(len(dataset)) if indices is None else indices
    loader = DataLoader(
        Caught(_Resized(dataset, resize, chosen)),
        batch_size,
        collate_fn=partial(collate_caught, collate),
        num_workers=worker_count(workers),
        worker_init_fn=outlive_signals,
    )
    return raising(loader)


class _Resized(Dataset):
    """Some of a data set's images at the size for evaluation."""

    def __init__(self, dataset: ClassificationDataset, resize: Evaluation, indices: range) -> None:
        self.dataset = dataset
        self.resize = resize
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> ClassSample:
        return self.resize(self.dataset[self.indices[i]])
