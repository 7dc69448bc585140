"""A detector over a data set: detections, losses and scores. `evaluate_on` is the entry of `regard.evaluate`."""

from __future__ import annotations

import itertools
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.ops import clip_boxes_to_image

from regard.data.batches.detection import DetectionBatch, collate
from regard.data.check import advise
from regard.data.coco.dataset import CocoDataset, open_detection
from regard.data.coco.layout import has_panoptic
from regard.data.coco.panoptic import PanopticDataset, open_panoptic
from regard.data.coco.panoptic_writer import PanopticWriter
from regard.data.generated.shapes import data_folder
from regard.data.samples import Sample
from regard.data.splits import Split
from regard.data.transforms.detection import EvaluationResize
from regard.errors import ConfigError, DataError
from regard.evaluation.batches import evaluation_batches
from regard.evaluation.detection_pictures import MAX_COMPARISONS, MIN_SCORE, draw_comparison, draw_segment_comparison
from regard.evaluation.options import DetectionEvaluationOptions
from regard.evaluation.segments import SegmentCollector, SegmentTotals, sizes_of
from regard.evaluation.worst_images import write_worst_detections, write_worst_segments
from regard.losses import AnchorCriterion, SetCriterion
from regard.metrics.charts.detection import plot_detections
from regard.metrics.curves import detection_curves
from regard.metrics.detection import CocoDetections, DetectionScores, evaluate_detections, warn_of_surplus
from regard.metrics.masks import encode_masks, evaluate_masks
from regard.metrics.segmentation import SegmentationScores
from regard.models.build import Detector, MaskedDetector, predicts_masks
from regard.models.engine import engine_of
from regard.models.evaluation_mode import evaluation_mode
from regard.models.exported import ExportedDetector
from regard.models.retinanet import RetinaNet
from regard.recipes import DetectorRecipe, recipe_from_file
from regard.recipes.retinanet import RetinaNetRecipe
from regard.results.postprocess import (
    ScoredQueries,
    boxes_in_pixels,
    instance_masks,
    score_queries,
    segment_threshold,
)
from regard.safe_files import is_used, make_writable, replace_text
from regard.structures.categories import Category, labels_by_name
from regard.structures.image_batch import of_equal_size
from regard.structures.outputs import DetectionOutput
from regard.structures.transfer import download, upload
from regard.training.data_loader import MapDataset
from regard.training.distributed import Processes

LOSSES = ("loss_ce", "loss_bbox", "loss_giou", "loss_mask", "loss_dice")

ObjectDataset = CocoDataset | PanopticDataset
Criterion = SetCriterion | AnchorCriterion


@dataclass(frozen=True)
class DetectorEvaluation:
    """The result of an evaluation.

    losses: mean over images, of the last decoder layer.
    dataset: the images that were evaluated.
    comparison: draws ground truth and predictions of the first images, side by side.
    masks: run lengths of the mask of each detection; None if masks were not evaluated.
    segments: of all images, at the best threshold; None if segments were not evaluated.
    """

    scores: DetectionScores | SegmentationScores
    losses: dict[str, float]
    detections: CocoDetections
    ground_truth: dict[str, Any]
    dataset: ObjectDataset
    comparison: Callable[[], Image.Image]
    masks: list[dict[str, Any]] | None = None
    segments: SegmentTotals | None = None

    def rows(self) -> list[dict[str, Any]]:
        """Return rows of a COCO results file: with masks if there are any, else with boxes."""
        found = self.detections
        key, shapes = ("bbox", found.boxes_xywh.tolist()) if self.masks is None else ("segmentation", self.masks)
        columns = (found.image_ids.tolist(), found.category_ids.tolist(), found.scores.tolist(), shapes)
        return [
            {"image_id": image, "category_id": category, "score": score, key: shape}
            for image, category, score, shape in zip(*columns, strict=True)
        ]

    def write(self, folder: Path, data: str) -> None:
        """Write `metrics.json`, `worst_images.json` and pictures. `data`: the data set, as the user named it.

        `predict` takes its default threshold from `best_threshold`: that of the best F1 of boxes at IoU 0.50, or of the
        segments' PQ. There is none if nothing was right at any, or only one was tried.
        """
        curves = detection_curves(self.ground_truth, self.detections)
        best = curves.best
        threshold = {} if best is None else {"best_threshold": best[0], "best_f1": best[1]}
        if self.segments is not None:
            threshold = {"best_threshold": self.segments.threshold} if self.segments.is_best else {}
        content = {"data": data, "losses": self.losses, **threshold, **self.scores.to_dict()}
        replace_text(folder / "metrics.json", json.dumps(content, indent=2))
        plot_detections(self.ground_truth, self.detections, curves, folder / "pictures")
        if self.segments is not None:
            write_worst_segments(self.dataset, self.segments.worst, folder)
            return
        minimum = MIN_SCORE if best is None else best[0]
        write_worst_detections(self.dataset, self.ground_truth, self.detections, minimum, folder)


