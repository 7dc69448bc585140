"""A detector over a data set: what it finds there, and how good that is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from regard.data.batches.detection import DetectionBatch, collate
from regard.data.coco.dataset import CocoDataset
from regard.data.coco.panoptic import PanopticDataset, PanopticWriter, png_names
from regard.data.samples import Sample
from regard.data.transforms.detection import EvaluationResize
from regard.errors import DataError
from regard.evaluation.detection_pictures import draw_comparison, draw_segment_comparison
from regard.losses import SetCriterion
from regard.metrics.charts.detection import plot_detections
from regard.metrics.detection import Detections, DetectionScores, evaluate_detections
from regard.metrics.masks import encode_masks, evaluate_masks
from regard.metrics.panoptic import PanopticCounts
from regard.metrics.segmentation import SegmentationScores
from regard.models.detr import DETR
from regard.results.detections import postprocess
from regard.results.postprocess import Sizes, choose_queries, instance_masks, panoptic_segments, score_queries
from regard.safe_files import replace_text
from regard.structures.categories import Category, labels_by_name
from regard.structures.outputs import DetectionOutput
from regard.structures.segments import PanopticSegments
from regard.training.data_loader import Caught, collate_caught, outlive_signals, raising, worker_count
from regard.training.distributed import Processes

PICTURES = 6  # of an evaluation
LOSSES = ("loss_ce", "loss_bbox", "loss_giou", "loss_mask", "loss_dice")

ObjectDataset = CocoDataset | PanopticDataset


@dataclass(frozen=True)
class DetectorEvaluation:
    """Scores, mean losses (per image, without those of single layers), and the detections they come from."""

    scores: DetectionScores | SegmentationScores
    losses: dict[str, float]
    detections: Detections
    ground_truth: dict[str, Any]
    masked: tuple[Detections, list[dict[str, Any]]] | None = None  # detections that have a mask, and their masks

    def rows(self) -> list[dict[str, Any]]:
        """Rows of a COCO results file: boxes, or masks where there are any."""
        detections, masks = (self.detections, None) if self.masked is None else self.masked
        columns = (detections.image_ids, detections.category_ids, detections.boxes_xywh, detections.scores)
        rows = [
            {"image_id": image, "category_id": category, "score": score, "bbox": box}
            for image, category, box, score in zip(*(column.tolist() for column in columns), strict=True)
        ]
        if masks is None:
            return rows
        return [
            {**{key: row[key] for key in ("image_id", "category_id", "score")}, "segmentation": mask}
            for row, mask in zip(rows, masks, strict=True)
        ]

    def write(self, folder: Path, data: str) -> None:
        """`metrics.json` and pictures. `data`: what was judged on."""
        content = {"data": data, "losses": self.losses, **self.scores.to_dict()}
        replace_text(folder / "metrics.json", json.dumps(content, indent=2))
        plot_detections(self.ground_truth, self.detections, folder / "pictures")


@torch.inference_mode()
def evaluate_detector(
    model: nn.Module,
    dataset: ObjectDataset,
    *,
    resize: EvaluationResize,
    softmax: bool,
    criterion: SetCriterion,
    categories: Sequence[Category],
    batch_size: int,
    workers: int,
    processes: Processes,
    picture: Path | None = None,
    writer: PanopticWriter | None = None,
) -> DetectorEvaluation:
    """Run a detector over a data set and score it. Several processes share the images; all get the result.

    A data set that gives masks is for a model that has them: masks are scored too, and segments where the data are
    panoptic.

    Args:
        categories: the model's; those of the data set are found among them by their names.
        picture: where to draw truth beside prediction for the first images.
        writer: takes the segments that were found, where the data are panoptic; for one process.
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
        num_workers=worker_count(workers),
        worker_init_fn=outlive_signals,
    )
    category_of = _judged_categories(dataset, categories, label_of)
    columns: list[_Columns] = []
    sums: dict[str, float] = {}
    shown: list[tuple[Tensor, Tensor, Tensor]] = []
    tally = None
    if dataset.masks:
        assert isinstance(model, DETR)
        tally = MaskTally(model, dataset, categories, label_of, softmax=softmax, writer=writer)
    for batch in raising(loader):
        images = batch.images.to(processes.device).normalized()
        output = model(images) if tally is None else tally.model(images, masks=False)
        masks = None if tally is None else partial(tally.model.masks, output)
        # Processes may have different numbers of batches.
        for name, value in criterion(output, batch.targets, together=False, masks=masks).items():
            if name in LOSSES:
                sums[name] = sums.get(name, 0.0) + value.item() * len(batch.samples)
        found = postprocess(output, [s.original_size for s in batch.samples], softmax=softmax)
        for sample, (scores, labels, boxes) in zip(batch.samples, found, strict=True):
            columns.append(_columns(sample.image_id, scores, labels, boxes, category_of))
            if picture is not None and len(shown) < PICTURES:
                shown.append((scores.cpu(), labels.cpu(), boxes.cpu()))
        if tally is not None:
            tally.add(output, batch)
    model.train(was_training)
    everything = processes.gather((columns, sums))
    detections = _join([c for part, _ in everything for c in part])
    names = dict.fromkeys(name for _, part in everything for name in part)
    total = {name: sum(part.get(name, 0.0) for _, part in everything) / len(dataset) for name in names}
    losses = {"loss": sum(criterion.weights[name] * value for name, value in total.items()), **total}
    ground_truth = dataset.to_coco(masks=tally is not None)
    of_boxes = evaluate_detections(ground_truth, detections)
    judged, masked = (of_boxes, None) if tally is None else tally.scores(of_boxes, ground_truth, processes)
    if picture is not None:
        truth = [replace(dataset[i], labels=torch.tensor(label_of)[dataset[i].labels]) for i in mine[: len(shown)]]
        if tally is not None and tally.shown:
            drawn = draw_segment_comparison(truth, tally.shown)
        else:
            drawn = draw_comparison(truth, shown, categories)
        drawn.save(picture, quality=90)
    return DetectorEvaluation(judged, losses, detections, ground_truth, masked)


