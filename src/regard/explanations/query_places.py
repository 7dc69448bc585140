"""The boxes of each object query of a detector over many images. (DETR, figure 7.)"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regard.data.images import to_image
from regard.data.samples import Sample
from regard.data.transforms.detection import EvaluationResize
from regard.errors import ConfigError
from regard.models.build import QueryDetector
from regard.models.evaluation_mode import evaluation_mode
from regard.structures.image_batch import ImageBatch
from regard.weights.load import load_on

SMALL = 0.02  # share of the image below which a box counts as small
COLUMNS, ROWS = 5, 4  # of the picture


@dataclass(frozen=True, eq=False)
class QueryPlaces:
    """boxes: (N, Q, 4) cxcywh in 0..1, the box of each query in each of N images, whether object or not."""

    boxes: Tensor

    def save(self, path: str | Path) -> Path:
        """A picture with a square for each of the first 20 queries and a dot for each box at its centre, or `.npz`.

        Green: boxes of less than 2 % of the image. Orange: large and wide. Blue: large and high.
        """
        if Path(path).suffix == ".npz":
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            np.savez(path, boxes=self.boxes.numpy())
            return Path(path)
        from regard.metrics.charts.style import BLUE, GREEN, ORANGE, figure, save

        count = min(self.boxes.shape[1], COLUMNS * ROWS)
        rows = -(-count // COLUMNS)
        picture = figure(2 * COLUMNS, 2.15 * rows)
        for query in range(count):
            axes = picture.add_subplot(rows, COLUMNS, query + 1)
            x, y, w, h = self.boxes[:, query].double().unbind(-1)
            small = w * h < SMALL
            for chosen, color in ((small, GREEN), (~small & (w >= h), ORANGE), (~small & (w < h), BLUE)):
                axes.plot(x[chosen].numpy(), y[chosen].numpy(), ".", color=color, markersize=3, alpha=0.6)
            axes.set(xlim=(0, 1), ylim=(1, 0), xticks=[], yticks=[], aspect="equal")
            axes.set_title(f"query {query}", fontsize=9)
        return save(picture, Path(path))


@torch.no_grad()
def query_places(model: QueryDetector, images: Iterable[Any], *, device: str = "auto") -> QueryPlaces:
    """Return the boxes of all queries for images as for `regard.predict`, one after the other.

    Raises:
        ConfigError: there are no images (C09).
        DataError: an image that cannot be read.
    """
    _, where = load_on(model, device)
    resize = EvaluationResize(model.card.short_side, model.card.max_size)
    found = []
    with evaluation_mode(model):
        for source in images:
            batch = ImageBatch.from_images([resize(Sample(to_image(source))).image])
            found.append(model(batch.to(where).normalized()).boxes.cpu())
    if not found:
        raise ConfigError("no images", remedy="name a folder with images", code="C09")
    return QueryPlaces(torch.cat(found))