def evaluate_on(
    net: Detector,
    data: str,
    options: DetectionEvaluationOptions,
    *,
    device: torch.device,
    batch_size: int,
    workers: int,
    run: Path | None = None,
) -> DetectorEvaluation:
    """Evaluate a detector, which is on `device`, on the validation images of a data set.

    Args:
        run: the run that the detector comes from, whose loss weights are used; None for the default weights.

    Raises:
        ConfigError: the submission file or the folder of its PNG files exists (C11).
    """
    folder = data_folder(data)
    with_masks = predicts_masks(net)
    panoptic = net.card.panoptic and has_panoptic(folder)
    dataset = open_objects(folder, "val", panoptic=panoptic, masks=with_masks)
    for issue in dataset.annotations.report.issues:
        if issue.code == "A61":  # only a part of the images is evaluated
            warnings.warn(str(issue), stacklevel=2)
    submission = None if options.submission is None else Path(options.submission)
    writer = None
    if submission is not None:
        writer = PanopticWriter(submission, categories=dataset.categories) if panoptic and with_masks else None
        existing = [submission] if submission.exists() else []
        existing += [writer.folder] if writer is not None and is_used(writer.folder) else []
        if existing:
            remedy = "name another file, or remove what an earlier evaluation left"
            raise ConfigError("the submission exists already", where=existing[0], remedy=remedy, code="C11")
        make_writable(submission.parent)
    threshold = segment_threshold(softmax=not net.config.sigmoid, of_run=net.card.threshold)
    with advise(folder):
        evaluation = evaluate_detector(
            net, dataset, _criterion_for(run, net), batch_size=batch_size, workers=workers,
            processes=Processes(0, 1, device), segment_thresholds=(threshold,), writer=writer,
        )  # fmt: skip
    if writer is not None:
        writer.close()
    elif submission is not None:
        replace_text(submission, json.dumps(evaluation.rows()))
    warn_of_surplus(evaluation.ground_truth, evaluation.detections)
    return evaluation


@torch.inference_mode()
def evaluate_detector(
    net: Detector,
    dataset: ObjectDataset,
    criterion: Criterion | None,
    *,
    batch_size: int,
    workers: int,
    processes: Processes,
    segment_thresholds: Sequence[float] = (0.85,),
    writer: PanopticWriter | None = None,
) -> DetectorEvaluation:
    """Run a detector over a data set and score it.

    Several processes share the batches, which are those of one process; all return the result that one would.

    If the data set gives masks, the model must have them: masks are scored too, and segments if the data are panoptic.
    Classes of the data set are matched to those of the model by name.

    Args:
        net: on the device of `processes`; its card gives categories and image size.
        criterion: the losses to report; None for none.
        segment_thresholds: minimum scores of a segment, 0..1. The one of the highest PQ is reported.
        writer: takes the predicted segments if the data are panoptic; needs a single process.
    """
    label_of = labels_by_name(net.card.categories, dataset.categories, str(dataset.annotations.path))
    net = engine_of(net)
    collector = _Collector(net, dataset, label_of, segment_thresholds, writer)
    resize = EvaluationResize(net.card.short_side, net.card.max_size)
    sizes = [resize.size_of(image.height, image.width) for image in dataset.annotations.images]
    plan = of_equal_size(range(len(dataset)), sizes, batch_size)
    planned = plan[processes.rank :: processes.world_size]
    labelled, device = _WithLabels(dataset, label_of), processes.device
    batches = evaluation_batches(labelled, resize, collate, planned, workers=workers, device=device)
    losses: list[tuple[int, dict[str, Tensor]]] = []  # images of each batch, and its means
    with evaluation_mode(net):
        for batch in batches:
            images = batch.images.to(device).normalized()
            output = net(images) if collector.masked is None else collector.masked(images, masks=False)
            masks = None if collector.masked is None else partial(collector.masked.masks, output)
            if criterion is not None:
                found = criterion(output, batch.targets, together=False, masks=masks)
                losses.append((len(batch.samples), {name: found[name] for name in LOSSES if name in found}))
            collector.add(output, batch)
    collector.order = list(itertools.chain.from_iterable(planned))
    sums = _sum_losses(losses)
    means = _mean_losses(criterion, processes.gather(sums), len(dataset))
    return collector.scores(processes, list(itertools.chain.from_iterable(plan)), means)


def _sum_losses(batches: Sequence[tuple[int, Mapping[str, Tensor]]]) -> dict[str, float]:
    """Return the sum of each loss over all images, from the means of batches. The host waits once for all."""
    names = list(dict.fromkeys(name for _, losses in batches for name in losses))
    values = iter(download(*(value for _, losses in batches for value in losses.values())))
    sums = dict.fromkeys(names, 0.0)
    for images, losses in batches:
        for name in losses:
            sums[name] += next(values).item() * images
    return sums


