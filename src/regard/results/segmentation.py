"""`Segmentation`: what `regard.predict` returns for a panoptic model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.ops import masks_to_boxes

from regard.drawing.boxes import class_color
from regard.drawing.masks import draw_segments
from regard.results.result import Rejected, Result, chosen_rows
from regard.results.yolo import mask_lines
from regard.structures.categories import Category
from regard.structures.segments import PanopticSegments


@dataclass(frozen=True, eq=False, repr=False)
class Segmentation(Result):
    """One image cut into segments of things and stuff. Rows are segments; see `Result`.

    Args:
        segments: ids (H, W) at the size of the original image as displayed, with label and score of each segment.
        rejected: the best segment below the threshold, if none was above it.
    """

    segments: PanopticSegments
    rejected: Rejected | None = None

    def __len__(self) -> int:
        """Return the number of segments."""
        return len(self.segments)

    @property
    def ids(self) -> Tensor:
        """(H, W) int64: 0 for no segment, i + 1 for segment i."""
        return self.segments.ids

    @property
    def labels(self) -> Tensor:
        """(S,) int64, index into `categories`."""
        return self.segments.labels

    @property
    def scores(self) -> Tensor:
        """(S,) float32, 0..1."""
        return self.segments.scores

    @property
    def names(self) -> list[str]:
        """The class name of each segment."""
        return self.segments.names

    @property
    def categories(self) -> tuple[Category, ...]:
        """All classes of the model."""
        return self.segments.categories

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels of the original image as displayed."""
        return self.segments.size

    @property
    def masks(self) -> Tensor:
        """(S, H, W) bool, one mask for each segment."""
        return self.ids == torch.arange(1, len(self) + 1)[:, None, None]

    def to_dicts(self) -> list[dict[str, Any]]:
        """Return `[{"id", "label", "label_id", "score", "is_thing", "area"}, ...]`.

        `id` is the value of the segment's pixels in `ids`, `area` is in pixels.
        """
        rows = zip(self.labels.tolist(), self.scores.tolist(), self.segments.areas.tolist(), strict=True)
        return [
            {
                "id": number,
                "label": self.categories[label].name,
                "label_id": label,
                "score": score,
                "is_thing": self.categories[label].is_thing,
                "area": area,
            }
            for number, (label, score, area) in enumerate(rows, start=1)
        ]

    def filter(self, classes: str | Sequence[str] | None = None, above: float = 0.0) -> Segmentation:
        """Return the segments of some classes with a score above a threshold; the pixels of the others become void.

        Arguments and errors are those of `Detections.filter`.
        """
        kept = chosen_rows(self.scores, self.labels, self.categories, classes, above)
        number = torch.cat((torch.zeros(1, dtype=torch.int64), kept.cumsum(0) * kept))
        queries = None if self.segments.queries is None else self.segments.queries[kept]
        segments = PanopticSegments(
            number[self.ids], self.labels[kept], self.scores[kept], self.categories, queries=queries
        )
        return replace(self, segments=segments, rejected=None)

    def crops(self) -> list[Image.Image]:
        """Cut the bounding box of each segment out of the image; other segments in it stay visible.

        Raises:
            ConfigError: the result has neither an image nor a path.
            DataError: the file can no longer be read.
        """
        boxes = torch.zeros(len(self), 4)
        for row, mask in enumerate(self.masks):
            if mask.any():
                boxes[row] = masks_to_boxes(mask[None])[0] + torch.tensor([0, 0, 1, 1])
        return self._crops(boxes)

    def to_yolo(self) -> str:
        """Return lines of a YOLO label file, `class x1 y1 x2 y2 ...`, one a segment; see `Detections.to_yolo`."""
        return "".join(f"{line}\n" for line in mask_lines(self.labels.tolist(), self.masks))

    def plot(self) -> Image.Image:
        """Draw the image with its segments painted over and named; see `Result.plot`."""
        colors = [class_color(label) for label in self.labels.tolist()]
        return draw_segments(self._pixels(), self.ids, self.names, colors, self.scores.tolist())

    def summary(self) -> str:
        """Return how many there are of each thing, then the stuff, most frequent first: `3 person, 1 dog, grass`.

        If there is none: `nothing`, or from `predict` `nothing above 0.85; best score 0.44 dog`.
        """
        things = {category.name for category in self.categories if category.is_thing}
        counted = Counter(self.names).most_common()
        words = [f"{count} {name}" for name, count in counted if name in things]
        words += [name for name, _ in counted if name not in things]
        return ", ".join(words) or str(self.rejected or "nothing")

    def _columns(self) -> dict[str, Any]:
        rows, names = self.to_dicts(), ("id", "label", "label_id", "score", "is_thing", "area")
        return {name: [row[name] for row in rows] for name in names}

    def __repr__(self) -> str:
        return self._repr(self.size)
