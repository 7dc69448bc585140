"""The task of a detector: what the training loop needs of data, loss and score."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import cast

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from regard.data.batches.detection import DetectionBatch, collate
from regard.data.coco.panoptic import PanopticDataset
from regard.data.transforms.detection import (
    EvaluationResize,
    Pipeline,
    RandomFlip,
    jitter_augmentation,
    paper_augmentation,
    small_augmentation,
)
from regard.evaluation.detection import LOSSES, DetectorEvaluation, ObjectDataset, criterion_of, evaluate_detector
from regard.evaluation.detection_pictures import draw_batch
from regard.evaluation.segments import thresholds_to_try
from regard.explanations.overview import EXPLAINED, draw_overview
from regard.losses import AnchorCriterion
from regard.models.build import Detector
from regard.models.detr import DETR
from regard.recipes import DetectorRecipe
from regard.structures.spans import span
from regard.training.data_loader import Augmented, InfiniteBatchSampler, raise_errors, training_loader
from regard.training.distributed import Processes


class DetectionTask:
    """Data, loss and evaluation of a detector for the training loop (`regard.training.loop.Task`).

    Args:
        settings: the recipe, with the number of classes of the data.
        train: data to train on.
        val: data to evaluate on, with the categories of `train`.
        processes: this process among all of the run.
        pictures: folder for pictures of the first batch and of evaluations; None for none.
    """

    def __init__(
        self,
        settings: DetectorRecipe,
        train: ObjectDataset,
        val: ObjectDataset,
        processes: Processes,
        pictures: Path | None = None,
    ) -> None:
        self.settings = settings
        self.data = Augmented(train, augmentation_of(settings), settings.seed)
        self.val = val
        self.categories = train.categories
        self.masks = train.masks
        self.together = (
            True  # whether losses are divided by the objects of all processes, which then wait for each other
        )
        self.processes = processes
        self.pictures = pictures
        self.criterion = criterion_of(settings)
        self.score = score_of(val)
        self.batches_per_epoch = self._order(0).batches_per_epoch
        self.best_evaluation: DetectorEvaluation | None = None  # since this process started
        self.best_step: int | None = None  # of that evaluation

    def batches(self, start: int) -> Iterator[DetectionBatch]:
        """Yield batches without end; draw the first one of a run to `pictures/train_batch.jpg`."""
        loader = training_loader(self.data, self._order(start), collate, self.settings.workers, self.processes.device)
        batches = raise_errors(loader)
        if start == 0 and self.pictures is not None:
            first = next(batches)
            picture = draw_batch(first.images, first.targets, self.categories)
            picture.save(self.pictures / "train_batch.jpg", quality=90)
            return itertools.chain([first], batches)
        return batches

    def _order(self, start: int) -> InfiniteBatchSampler:
        length = len(self.data.dataset)
        return InfiniteBatchSampler(length, self.settings.batch_size, self.settings.seed, self.processes, start)

    def loss(self, model: nn.Module, batch: DetectionBatch) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return the weighted sum of all losses, and each of them.

        `loss_last_layer` is the sum for the last decoder layer, as `loss` of an evaluation. A detector without such
        layers has none.
        """
        with span("forward"):
            output = model(batch.images.to(self.processes.device).normalized(), batch.targets)
        masks = None
        if self.masks:
            detector = model.module if isinstance(model, DistributedDataParallel) else model
            masks = partial(cast(DETR, detector).masks, output)
        with span("loss"):
            losses = self.criterion(output, batch.targets, masks=masks, together=self.together)
            if isinstance(self.criterion, AnchorCriterion):
                return self.criterion.total(losses), losses
            last = self.criterion.total({name: losses[name] for name in LOSSES if name in losses})
            return self.criterion.total(losses), {**losses, "loss_last_layer": last}

    def describe(self, batch: DetectionBatch) -> str:
        """Return the image files of a batch, for error messages."""
        return ", ".join(sample.path for sample in batch.samples)

    def evaluate(self, model: nn.Module, step: int) -> dict[str, float]:
        """Return losses and scores on the validation images, and keep the best evaluation."""
        folder = self.pictures if self.processes.is_main else None
        if folder:
            images = [self.val.image(index) for index in range(min(EXPLAINED, len(self.val)))]
            draw_overview(cast(Detector, model), images, folder / f"attention_step_{step}.jpg")
        evaluation = self.evaluate_images(model)
        if folder:
            evaluation.comparison().save(folder / f"predictions_step_{step}.jpg", quality=90)
        score = evaluation.scores.stats[self.score] or 0.0
        if self.best_evaluation is None or score > (self.best_evaluation.scores.stats[self.score] or 0.0):
            self.best_evaluation, self.best_step = evaluation, step
        stats = {name: value for name, value in evaluation.scores.stats.items() if value is not None}
        return {**evaluation.losses, **stats}

    def evaluate_images(self, model: nn.Module) -> DetectorEvaluation:
        """Evaluate a detector on the validation images; segments at each threshold that a training tries."""
        return evaluate_detector(
            cast(Detector, model),
            self.val,
            self.criterion,
            batch_size=self.settings.batch_size,
            workers=self.settings.workers,
            processes=self.processes,
            segment_thresholds=thresholds_to_try(self.settings.model, len(self.val)),
        )


def augmentation_of(settings: DetectorRecipe) -> Pipeline:
    """Build the training augmentation of a recipe."""
    if settings.augmentation == "flip":
        return Pipeline((RandomFlip(), EvaluationResize(settings.short_side, settings.max_size)))
    if settings.augmentation == "jitter":
        return jitter_augmentation(settings.max_size)
    if settings.augmentation == "small":
        return small_augmentation(settings.short_side)
    return paper_augmentation(settings.short_side, settings.max_size)


def score_of(dataset: ObjectDataset) -> str:
    """Return the name of the score that selects the best checkpoint: PQ, mask AP or box AP, by the annotations."""
    if not dataset.masks:
        return "AP"
    return "PQ" if isinstance(dataset, PanopticDataset) else "mask_AP"