def _mean_losses(criterion: Criterion | None, sums: Sequence[Mapping[str, float]], images: int) -> dict[str, float]:
    """Return the mean of each loss and their weighted sum `loss`, from the sums of all processes.

    Processes may have different numbers of batches, so means of means would not do.
    """
    if criterion is None:
        return {}
    names = dict.fromkeys(name for part in sums for name in part)
    means = {name: sum(part.get(name, 0.0) for part in sums) / images for name in names}
    return {"loss": sum(criterion.weights[name] * value for name, value in means.items()), **means}


_Columns = tuple[np.ndarray, ...]  # image ids, category ids, boxes, scores


class _Collector:
    """Collects the detections of one process batch by batch, and masks and segments if the data set has masks.

    masked: the model if masks are evaluated, else None.
    """

    def __init__(
        self,
        net: Detector,
        dataset: ObjectDataset,
        label_of: Sequence[int],
        segment_thresholds: Sequence[float],
        writer: PanopticWriter | None,
    ) -> None:
        self.masked: MaskedDetector | None = None
        if dataset.masks:
            assert predicts_masks(net)
            self.masked = net
        self.dataset = dataset
        self.softmax = not net.config.sigmoid
        self.categories = net.card.categories
        self.label_of = label_of
        self.category_of = _evaluated_categories(dataset, self.categories, label_of)
        self.columns: list[_Columns] = []
        self.masks: list[dict[str, Any]] = []
        self.drawn: list[tuple[Tensor, Tensor, Tensor]] = []  # scores, labels and boxes of the first images
        self.order: list[int] = []  # images in the order they were added
        self.segments: SegmentCollector | None = None
        if self.masked is not None and isinstance(dataset, PanopticDataset):
            self.segments = SegmentCollector(self.masked, dataset, label_of, segment_thresholds, writer)

    def add(self, output: DetectionOutput, batch: DetectionBatch) -> None:
        """Take the predictions for a batch, with boxes clipped to the image as those of `predict`."""
        queries = score_queries(output, softmax=self.softmax)
        sizes = [sample.original_size for sample in batch.samples]
        queries, boxes = queries.on_host(boxes_in_pixels(output, queries, sizes))
        for number, sample in enumerate(batch.samples):
            rows = queries.rows(number)
            clipped = clip_boxes_to_image(boxes[rows], sample.original_size)
            found = queries.scores[rows], queries.labels[rows], clipped
            self.columns.append(columns_of(sample.image_id, *found, self.category_of))
            if len(self.drawn) < MAX_COMPARISONS:
                self.drawn.append(found)
        if self.masked is not None:
            self._add_masks(self.masked, output, batch, queries)
        if self.segments is not None:
            self.segments.add(output, batch)

    def _add_masks(
        self, net: MaskedDetector, output: DetectionOutput, batch: DetectionBatch, queries: ScoredQueries
    ) -> None:
        """Take the masks of the detections that `columns` holds, in their order. `queries` are on the host."""
        evaluated = torch.tensor([label in self.category_of for label in range(len(self.categories))])
        queries = queries.where(evaluated[queries.labels])
        device = output.logits.device
        logits = net.masks(output, upload(queries.image, device), upload(queries.query, device))
        for number, sizes in enumerate(sizes_of(batch)):
            self.masks += encode_masks(instance_masks(logits[upload(queries.rows(number), device)], sizes))

    def scores(self, processes: Processes, order: Sequence[int], losses: dict[str, float]) -> DetectorEvaluation:
        """Score the detections of all processes together, in the order of images that one process has."""
        segments = None if self.segments is None else self.segments.totals
        everything = processes.gather((self.order, self.columns, self.masks, segments))
        found: dict[int, tuple[_Columns, list[dict[str, Any]]]] = {}
        for images, parts, of_all, _ in everything:
            rows = iter(of_all)
            found |= {
                image: (part, list(itertools.islice(rows, len(part[0]))))
                for image, part in zip(images, parts, strict=True)
            }
        columns = [found[image][0] for image in order]
        detections = CocoDetections(*(np.concatenate(column) for column in zip(*columns, strict=True)))
        truth = self.dataset.to_coco(masks=self.masked is not None)
        boxes = evaluate_detections(truth, detections)
        if self.masked is None:
            return DetectorEvaluation(boxes, losses, detections, truth, self.dataset, self.draw)
        masks = [mask for image in order for mask in found[image][1]]
        best = None if self.segments is None else self.segments.best([totals for *_, totals in everything])
        panoptic = None if best is None else best.counts.scores()
        scores = SegmentationScores(boxes, evaluate_masks(truth, detections, masks), panoptic)
        return DetectorEvaluation(scores, losses, detections, truth, self.dataset, self.draw, masks, best)

    def draw(self) -> Image.Image:
        """Draw ground truth and predictions of the first images."""
        samples = [_WithLabels(self.dataset, self.label_of)[index] for index in self.order[: len(self.drawn)]]
        if self.segments is not None and self.segments.totals[0].drawn:
            return draw_segment_comparison(samples, self.segments.best([self.segments.totals]).drawn)
        return draw_comparison(samples, self.drawn, self.categories)


