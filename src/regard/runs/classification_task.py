"""A classification job: data, model, loss and score joined for the training loop and for evaluation."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.data.batches.classification import ClassificationBatch, collate
from regard.data.class_images.dataset import ClassificationDataset
from regard.data.transforms.classification import Evaluation
from regard.data.transforms.image import ImagePipeline
from regard.data.transforms.mixing import Mixing
from regard.distillation.stored_logits import Answered, StoredAnswers
from regard.evaluation.classification import ClassifierEvaluation, evaluate_classifier
from regard.evaluation.classification_pictures import draw_class_batch
from regard.losses import DistillationLoss
from regard.structures.outputs import DistilledLogits
from regard.training.data_loader import (
    Augmented,
    EndlessBatches,
    raising,
    training_loader,
)
from regard.training.distributed import Processes


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
        augmentation: ImagePipeline,
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
        answers: StoredAnswers | None = None,
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
        if batch.teacher_logits is not None:
            return batch.teacher_logits.to(pixels.device, non_blocking=True).float()
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
