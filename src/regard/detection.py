"""A detection job: data, model, loss and score joined for the training loop and for evaluation."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from regard.batches import ImageBatch
from regard.boxes import xyxy_to_cxcywh
from regard.categories import Category, labels_by_name
from regard.data.checks import to_coco
from regard.data.formats import CocoDataset
from regard.data.samples import Sample
from regard.data.transforms import EvaluationResize, Transform
from regard.detection_pictures import draw_batch, draw_comparison
from regard.evaluation.detection import Detections, DetectionScores, evaluate_detections
from regard.evaluation.plots import plot_detections
from regard.losses import SetCriterion
from regard.results import postprocess
from regard.training.batches import (
    Augmented,
    Caught,
    EndlessBatches,
    collate_caught,
    outlive_signals,
    raising,
    training_loader,
)
from regard.training.distributed import Processes
from regard.training.reports import replace_text

PICTURES = 6  # of an evaluation


@dataclass(frozen=True)
class DetectionBatch:
    """Samples of one step: images, targets as the losses want them, and where they come from."""

    images: ImageBatch
    targets: list[dict[str, Tensor]]
    samples: list[Sample]

    def pin_memory(self) -> DetectionBatch:
        return replace(self, images=self.images.pin_memory())


def collate(samples: Sequence[Sample]) -> DetectionBatch:
    """Pad the images and make boxes fractions of each image."""
    images = ImageBatch.from_images([sample.image for sample in samples])
    # What comes later needs only names and sizes: pixels are not sent twice from the worker.
    light = [replace(sample, image=sample.image.new_zeros(3, 0, 0)) for sample in samples]
    return DetectionBatch(images, [target_of(sample) for sample in samples], light)


def target_of(sample: Sample) -> dict[str, Tensor]:
    """`{"labels", "boxes"}` of a sample, boxes cxcywh as fractions 0..1 of its image."""
    height, width = sample.size
    boxes = xyxy_to_cxcywh(sample.boxes) / torch.tensor([width, height, width, height])
    return {"labels": sample.labels, "boxes": boxes}


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

    score = "AP"

    def __init__(
        self,
        train: CocoDataset,
        val: CocoDataset,
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
        losses = self.criterion(output, batch.targets)
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
        ap = evaluation.scores.stats["AP"] or 0.0
        if self.best_evaluation is None or ap > (self.best_evaluation.scores.stats["AP"] or 0.0):
            self.best_evaluation = evaluation
        stats = {name: value for name, value in evaluation.scores.stats.items() if value is not None}
        return {**evaluation.losses, **stats}


@dataclass(frozen=True)
class DetectorEvaluation:
    """Scores, mean losses (per image, without those of single layers), and the detections they come from."""

    scores: DetectionScores
    losses: dict[str, float]
    detections: Detections
    ground_truth: dict[str, Any]

    def write(self, folder: Path, data: str) -> None:
        """`metrics.json` and pictures. `data`: what was judged on."""
        content = {"data": data, "losses": self.losses, **self.scores.to_dict()}
        replace_text(folder / "metrics.json", json.dumps(content, indent=2))
        plot_detections(self.ground_truth, self.detections, folder / "pictures")


@torch.inference_mode()
def evaluate_detector(
    model: nn.Module,
    dataset: CocoDataset,
    *,
    resize: EvaluationResize,
    softmax: bool,
    criterion: SetCriterion,
    categories: Sequence[Category],
    batch_size: int,
    workers: int,
    processes: Processes,
    picture: Path | None = None,
) -> DetectorEvaluation:
    """Run a detector over a data set and score it. Several processes share the images; all get the result.

    Args:
        categories: the model's; those of the data set are found among them by their names.
        picture: where to draw truth beside prediction for the first images.
    """
    label_of = labels_by_name(categories, dataset.categories, str(dataset.annotations.path))
    was_training = model.training
    model.eval()
    mine = range(processes.rank, len(dataset), processes.world_size)
    samples = Caught(_Resized(dataset, resize, mine, label_of))
    loader = DataLoader(
        samples,
        batch_size,
        collate_fn=partial(collate_caught, collate),
        num_workers=workers,
        worker_init_fn=outlive_signals,
    )
    category_of = {label: category.id for label, category in zip(label_of, dataset.categories, strict=True)}
    columns: list[tuple[np.ndarray, ...]] = []
    sums: dict[str, float] = {}
    shown: list[tuple[Tensor, Tensor, Tensor]] = []
    for batch in raising(loader):
        output = model(batch.images.to(processes.device).normalized())
        # Processes may have different numbers of batches.
        for name, value in criterion(output, batch.targets, together=False).items():
            if name in ("loss_ce", "loss_bbox", "loss_giou"):
                sums[name] = sums.get(name, 0.0) + value.item() * len(batch.samples)
        found = postprocess(output, [s.original_size for s in batch.samples], softmax=softmax)
        for sample, (scores, labels, boxes) in zip(batch.samples, found, strict=True):
            columns.append(_columns(sample.image_id, scores, labels, boxes, category_of))
            if picture is not None and len(shown) < PICTURES:
                shown.append((scores.cpu(), labels.cpu(), boxes.cpu()))
    model.train(was_training)
    everything = processes.gather((columns, sums))
    detections = _join([c for part, _ in everything for c in part])
    names = dict.fromkeys(name for _, part in everything for name in part)
    total = {name: sum(part.get(name, 0.0) for _, part in everything) / len(dataset) for name in names}
    losses = {"loss": sum(criterion.weights[name] * value for name, value in total.items()), **total}
    ground_truth = to_coco(dataset.annotations)
    if picture is not None:
        truth = [replace(dataset[i], labels=torch.tensor(label_of)[dataset[i].labels]) for i in mine[: len(shown)]]
        draw_comparison(truth, shown, categories).save(picture, quality=90)
    return DetectorEvaluation(evaluate_detections(ground_truth, detections), losses, detections, ground_truth)


class _Resized(Dataset):
    """Some of a data set's images at the size for evaluation, with the model's labels."""

    def __init__(self, dataset: CocoDataset, resize: EvaluationResize, indices: range, label_of: Sequence[int]) -> None:
        self.dataset = dataset
        self.resize = resize
        self.indices = indices
        self.label_of = torch.tensor(list(label_of))

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> Sample:
        sample = self.resize(self.dataset[self.indices[i]])
        return replace(sample, labels=self.label_of[sample.labels])


def _columns(
    image_id: int, scores: Tensor, labels: Tensor, boxes: Tensor, category_of: Mapping[int, int]
) -> tuple[np.ndarray, ...]:
    """One image's detections as columns, those of classes that the data set does not have left out."""
    categories = np.array([category_of.get(label, -1) for label in labels.tolist()], dtype=np.int64)
    kept = categories >= 0
    boxes_xyxy = boxes.cpu().double().numpy()[kept]  # before sizes are taken: see Detections
    boxes_xywh = np.concatenate((boxes_xyxy[:, :2], boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]), axis=1)
    return np.full(kept.sum(), image_id), categories[kept], boxes_xywh, scores.cpu().double().numpy()[kept]


def _join(columns: Sequence[tuple[np.ndarray, ...]]) -> Detections:
    return Detections(*(np.concatenate(column) for column in zip(*columns, strict=True)))