class MaskTally:
    """What is counted of masks and segments, batch by batch.

    shown: segments of the first images, truth and prediction; empty where the data are not panoptic.
    """

    def __init__(
        self,
        model: DETR,
        dataset: ObjectDataset,
        categories: Sequence[Category],
        label_of: Sequence[int],
        *,
        softmax: bool,
        writer: PanopticWriter | None = None,
    ) -> None:
        self.model = model
        self.writer = writer
        self.dataset = dataset
        self.categories = tuple(categories)
        self.label_of = label_of
        self.own_label = {label: own for own, label in enumerate(label_of)}
        self.category_of = _judged_categories(dataset, categories, label_of)
        self.softmax = softmax
        self.columns: list[_Columns] = []
        self.masks: list[dict[str, Any]] = []
        self.counts = PanopticCounts(dataset.categories) if isinstance(dataset, PanopticDataset) else None
        self.shown: list[tuple[PanopticSegments, PanopticSegments]] = []
        self.names = png_names(dataset.annotations.images)
        self.index_of = {image_id: index for index, image_id in enumerate(dataset.image_ids)}

    def add(self, output: DetectionOutput, batch: DetectionBatch) -> None:
        """Count the images of a batch."""
        padded = batch.images.pixels.shape[-2], batch.images.pixels.shape[-1]
        sizes = [
            Sizes(padded, resized, sample.original_size)
            for resized, sample in zip(batch.images.sizes, batch.samples, strict=True)
        ]
        self._add_things(output, batch.samples, sizes)
        if self.counts is not None:
            self._add_segments(output, batch.samples, sizes)

    def _add_things(self, output: DetectionOutput, samples: Sequence[Sample], sizes: Sequence[Sizes]) -> None:
        found = score_queries(output, softmax=self.softmax)
        judged = torch.tensor([label in self.category_of for label in range(len(self.categories))])
        found = found.where(judged.to(found.labels.device)[found.labels])
        logits = self.model.masks(output, found.image, found.query)
        for number, (sample, size) in enumerate(zip(samples, sizes, strict=True)):
            rows, labels, scores = found.of(number)
            self.masks += encode_masks(instance_masks(logits[rows], size))
            nowhere = torch.zeros(len(rows), 4)
            self.columns.append(_columns(sample.image_id, scores, labels, nowhere, self.category_of))

    def _add_segments(self, output: DetectionOutput, samples: Sequence[Sample], sizes: Sequence[Sizes]) -> None:
        assert self.counts is not None and isinstance(self.dataset, PanopticDataset)
        chosen = choose_queries(output, softmax=self.softmax)
        logits = self.model.masks(output, chosen.image, chosen.query)
        for number, (sample, size) in enumerate(zip(samples, sizes, strict=True)):
            rows, labels, scores = chosen.of(number)
            found = panoptic_segments(scores, labels, logits[rows], size, self.categories)
            index = self.index_of[sample.image_id]
            truth = self.dataset.segments(index)
            self.counts.add(truth, found)
            if self.writer is not None:
                own = found.translated(self.dataset.categories, self.own_label)
                self.writer.add(self.dataset.annotations.images[index], own, self.names[index])
            if len(self.shown) < PICTURES:
                labels = torch.tensor([self.label_of[label] for label in truth.labels.tolist()], dtype=torch.int64)
                self.shown.append((replace(truth, labels=labels, categories=self.categories), found))

    def scores(
        self, boxes: DetectionScores, truth: dict[str, Any], processes: Processes
    ) -> tuple[SegmentationScores, tuple[Detections, list[dict[str, Any]]]]:
        """The scores over the images of all processes, and the detections with their masks that they come from."""
        everything = processes.gather((self.columns, self.masks, self.counts))
        detections = _join([column for columns, _, _ in everything for column in columns])
        masks = [mask for _, part, _ in everything for mask in part]
        if self.counts is not None:
            counts = PanopticCounts(self.dataset.categories)
            for _, _, part in everything:
                counts.merge(part)
        panoptic = None if self.counts is None else counts.scores()
        return SegmentationScores(boxes, evaluate_masks(truth, detections, masks), panoptic), (detections, masks)