class _WithLabels:
    """A data set whose samples have the model's labels."""

    def __init__(self, dataset: ObjectDataset, label_of: Sequence[int]) -> None:
        self.dataset: MapDataset = dataset
        self.label_of = torch.tensor(list(label_of))

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        sample = self.dataset[index]
        return replace(sample, labels=self.label_of[sample.labels])


def open_objects(
    folder: str | Path, split: Split, *, panoptic: bool, masks: bool, like: Sequence[Category] | None = None
) -> ObjectDataset:
    """Open one split: things and stuff if `panoptic`, else objects; with masks, or with boxes alone.

    Args:
        like: the categories that the split must have, in their order; its own if None.
    """
    if panoptic:
        return open_panoptic(folder, split, categories=like, masks=masks)
    return open_detection(folder, split, categories=like, masks=masks)


def criterion_of(settings: DetectorRecipe) -> Criterion:
    """Build the loss of a recipe."""
    if isinstance(settings, RetinaNetRecipe):
        count = settings.model.num_classes
        return AnchorCriterion(count, class_weight=settings.class_weight, bbox_weight=settings.bbox_weight)
    return SetCriterion(
        settings.model.num_classes,
        classification="focal" if settings.model.sigmoid else "softmax",
        no_object_weight=settings.no_object_weight,
        class_weight=settings.class_weight,
        bbox_weight=settings.bbox_weight,
        giou_weight=settings.giou_weight,
        mask_weight=settings.mask_weight,
        dice_weight=settings.dice_weight,
        auxiliary_losses=settings.auxiliary_losses,
    )


def _criterion_for(run: Path | None, net: Detector) -> Criterion | None:
    """Build the loss of a run, so that losses compare to those in training; the default loss if there is no run.

    An ONNX file has none: it lacks the outputs that some losses need.
    """
    if isinstance(net, ExportedDetector):
        return None
    settings = None if run is None else run / "config.yaml"
    recipe = recipe_from_file(settings) if settings is not None and settings.is_file() else None
    if isinstance(recipe, DetectorRecipe):
        return criterion_of(with_classes(recipe, net.config.num_classes))
    if isinstance(net, RetinaNet):
        return AnchorCriterion(net.config.num_classes)
    return SetCriterion(net.config.num_classes, classification="focal" if net.config.sigmoid else "softmax")


def with_classes(settings: DetectorRecipe, num_classes: int) -> DetectorRecipe:
    """Return a recipe with the number of classes of the data."""
    if isinstance(settings, RetinaNetRecipe):
        return replace(settings, model=replace(settings.model, num_classes=num_classes))
    return replace(settings, model=replace(settings.model, num_classes=num_classes))


def _evaluated_categories(
    dataset: ObjectDataset, categories: Sequence[Category], label_of: Sequence[int]
) -> dict[int, int]:
    """Map the model's labels that count for AP to category ids of the data set: all, or the things if panoptic.

    Raises:
        DataError: a class is a thing in the model and stuff in the data set, or the reverse (A42).
    """
    pairs = list(zip(label_of, dataset.categories, strict=True))
    if not isinstance(dataset, PanopticDataset):
        return {label: category.id for label, category in pairs}
    changed = [category.name for label, category in pairs if categories[label].is_thing != category.is_thing]
    if changed:
        what = f"{changed[0]!r:.40} is a thing in one of model and data set, and stuff in the other"
        raise DataError(what, where=dataset.annotations.path, remedy="give both the same isthing", code="A42")
    return {label: category.id for label, category in pairs if category.is_thing}


def columns_of(
    image_id: int, scores: Tensor, labels: Tensor, boxes: Tensor, category_of: Mapping[int, int]
) -> _Columns:
    """Return one image's detections as columns, without those of classes that are not evaluated."""
    categories = np.array([category_of.get(label, -1) for label in labels.tolist()], dtype=np.int64)
    kept = categories >= 0
    boxes_xyxy = boxes.double().numpy()[kept]  # float64 before corners become sizes: see CocoDetections
    boxes_xywh = np.concatenate((boxes_xyxy[:, :2], boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]), axis=1)
    return np.full(kept.sum(), image_id), categories[kept], boxes_xywh, scores.double().numpy()[kept]
