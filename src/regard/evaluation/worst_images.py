"""The images of an evaluation that a model gets most wrong: `worst_images.json` and a picture of each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from regard.data.class_images.dataset import ClassificationDataset
from regard.data.coco.annotated_images import AnnotatedImages
from regard.drawing.boxes import class_color, compare, draw_boxes, grid, save_picture
from regard.errors import two_digits
from regard.evaluation.detection_pictures import draw_panoptic
from regard.metrics.curves import count_per_image
from regard.metrics.detection import CocoDetections
from regard.safe_files import replace_text
from regard.structures.categories import Category
from regard.structures.segments import PanopticSegments

COUNT = 10
_SIDE = 420  # longer side of an image in a picture, in pixels


@dataclass(frozen=True)
class WorstImage:
    """One image. file: its path; caption: what is wrong, in words; picture: file in `pictures/`."""

    file: str
    caption: str
    picture: str


def write_worst_detections(
    dataset: AnnotatedImages[Any],
    ground_truth: dict[str, Any],
    detections: CocoDetections,
    threshold: float,
    folder: Path,
) -> None:
    """Write the images of lowest F1 at IoU 0.5, those with more mistakes first.

    Args:
        dataset: with the images of the detections.
        ground_truth, detections: as for `evaluate_detections`.
        threshold: minimum score of a detection, 0..1.
        folder: of the run.
    """
    counts = count_per_image(ground_truth, detections, score_threshold=threshold)
    wrong = [count for count in counts if count.f1 < 1]
    ranking = sorted(wrong, key=lambda c: (c.f1, -c.missed - c.false))[:COUNT]
    index_of = {image_id: index for index, image_id in enumerate(dataset.image_ids)}
    worst = []
    for number, count in enumerate(ranking, 1):
        index = index_of[count.image_id]
        sure = (detections.image_ids == count.image_id) & (detections.scores >= threshold)
        order = (-detections.scores[sure]).argsort(kind="stable")
        found = CocoDetections(*(column[sure][order] for column in _columns(detections)))
        rows = [row for row in ground_truth["annotations"] if row["image_id"] == count.image_id and not row["iscrowd"]]
        picture = f"worst_{number}.jpg"
        drawn = _compared(dataset.image(index), rows, found, dataset.categories)
        save_picture(drawn, folder / "pictures" / picture)
        caption = f"F1 {count.f1:.2f}: {count.found} found, {count.missed} missed, {count.false} false"
        worst.append(WorstImage(str(dataset.image_folder / dataset.names[index]), caption, picture))
    _write(folder, f"lowest F1 at score {two_digits(threshold)} and IoU 0.5", worst)


@dataclass(frozen=True)
class WorstSegments:
    """One image: its index; segments of the truth and of the model; the quality of its segments, all classes together.

    quality: sum of the IoU of matches / (matches + half of the segments without match), 0..1.
    """

    index: int
    truth: PanopticSegments
    found: PanopticSegments
    quality: float
    missed: int
    false: int


def worst_segments(images: Sequence[WorstSegments]) -> list[WorstSegments]:
    """Return the `COUNT` images of lowest quality, the lowest first."""
    wrong = (image for image in images if image.quality < 1)
    return sorted(wrong, key=lambda image: (image.quality, -image.missed - image.false, image.index))[:COUNT]


def write_worst_segments(dataset: AnnotatedImages[Any], worst: Sequence[WorstSegments], folder: Path) -> None:
    """Write the images that `worst_segments` found. `folder`: of the run."""
    rows = []
    for number, one in enumerate(worst, 1):
        picture = f"worst_{number}.jpg"
        image = dataset.image(one.index)
        truth, found = ((one.truth, False), (one.found, True))
        drawn = compare(*(_small(draw_panoptic(image, segments, with_scores=own)) for segments, own in (truth, found)))
        save_picture(drawn, folder / "pictures" / picture)
        caption = f"PQ {one.quality:.2f}: {one.missed} segments missed, {one.false} false"
        rows.append(WorstImage(str(dataset.image_folder / dataset.names[one.index]), caption, picture))
    _write(folder, "lowest panoptic quality (PQ) of the image, all classes together", rows)


@dataclass(frozen=True)
class WorstPrediction:
    """One image: its index; true and predicted label; probability of the true class and of the predicted one, 0..1."""

    index: int
    truth: int
    predicted: int
    of_truth: float
    confidence: float


def worst_predictions(logits: Tensor, labels: Tensor) -> list[WorstPrediction]:
    """Return the images of largest loss, the largest first.

    Args:
        logits: (N, C). labels: (N,) true labels.
    """
    losses = torch.nn.functional.cross_entropy(logits.double(), labels, reduction="none")
    worst = losses.argsort(descending=True, stable=True)[:COUNT]
    confidence, predicted = logits[worst].double().softmax(1).max(1)
    columns = worst, labels[worst], predicted, (-losses[worst]).exp(), confidence
    return [WorstPrediction(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


def write_worst_predictions(
    dataset: ClassificationDataset, worst: Sequence[WorstPrediction], names: Sequence[str], folder: Path
) -> None:
    """Write the images that `worst_predictions` found. `names`: of the classes; `folder`: of the run."""
    rows = []
    for number, found in enumerate(worst, 1):
        sample = dataset[found.index]
        picture = f"worst_{number}.jpg"
        save_picture(_enlarged(sample.image), folder / "pictures" / picture)
        what = f"truth {names[found.truth]} ({found.of_truth:.2g})"
        caption = f"predicted {names[found.predicted]} ({found.confidence:.2f}), {what}"
        rows.append(WorstImage(sample.path, caption, picture))
    _write(folder, "largest loss: lowest probability of the true class", rows)


def _write(folder: Path, measure: str, worst: Sequence[WorstImage]) -> None:
    content = {"measure": measure, "images": [asdict(image) for image in worst]}
    replace_text(folder / "worst_images.json", json.dumps(content, indent=2))


def _columns(detections: CocoDetections) -> tuple[Any, ...]:
    return detections.image_ids, detections.category_ids, detections.boxes_xywh, detections.scores


def _compared(
    image: Tensor, rows: Sequence[dict[str, Any]], found: CocoDetections, categories: Sequence[Category]
) -> Image.Image:
    """Draw ground truth and detections side by side."""
    label_of = {category.id: label for label, category in enumerate(categories)}
    true_labels = [label_of[row["category_id"]] for row in rows]
    truth = _boxes(image, [row["bbox"] for row in rows], true_labels, categories, None)
    found_labels = [label_of[id] for id in found.category_ids.tolist()]
    drawn = _boxes(image, found.boxes_xywh.tolist(), found_labels, categories, found.scores.tolist())
    return compare(_small(truth), _small(drawn))


def _boxes(
    image: Tensor,
    boxes_xywh: Sequence[Sequence[float]],
    labels: Sequence[int],
    categories: Sequence[Category],
    scores: Sequence[float] | None,
) -> Image.Image:
    boxes = torch.tensor(boxes_xywh, dtype=torch.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    names = [categories[label].name for label in labels]
    return draw_boxes(image, boxes, names, [class_color(label) for label in labels], scores)


def _small(picture: Image.Image) -> Image.Image:
    picture.thumbnail((_SIDE, _SIDE))
    return picture


def _enlarged(image: Tensor) -> Image.Image:
    """Return an image of about 200 pixels; sharp pixels are what the network sees."""
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    factor = max(1, 200 // max(picture.size))
    picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    return grid([picture], 1, padding=0, longest=_SIDE)
