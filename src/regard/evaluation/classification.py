"""A classifier over a data set: what it answers there, and how good that is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from regard.data.class_images.dataset import ClassificationDataset
from regard.data.transforms.classification import Evaluation
from regard.evaluation.batches import evaluation_batches
from regard.evaluation.classification_pictures import MOST_IMAGES, draw_class_predictions
from regard.metrics.charts.classification import plot_classification
from regard.metrics.classification import ClassificationScores, evaluate_classification
from regard.models.evaluation_mode import evaluation_mode
from regard.safe_files import replace_text
from regard.structures.categories import Category, labels_by_name
from regard.training.distributed import Processes


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
