"""The boxes of each object query of a detector over many images, and what it found in them. (DETR, figure 7.)"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from regard.data.images import to_image
from regard.data.samples import Sample
from regard.data.transforms.detection import EvaluationResize
from regard.errors import ConfigError, two_digits
from regard.models.build import QueryDetector
from regard.models.evaluation_mode import evaluation_mode
from regard.prediction.thresholds import default_threshold
from regard.results.postprocess import score_queries
from regard.structures.image_batch import ImageBatch
from regard.weights.load import load_on

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SMALL = 0.02  # share of the image below which a box counts as small
COLUMNS, ROWS = 5, 4  # of the picture
_NAMED = 2  # classes of a query that its title names
_LONGEST_NAME = 12  # letters of a class in a title


@dataclass(frozen=True, eq=False)
class QueryPlaces:
    """Boxes, classes and scores of Q queries in N images, whether objects or not.

    Args:
        boxes: (N, Q, 4) cxcywh in 0..1.
        scores: (N, Q) of the best class, 0..1; 0 for a box that was dropped as a duplicate of a better one.
        labels: (N, Q) int64, the best class as index into `names`.
        names: of the classes.
        threshold: minimum score of an object, 0..1.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    names: tuple[str, ...]
    threshold: float

    def title(self, query: int) -> str:
        """Return in two lines how many objects a query found, of which classes, and its best score."""
        scores, labels = self.scores[:, query], self.labels[:, query]
        best = int(scores.argmax())
        score, name = two_digits(scores[best].item()), self._name(int(labels[best]))
        found = Counter(labels[scores > self.threshold].tolist()).most_common()
        if not found:
            return f"query {query}: none found\nbest {score} {name}"
        classes = ", ".join(f"{count} {self._name(label)}" for label, count in found[:_NAMED])
        more = f" +{len(found) - _NAMED}" if len(found) > _NAMED else ""
        return f"query {query}: {sum(count for _, count in found)} found, best {score}\n{classes}{more}"

    def _name(self, label: int) -> str:
        from regard.metrics.charts.style import short_name

        name = self.names[label]
        return short_name(name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…")

    def save(self, path: str | Path) -> Path:
        """A picture with a square for each of the first 20 queries and a dot for each box at its centre, or `.npz`.

        Green: boxes of less than 2 % of the image. Orange: large and wide. Blue: large and high. Dots of objects are
        full, those of other boxes pale.
        """
        if Path(path).suffix == ".npz":
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            np.savez(path, boxes=self.boxes.numpy(), scores=self.scores.numpy(), labels=self.labels.numpy())
            return Path(path)
        from regard.metrics.charts.style import BLUE, GREEN, ORANGE, figure, save

        colors = {f"less than {SMALL:.0%} of the image": GREEN, "larger and wide": ORANGE, "larger and high": BLUE}
        images, queries = self.boxes.shape[:2]
        count = min(queries, COLUMNS * ROWS)
        rows = -(-count // COLUMNS)
        picture = figure(2 * COLUMNS, 2.35 * rows + 0.9)
        for query in range(count):
            axes = picture.add_subplot(rows, COLUMNS, query + 1)
            self._draw(axes, query, list(colors.values()))
            axes.set_title(self.title(query), fontsize=8)
        some = f"the first {count} of {queries} queries" if count < queries else f"{queries} queries"
        words = f"Centres of the boxes of {some} in {images} images; full dots: objects, "
        picture.suptitle(f"{words}with a score above {two_digits(self.threshold)}", fontsize=10)
        marks = [picture.axes[0].plot([], [], "o", color=color, label=name)[0] for name, color in colors.items()]
        picture.legend(handles=marks, loc="outside lower center", ncols=3, fontsize=9, frameon=False)
        return save(picture, Path(path))

    def _draw(self, axes: Axes, query: int, colors: list[str]) -> None:
        x, y, w, h = self.boxes[:, query].double().unbind(-1)
        small, found = w * h < SMALL, self.scores[:, query] > self.threshold
        for shape, color in zip((small, ~small & (w >= h), ~small & (w < h)), colors, strict=True):
            for chosen, alpha in ((shape & ~found, 0.2), (shape & found, 0.8)):
                axes.plot(x[chosen].numpy(), y[chosen].numpy(), ".", color=color, markersize=3, alpha=alpha)
        axes.set(xlim=(0, 1), ylim=(1, 0), xticks=[], yticks=[], aspect="equal")


@torch.no_grad()
def query_places(model: QueryDetector, images: Iterable[Any], *, device: str = "auto") -> QueryPlaces:
    """Return the boxes of all queries for images as for `regard.predict`, one after the other.

    An object has at least the score that `regard.predict` asks for by default.

    Raises:
        ConfigError: there are no images (C09).
        DataError: an image that cannot be read.
    """
    _, where = load_on(model, device)
    resize = EvaluationResize(model.card.short_side, model.card.max_size)
    rows: list[tuple[Tensor, Tensor, Tensor]] = []
    with evaluation_mode(model):
        for source in images:
            batch = ImageBatch.from_images([resize(Sample(to_image(source))).image])
            output = model(batch.to(where).normalized())
            best = score_queries(output, softmax=not model.config.sigmoid, multi_label=False)
            scores, labels = torch.zeros(output.boxes.shape[1]), torch.zeros(output.boxes.shape[1], dtype=torch.int64)
            scores[best.query.cpu()], labels[best.query.cpu()] = best.scores.cpu(), best.labels.cpu()
            rows.append((output.boxes[0].float().cpu(), scores, labels))
    if not rows:
        raise ConfigError("no images", remedy="name a folder with images", code="C09")
    boxes, scores, labels = (torch.stack(column) for column in zip(*rows, strict=True))
    names = tuple(category.name for category in model.card.categories)
    return QueryPlaces(boxes, scores, labels, names, default_threshold(model))
