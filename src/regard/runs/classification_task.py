"""The task of a classifier: what the training loop needs of data, loss and score."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.data.batches.classification import ClassificationBatch, collate
from regard.data.class_images.dataset import ClassificationDataset
from regard.data.transforms.classification import cifar_training, imagenet_training, three_augment
from regard.data.transforms.image import ImagePipeline, RandomFlip
from regard.data.transforms.mixing import Mixing
from regard.distillation.stored_logits import AugmentedWithLogits, StoredLogits
from regard.evaluation.classification import ClassifierEvaluation, evaluate_classifier
from regard.evaluation.classification_pictures import draw_class_batch
from regard.explanations.overview import EXPLAINED, draw_overview
from regard.losses import DistillationLoss
from regard.models.classifiers import Classifier
from regard.recipes.classification import ClassificationRecipe
from regard.structures.outputs import DistilledLogits
from regard.structures.precision import at_least_float32
from regard.structures.spans import span
from regard.training.data_loader import Augmented, InfiniteBatchSampler, raise_errors, training_loader
from regard.training.distributed import Processes


class ClassificationTask:
    """Data, loss and evaluation of a classifier for the training loop (`regard.training.loop.Task`).

    The loss is cross-entropy, of smoothed labels or of the soft labels that Mixup and CutMix make; or, with
    `loss=sigmoid`, binary cross-entropy for each class, where both classes of a mixed image count as present (DeiT
    III). With a teacher it is `DistillationLoss`, for which a model without a distillation token uses its one head
    twice. Without a teacher both heads of a distilled model learn the labels.

    Args:
        settings: the recipe, with the number of classes of the data.
        train: data to train on.
        val: data to evaluate on, with the categories of `train`.
        processes: this process among all of the run.
        pictures: folder for pictures of the first batch and of evaluations; None for none.
        teacher: its stored logits, which need whole images (no Mixup, no CutMix); or a function of normalised, mixed
            pixels (B, 3, H, W) that returns logits (B, C); None if the recipe has no teacher.
    """

    score = "top1"

    def __init__(
        self,
        settings: ClassificationRecipe,
        train: ClassificationDataset,
        val: ClassificationDataset,
        processes: Processes,
        pictures: Path | None = None,
        teacher: Callable[[Tensor], Tensor] | StoredLogits | None = None,
    ) -> None:
        self.settings = settings
        augmentation = augmentation_of(settings)
        self.data = Augmented(train, augmentation, settings.seed)
        self.teacher = None
        self.mixing = mixing_of(settings)
        if isinstance(teacher, StoredLogits):
            assert self.mixing is None
            self.data = AugmentedWithLogits(train, augmentation, settings.seed, teacher)
        else:
            self.teacher = teacher
        self.val = val
        self.categories = train.categories
        self.processes = processes
        self.pictures = pictures
        self.distillation = distillation_of(settings)
        self.batches_per_epoch = self._order(0).batches_per_epoch
        self.best_evaluation: ClassifierEvaluation | None = None  # since this process started
        self.best_step: int | None = None  # of that evaluation

    def batches(self, start: int) -> Iterator[ClassificationBatch]:
        """Yield batches without end; draw the first one of a run to `pictures/train_batch.jpg`."""
        loader = training_loader(self.data, self._order(start), collate, self.settings.workers, self.processes.device)
        batches = (replace(batch, number=number) for number, batch in enumerate(raise_errors(loader), start))
        if start == 0 and self.pictures is not None:
            first = next(batches)
            self._draw(first, self.pictures / "train_batch.jpg")
            return itertools.chain([first], batches)
        return batches

    def _order(self, start: int) -> InfiniteBatchSampler:
        length, settings = len(self.data.dataset), self.settings
        return InfiniteBatchSampler(
            length, settings.batch_size, settings.seed, self.processes, start, settings.repeated_augmentation
        )

    def loss(self, model: nn.Module, batch: ClassificationBatch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return the loss; and, if images are not mixed, the accuracy and `nll` as in an evaluation."""
        device = self.processes.device
        pixels = batch.images.to(device).normalized().pixels
        labels = batch.labels.to(device, non_blocking=True)
        targets = labels
        if self.mixing is not None:
            pixels, targets = self.mixing(pixels, labels, batch.number, self.processes.rank)
        with span("forward"):
            output = model(pixels)
        with span("loss"):
            return self._loss_of(output, batch, pixels, labels, targets)

    def _loss_of(
        self,
        output: Tensor | DistilledLogits,
        batch: ClassificationBatch,
        pixels: Tensor,
        labels: Tensor,
        targets: Tensor,
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return the loss of logits, and what to report."""
        if self.distillation is not None:
            student = output if isinstance(output, DistilledLogits) else DistilledLogits(output, output)
            return self.distillation(student, self._teacher_logits(batch, pixels), targets), {}
        heads = output if isinstance(output, DistilledLogits) else (output,)
        loss = torch.stack([self._entropy(at_least_float32(logits), targets) for logits in heads]).mean()
        if self.mixing is not None:
            return loss, {}
        mean = torch.stack(heads).detach().float().mean(0)  # of both heads, as in evaluation
        right = (heads[0].detach().argmax(1) == labels).float().mean()
        return loss, {"top1": right, "nll": F.cross_entropy(mean, labels)}

    def _entropy(self, logits: Tensor, targets: Tensor) -> Tensor:
        if self.settings.loss == "sigmoid":
            present = F.one_hot(targets, logits.shape[1]) if targets.ndim == 1 else targets > 0
            return F.binary_cross_entropy_with_logits(logits, present.float())
        smoothing = 0.0 if targets.ndim == 2 else self.settings.label_smoothing  # `mixing` smooths by itself
        return F.cross_entropy(logits, targets, label_smoothing=smoothing)

    def _teacher_logits(self, batch: ClassificationBatch, pixels: Tensor) -> Tensor:
        if batch.teacher_logits is not None:
            return batch.teacher_logits.to(pixels.device, non_blocking=True).float()
        assert self.teacher is not None
        with span("teacher"):
            return self.teacher(pixels)

    def describe(self, batch: ClassificationBatch) -> str:
        """Return the image files of a batch, for error messages."""
        return ", ".join(batch.paths)

    def evaluate(self, model: nn.Module, step: int) -> dict[str, float]:
        """Return loss and scores on the validation images, and keep the best evaluation."""
        folder = self.pictures if self.processes.is_main else None
        if folder:  # files are ordered by class: images from everywhere
            chosen = torch.linspace(0, len(self.val) - 1, min(EXPLAINED, len(self.val))).long().tolist()
            images = [self.val[index].image for index in chosen]
            draw_overview(cast(Classifier, model), images, folder / f"attention_step_{step}.jpg")
        picture = folder / f"predictions_step_{step}.jpg" if folder else None
        evaluation = self.evaluate_images(model, picture)
        best = self.best_evaluation
        if best is None or evaluation.scores.stats["top1"] > best.scores.stats["top1"]:
            self.best_evaluation, self.best_step = evaluation, step
        return {**evaluation.losses, **evaluation.scores.stats}

    def evaluate_images(self, model: nn.Module, picture: Path | None = None) -> ClassifierEvaluation:
        """Evaluate a classifier on the validation images. `picture`: file for some of them, or None."""
        return evaluate_classifier(
            cast(Classifier, model),
            self.val,
            batch_size=self.settings.batch_size,
            workers=self.settings.workers,
            processes=self.processes,
            picture=picture,
        )

    def _draw(self, batch: ClassificationBatch, path: Path) -> None:
        pixels, targets = batch.images.pixels, batch.labels
        if self.mixing is not None:
            mixed, targets = self.mixing(pixels.float(), targets, batch.number, self.processes.rank)
            pixels = mixed.round().to(torch.uint8)
        draw_class_batch(pixels, targets, self.categories).save(path, quality=90)


def augmentation_of(settings: ClassificationRecipe) -> ImagePipeline:
    """Build the training augmentation of a recipe."""
    make = {"imagenet": imagenet_training, "three": three_augment}.get(settings.augmentation, cifar_training)
    pipeline = make(
        settings.model.image_size,
        magnitude=settings.magnitude,
        erasing=settings.erasing,
        color_jitter=settings.color_jitter,
    )
    if settings.augmentation == "shift":
        return ImagePipeline(tuple(step for step in pipeline.steps if not isinstance(step, RandomFlip)))
    return pipeline


def mixing_of(settings: ClassificationRecipe) -> Mixing | None:
    """Build Mixup and CutMix of a recipe; None if it has neither."""
    if not settings.mixup and not settings.cutmix:
        return None
    return Mixing(
        num_classes=settings.model.num_classes,
        mixup_alpha=settings.mixup,
        cutmix_alpha=settings.cutmix,
        label_smoothing=settings.label_smoothing,
        seed=settings.seed,
    )


def distillation_of(settings: ClassificationRecipe) -> DistillationLoss | None:
    """Build the distillation loss of a recipe; None if it has no teacher."""
    if settings.teacher == "none":
        return None
    return DistillationLoss(
        settings.distillation, settings.alpha, settings.tau, settings.reduction, settings.label_smoothing
    )
