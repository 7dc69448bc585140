"""`Detections`: what `regard.predict` returns for a detector."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import torch
from PIL import Image
from torch import Tensor

from regard.drawing.boxes import ShowLabels, class_color, draw_boxes, save_picture
from regard.drawing.masks import draw_masks
from regard.errors import ConfigError, DivergedError, MachineError, install_command
from regard.metrics.masks import encode_masks
from regard.results.result import Rejected, Result, chosen_rows, row_number
from regard.results.yolo import box_lines, mask_lines
from regard.structures.boxes import xyxy_to_xywh
from regard.structures.categories import Category

if TYPE_CHECKING:
    import numpy as np
    import supervision

CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True, eq=False, repr=False)
class Detections(Result):
    """The objects that a detector found in one image, best first. Rows are objects; see `Result`.

    Tensors are moved to the CPU and sorted by descending score; equal scores keep their order. Slices, lists of
    positions and bool masks select: `detections[detections.labels == 0]` is a `Detections` again.

    Args:
        scores: (N,) float32, 0..1.
        labels: (N,) int64, index into `categories`.
        boxes: (N, 4) float32, xyxy in pixels of the original image; those of `predict` are clipped to it.
        categories: all classes of the model.
        size: (height, width) in pixels of the original image as displayed.
        masks: (N, H, W) bool, pixels of the original image; None from a model without masks.
        rejected: the best object below the threshold, if none was above it.
        queries: (N,) int64, the query of the detector that found each object, as `regard.explain` takes it; of dense
            detectors the anchor. None if it is not known, as after a merge of tiles.

    Raises:
        ConfigError: the shapes do not match, or a label has no category.
        DivergedError: a score or a box is not finite.
    """

    scores: Tensor
    labels: Tensor
    boxes: Tensor
    categories: tuple[Category, ...]
    size: tuple[int, int]
    masks: Tensor | None = None
    rejected: Rejected | None = None
    queries: Tensor | None = None

    def __post_init__(self) -> None:
        scores, boxes = (tensor.detach().float().cpu() for tensor in (self.scores, self.boxes))
        labels = self.labels.detach().long().cpu()
        shapes = tuple(scores.shape), tuple(labels.shape), tuple(boxes.shape)
        if scores.ndim != 1 or shapes != ((len(scores),), (len(scores),), (len(scores), 4)):
            raise ConfigError("expected scores (N,), labels (N,) and boxes (N, 4), got {}, {} and {}".format(*shapes))
        if not (scores.isfinite().all() and boxes.isfinite().all()):
            remedy = "the weights are damaged or their training diverged: use an earlier checkpoint"
            raise DivergedError("a predicted score or box is not finite", where=self.path, remedy=remedy)
        if labels.numel() and not 0 <= labels.min() <= labels.max() < len(self.categories):
            wrong = next(label for label in labels.tolist() if not 0 <= label < len(self.categories))
            remedy = "pass the categories that the model was trained on"
            raise ConfigError(f"label {wrong} among {len(self.categories)} categories", remedy=remedy)
        order = scores.argsort(descending=True, stable=True)
        if self.masks is not None:
            if tuple(self.masks.shape) != (len(scores), *self.size):
                raise ConfigError(f"expected masks {(len(scores), *self.size)}, got {tuple(self.masks.shape)}")
            object.__setattr__(self, "masks", self.masks.detach().bool().cpu()[order])
        if self.queries is not None:
            if tuple(self.queries.shape) != (len(scores),):
                raise ConfigError(f"expected queries {(len(scores),)}, got {tuple(self.queries.shape)}")
            object.__setattr__(self, "queries", self.queries.detach().long().cpu()[order])
        for name, rows in (("scores", scores), ("labels", labels), ("boxes", boxes)):
            object.__setattr__(self, name, rows[order])
        object.__setattr__(self, "categories", tuple(self.categories))

    def __len__(self) -> int:
        """Return the number of objects."""
        return len(self.scores)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...

    @overload
    def __getitem__(self, index: slice | Tensor | np.ndarray | Sequence[int] | Sequence[bool]) -> Detections: ...

    def __getitem__(
        self, index: int | slice | Tensor | np.ndarray | Sequence[int] | Sequence[bool]
    ) -> dict[str, Any] | Detections:
        """Return one row for an integer; the selected detections for a slice, list of positions or bool mask (N,).

        Raises:
            ConfigError: it is none of these (C02).
        """
        if isinstance(index, slice):
            index = list(range(len(self))[index])
        elif isinstance(index, str) or (not isinstance(index, Sequence) and getattr(index, "ndim", 0) == 0):
            return self.to_dicts()[row_number(index)]
        chosen = torch.as_tensor(index).cpu()
        chosen = chosen if chosen.numel() else chosen.long()
        masks = None if self.masks is None else self.masks[chosen]
        queries = None if self.queries is None else self.queries[chosen]
        rows = self.scores[chosen], self.labels[chosen], self.boxes[chosen]
        return replace(self, scores=rows[0], labels=rows[1], boxes=rows[2], masks=masks, rejected=None, queries=queries)

    def above(self, threshold: float) -> Detections:
        """Return the detections with a score above `threshold`, 0..1."""
        return self[self.scores > threshold]

    def filter(self, classes: str | Sequence[str] | None = None, above: float = 0.0) -> Detections:
        """Return the detections of some classes with a score above a threshold.

        Args:
            classes: a class name or several; all classes if None.
            above: 0..1.

        Raises:
            ConfigError: no such class (C01).
        """
        return self[chosen_rows(self.scores, self.labels, self.categories, classes, above)]

    def crops(self) -> list[Image.Image]:
        """Cut each object out of the image: RGB pictures of the boxes, widened to whole pixels, clipped to the image.

        Raises:
            ConfigError: the result has neither an image nor a path.
            DataError: the file can no longer be read.
        """
        return self._crops(self.boxes)

    @property
    def names(self) -> list[str]:
        """The class name of each detection."""
        return [self.categories[label].name for label in self.labels.tolist()]

    @property
    def category_ids(self) -> list[int]:
        """The data set's category id of each detection."""
        return [self.categories[label].id for label in self.labels.tolist()]

    def to_dicts(self) -> list[dict[str, Any]]:
        """Return `[{"label", "label_id", "score", "box": {"xmin", "ymin", "xmax", "ymax"}}, ...]`, boxes in pixels.

        With `label_id` added, these are the rows of transformers' object-detection pipeline, which truncates corners
        to integers.
        """
        columns = (self.names, self.labels.tolist(), self.scores.tolist(), self.boxes.tolist())
        return [
            {"label": name, "label_id": label, "score": score, "box": dict(zip(CORNERS, box, strict=True))}
            for name, label, score, box in zip(*columns, strict=True)
        ]

    def to_coco(self, image_id: int = 1) -> list[dict[str, Any]]:
        """Return rows of a COCO results file: `image_id`, `category_id`, `bbox` xywh in pixels, `score`.

        Detections with masks also have `segmentation`, as run lengths.

        Args:
            image_id: the data set's id of this image.

        Raises:
            MachineError: there are masks, and hotcoco is not installed.
        """
        boxes_xywh = xyxy_to_xywh(self.boxes.double()).tolist()
        rows: list[dict[str, Any]] = [
            {"image_id": image_id, "category_id": category_id, "bbox": box, "score": score}
            for category_id, box, score in zip(self.category_ids, boxes_xywh, self.scores.tolist(), strict=True)
        ]
        if self.masks is None:
            return rows
        outlines = encode_masks(self.masks)
        return [{**row, "segmentation": outline} for row, outline in zip(rows, outlines, strict=True)]

    def to_yolo(self) -> str:
        """Return lines of a YOLO label file: `class cx cy w h`, or `class x1 y1 x2 y2 ...` if there are masks.

        `class` is the label, an index into `categories`; coordinates are fractions of the image, 0..1. Scores are left
        out, as in labels: `filter` first. A mask in several parts, or with holes, is one polygon of the same area whose
        parts are joined by lines; a mask without a pixel has no line.
        """
        labels = self.labels.tolist()
        lines = box_lines(labels, self.boxes, self.size) if self.masks is None else mask_lines(labels, self.masks)
        return "".join(f"{line}\n" for line in lines)

    def to_supervision(self) -> supervision.Detections:
        """Convert to supervision: `class_id` is the label, `data["class_name"]` the class name.

        Raises:
            MachineError: supervision is not installed.
        """
        try:
            import supervision
        except ImportError as error:
            raise MachineError("this conversion needs supervision", remedy=install_command("supervision")) from error
        import numpy as np

        return supervision.Detections(
            xyxy=self.boxes.numpy().copy(),
            confidence=self.scores.numpy().copy(),
            class_id=self.labels.numpy().copy(),
            mask=None if self.masks is None else self.masks.numpy().copy(),
            data={"class_name": np.array(self.names, dtype=str)},
        )

    def plot(self, threshold: float = 0.0, labels: ShowLabels = "auto") -> Image.Image:
        """Draw the image with the detections above `threshold`; see `Result.plot`, and `draw_boxes` for `labels`."""
        image, shown = self._pixels(), self.above(threshold)
        colors = [class_color(label) for label in shown.labels.tolist()]
        if shown.masks is not None:
            image = draw_masks(image, shown.masks, colors)
        return draw_boxes(image, shown.boxes, shown.names, colors, shown.scores.tolist(), show_labels=labels)

    def save(self, path: str | Path, threshold: float = 0.0, labels: ShowLabels = "auto") -> None:
        """Write `plot(threshold, labels)` to a picture file; see `Result.save`."""
        save_picture(self.plot(threshold, labels), path)

    def summary(self) -> str:
        """Return how many objects there are of each class, most frequent first: `3 raccoon, 1 dog`.

        If there is none: `nothing`, or from `predict` `nothing above 0.50; best score 0.44 raccoon`.
        """
        counts = ", ".join(f"{count} {name}" for name, count in Counter(self.names).most_common())
        return counts or str(self.rejected or "nothing")

    def _columns(self) -> dict[str, Any]:
        return {
            "label": self.names,
            "label_id": self.labels.numpy(),
            "category_id": torch.tensor(self.category_ids, dtype=torch.int64).numpy(),
            "score": self.scores.numpy(),
            **dict(zip(CORNERS, self.boxes.numpy().T, strict=True)),
        }

    def __repr__(self) -> str:
        return self._repr(self.size)