class _Resized(Dataset):
    """Some of a data set's images at the size for evaluation, with the model's labels."""

    def __init__(
        self, dataset: ObjectDataset, resize: EvaluationResize, indices: range, label_of: Sequence[int]
    ) -> None:
        self.dataset = dataset
        self.resize = resize
        self.indices = indices
        self.label_of = torch.tensor(list(label_of))

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> Sample:
        sample = self.resize(self.dataset[self.indices[i]])
        return replace(sample, labels=self.label_of[sample.labels])


def _judged_categories(
    dataset: ObjectDataset, categories: Sequence[Category], label_of: Sequence[int]
) -> dict[int, int]:
    """The model's labels of which AP is taken -> the category ids of the data: of things, as COCO's AP is.

    Raises:
        DataError: a class is a thing in one and stuff in the other (A42).
    """
    pairs = list(zip(label_of, dataset.categories, strict=True))
    if not isinstance(dataset, PanopticDataset):
        return {label: category.id for label, category in pairs}
    changed = [category.name for label, category in pairs if categories[label].is_thing != category.is_thing]
    if changed:
        what = f"{changed[0]!r:.40} is a thing in one and stuff in the other, the model or the data"
        raise DataError(what, where=dataset.annotations.path, remedy="give both the same isthing", code="A42")
    return {label: category.id for label, category in pairs if category.is_thing}


_Columns = tuple[np.ndarray, ...]  # image ids, category ids, boxes, scores


def _columns(image_id: int, scores: Tensor, labels: Tensor, boxes: Tensor, category_of: Mapping[int, int]) -> _Columns:
    """One image's detections as columns, those of classes that the data set does not have left out."""
    categories = np.array([category_of.get(label, -1) for label in labels.tolist()], dtype=np.int64)
    kept = categories >= 0
    boxes_xyxy = boxes.cpu().double().numpy()[kept]  # before sizes are taken: see Detections
    boxes_xywh = np.concatenate((boxes_xyxy[:, :2], boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]), axis=1)
    return np.full(kept.sum(), image_id), categories[kept], boxes_xywh, scores.cpu().double().numpy()[kept]


def _join(columns: Sequence[_Columns]) -> Detections:
    return Detections(*(np.concatenate(column) for column in zip(*columns, strict=True)))
