"""What the training loop is told about a detector: data, loss and score."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from regard.data.batches.detection import DetectionBatch, collate
from regard.data.coco.panoptic import PanopticDataset
from regard.data.transforms.detection import EvaluationResize, Transform
from regard.evaluation.detection import DetectorEvaluation, ObjectDataset, evaluate_detector
from regard.evaluation.detection_pictures import draw_batch
from regard.losses import SetCriterion
from regard.models.detr import DETR
from regard.training.data_loader import Augmented, EndlessBatches, raising, training_loader
from regard.training.distributed import Processes


class DetectionTask:
    """What the training loop is told about learning to detect.

    Args:
        train: data to learn from.
        val: data to judge by, with the categories of `train`.
        augmentation: of the training images.
        resize: of the validation images.
        criterion: the loss.
        softmax: whether the model scores classes by softmax.
        batch_size: images of a step in each process.
        workers, seed: of the data loader.
        processes: this process among all.
        pictures: folder for pictures of the first batch and of evaluations, or None.
    """

    def __init__(
        self,
        train: ObjectDataset,
        val: ObjectDataset,
        *,
        augmentation: Transform,
        resize: EvaluationResize,
        criterion: SetCriterion,
        softmax: bool,
        batch_size: int,
        workers: int,
        seed: int,
        processes: Processes,
        pictures: Path | None = None,
    ) -> None:
        self.score = score_of(val)
        self.masks = train.masks
        self.data = Augmented(train, augmentation, seed)
        self.val = val
        self.categories = train.categories
        self.resize = resize
        self.criterion = criterion
        self.softmax = softmax
        self.batch_size = batch_size
        self.workers = workers
        self.seed = seed
        self.processes = processes
        self.pictures = pictures
        self.batches_per_epoch = EndlessBatches(len(train), batch_size, seed, processes).batches_per_epoch
        self.best_evaluation: DetectorEvaluation | None = None  # of this process's lifetime

    def batches(self, start: int) -> Iterator[DetectionBatch]:
        """Batches without end; the first of a run is drawn to `pictures/train_batch.jpg`."""
        order = EndlessBatches(len(self.data.dataset), self.batch_size, self.seed, self.processes, start)
        loader = training_loader(self.data, order, collate, self.workers, self.processes.device)
        batches = raising(loader)
        if start == 0 and self.pictures is not None:
            first = next(batches)
            picture = draw_batch(first.images, first.targets, self.categories)
            picture.save(self.pictures / "train_batch.jpg", quality=90)
            return itertools.chain([first], batches)
        return batches

    def loss(self, model: nn.Module, batch: DetectionBatch) -> tuple[Tensor, Mapping[str, Tensor]]:
        output = model(batch.images.to(self.processes.device).normalized(), batch.targets)
        detector = model.module if isinstance(model, DistributedDataParallel) else model
        masks = None
        if self.masks:
            assert isinstance(detector, DETR)
            masks = partial(detector.masks, output)
        losses = self.criterion(output, batch.targets, masks=masks)
        return self.criterion.total(losses), losses

    def describe(self, batch: DetectionBatch) -> str:
        return ", ".join(sample.path for sample in batch.samples)

    def evaluate(self, model: nn.Module, step: int) -> dict[str, float]:
        folder = self.pictures if self.processes.is_main else None
        evaluation = evaluate_detector(
            model,
            self.val,
            resize=self.resize,
            softmax=self.softmax,
            criterion=self.criterion,
            categories=self.categories,
            batch_size=self.batch_size,
            workers=self.workers,
            processes=self.processes,
            picture=folder / f"predictions_step_{step}.jpg" if folder else None,
        )
        score = evaluation.scores.stats[self.score] or 0.0
        if self.best_evaluation is None or score > (self.best_evaluation.scores.stats[self.score] or 0.0):
            self.best_evaluation = evaluation
        stats = {name: value for name, value in evaluation.scores.stats.items() if value is not None}
        return {**evaluation.losses, **stats}


def score_of(dataset: ObjectDataset) -> str:
    """The score that is to grow: PQ, the AP of masks or that of boxes, by what the data have to tell."""
    if not dataset.masks:
        return "AP"
    return "PQ" if isinstance(dataset, PanopticDataset) else "mask_AP"
