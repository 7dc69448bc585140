"""Measure what padding does to panoptic quality: perfect masks in batches, with padding cut off or squeezed in.

    regard study padding --data coco/

The authors' PostProcessPanoptic enlarges the mask of a padded batch to the size of the image without its padding. How
much that costs is seen with the truth as the prediction, at a quarter of the size as DETR's masks are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table

from regard.data.coco.panoptic import PanopticDataset, open_panoptic
from regard.data.generated.shapes import data_folder
from regard.data.samples import Sample
from regard.data.transforms.detection import EvaluationResize
from regard.errors import ConfigError
from regard.metrics.panoptic import PanopticCounts, PanopticScores
from regard.results.postprocess import ImageSizes, panoptic_segments

STRIDE = 4  # of DETR's masks
SURE = 10.0  # logit of a perfect mask


def padding(data: str, batch_sizes: Sequence[int]) -> None:
    """Print PQ, SQ and RQ of perfect masks for each number of images in a batch, in the order of the data set.

    Raises:
        ConfigError: a batch size below 1.
        DataError: the data set is not panoptic.
    """
    if min(batch_sizes, default=0) < 1:
        raise ConfigError(f"batches of {list(batch_sizes)} images, expected at least 1", code="C03")
    dataset = open_panoptic(data_folder(data), "val")
    table = Table("images of a batch", "cut off", "squeezed in", title="PQ, SQ, RQ of perfect masks")
    for batch_size in batch_sizes:
        both = (scores.stats for scores in evaluate_padding(dataset, batch_size))
        cells = (", ".join(f"{100 * (stats[name] or 0):.1f}" for name in ("PQ", "SQ", "RQ")) for stats in both)
        table.add_row(str(batch_size), *cells)
    Console().print(table)


def evaluate_padding(
    dataset: PanopticDataset, batch_size: int, resize: Callable[[Sample], Sample] | None = None
) -> list[PanopticScores]:
    """Return the scores with padding cut off and squeezed in; resized as in DETR's evaluation if None."""
    resize = resize or EvaluationResize()
    counts = PanopticCounts(dataset.categories), PanopticCounts(dataset.categories)
    for first in range(0, len(dataset), batch_size):
        indices = range(first, min(first + batch_size, len(dataset)))
        samples = [resize(dataset[index]) for index in indices]
        padded = max(s.size[0] for s in samples), max(s.size[1] for s in samples)
        for index, sample in zip(indices, samples, strict=True):
            logits = perfect_logits(sample, padded)
            scores = torch.ones(len(sample.labels))
            for one, seen in zip(counts, (padded, sample.size), strict=True):
                sizes = ImageSizes(seen, sample.size, sample.original_size)
                found = panoptic_segments(scores, sample.labels, logits, sizes, dataset.categories)
                one.add(dataset.segments(index), found)
    return [one.scores() for one in counts]


def perfect_logits(sample: Sample, padded: tuple[int, int]) -> torch.Tensor:
    """(T, h, w) logits of the true masks in an image padded to (height, width), at a stride of 4."""
    assert sample.masks is not None
    masks = torch.zeros(len(sample.labels), 1, *padded)
    masks[:, 0, : sample.size[0], : sample.size[1]] = sample.masks.float()
    size = [-(-side // STRIDE) for side in padded]
    return 2 * SURE * F.interpolate(masks, size, mode="bilinear", antialias=True)[:, 0] - SURE
