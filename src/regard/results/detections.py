"""What `regard.predict` returns for a detector, and the step from its raw output to boxes in pixels."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from regard.data.images import read_image
from regard.drawing.boxes import class_color, draw_boxes, save_picture
from regard.drawing.masks import draw_masks
from regard.errors import ConfigError, DivergedError, MachineError, escape
from regard.metrics.masks import encode_masks
from regard.structures.boxes import cxcywh_to_xyxy, xyxy_to_xywh
from regard.structures.categories import Category
from regard.structures.outputs import DetectionOutput

if TYPE_CHECKING:
    import numpy as np
    import pandas
    import supervision

_INSTALL = "install it with: pip install 'regard[interop]'"


@dataclass(frozen=True, eq=False, repr=False)
class Detections:
    """Objects that were found in one image, best first.

    Tensors are moved to the CPU and sorted by score, whatever order they come in.

    Args:
        scores: (N,) float32, 0..1, descending.
        labels: (N,) int64, index into `categories`.
        boxes: (N, 4) float32, xyxy in pixels of the original image; as predicted, so they may reach beyond its border.
        categories: all classes of the model.
        size: (height, width) of the original image as displayed.
        path: file of the image, which is read again for pictures; None where there is none.
        image: (3, H, W) uint8 RGB or a PIL image to draw on, for images that do not come from a file.
        masks: (N, H, W) bool, pixels of the original image; None from a model without masks.

    Raises:
        ConfigError: the tensors do not fit each other, or a label has no category.
        DivergedError: a score or a box is not finite.
    """

    scores: Tensor
    labels: Tensor
    boxes: Tensor
    categories: tuple[Category, ...]
    size: tuple[int, int]
    path: str | None = None
    image: Tensor | Image.Image | None = None
    masks: Tensor | None = None

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
        for name, rows in (("scores", scores), ("labels", labels), ("boxes", boxes)):
            object.__setattr__(self, name, rows[order])
        object.__setattr__(self, "categories", tuple(self.categories))

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, index: int | slice | Tensor | np.ndarray | Sequence[int] | Sequence[bool]) -> Detections:
        """Some of the detections, by position, slice, list of positions or bool mask (N,); best first, as ever."""
        places = range(len(self))
        if isinstance(index, slice):
            index = list(places[index])
        elif not isinstance(index, Sequence) and getattr(index, "ndim", 0) == 0:
            index = [places[operator.index(index)]]  # an IndexError behind the last one ends `for` loops
        chosen = torch.as_tensor(index).cpu()
        chosen = chosen if chosen.numel() else chosen.long()
        masks = None if self.masks is None else self.masks[chosen]
        rows = self.scores[chosen], self.labels[chosen], self.boxes[chosen]
        return replace(self, scores=rows[0], labels=rows[1], boxes=rows[2], masks=masks)

    def above(self, threshold: float) -> Detections:
        """Those with a score above `threshold`, 0..1."""
        return self[self.scores > threshold]

    @property
    def names(self) -> list[str]:
        """The class name of each detection."""
        return [self.categories[label].name for label in self.labels.tolist()]

    @property
    def category_ids(self) -> list[int]:
        """The data set's own category id of each detection."""
        return [self.categories[label].id for label in self.labels.tolist()]

    def to_dicts(self) -> list[dict[str, Any]]:
        """`[{"label", "score", "box": {"xmin", "ymin", "xmax", "ymax"}}, ...]`, boxes in pixels.

        The shape of transformers' object-detection pipeline; box corners keep their fractions, which it cuts off.
        """
        corners = ("xmin", "ymin", "xmax", "ymax")
        return [
            {"label": name, "score": score, "box": dict(zip(corners, box, strict=True))}
            for name, score, box in zip(self.names, self.scores.tolist(), self.boxes.tolist(), strict=True)
        ]

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        """Rows of a COCO results file: `image_id`, `category_id`, `bbox` xywh in pixels, `score`.

        With masks also `segmentation`, as run lengths.

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

    def to_pandas(self) -> pandas.DataFrame:
        """A table: path, label, category_id, score, xmin, ymin, xmax, ymax, one row per detection.

        Raises:
            MachineError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise MachineError("a table needs pandas", remedy=_INSTALL) from error

        corners = dict(zip(("xmin", "ymin", "xmax", "ymax"), self.boxes.numpy().T, strict=True))
        ids = torch.tensor(self.category_ids, dtype=torch.int64).numpy()
        paths = [self.path] * len(self)
        table = {"path": paths, "label": self.names, "category_id": ids, "score": self.scores.numpy(), **corners}
        return pandas.DataFrame(table)

    def to_supervision(self) -> supervision.Detections:
        """The same for the tools of supervision: `class_id` is the label, `data["class_name"]` the name.

        Raises:
            MachineError: supervision is not installed.
        """
        try:
            import supervision
        except ImportError as error:
            raise MachineError("this conversion needs supervision", remedy=_INSTALL) from error
        import numpy as np

        return supervision.Detections(
            xyxy=self.boxes.numpy().copy(),
            confidence=self.scores.numpy().copy(),
            class_id=self.labels.numpy().copy(),
            mask=None if self.masks is None else self.masks.numpy().copy(),
            data={"class_name": np.array(self.names, dtype=str)},
        )

    def plot(self, threshold: float = 0.0) -> Image.Image:
        """The image with the detections above `threshold` drawn on it; small images are enlarged.

        Raises:
            ConfigError: the result has neither an image nor a path.
            DataError: the file can no longer be read.
        """
        image = self.image
        if image is None:
            if self.path is None:
                raise ConfigError("there is no image to draw on", remedy="give Detections an image or a path")
            image = read_image(self.path)
        shown = self.above(threshold)
        colors = [class_color(label) for label in shown.labels.tolist()]
        if shown.masks is not None:
            image = draw_masks(image, shown.masks, colors)
        return draw_boxes(image, shown.boxes, shown.names, colors, shown.scores.tolist())

    def save(self, path: str | Path, threshold: float = 0.0) -> None:
        """Write `plot` to a picture file; its suffix tells the format. Missing folders are made.

        Raises:
            ConfigError: no picture format has this suffix.
            MachineError: the file cannot be written.
        """
        save_picture(self.plot(threshold), path)

    def summary(self) -> str:
        """How many of each class, most frequent first: `3 raccoon, 1 dog`."""
        return ", ".join(f"{count} {name}" for name, count in Counter(self.names).most_common()) or "nothing"

    def __repr__(self) -> str:
        place = "" if self.path is None else f"{escape(self.path)}, "
        return f"Detections({escape(self.summary())}; {place}{self.size[0]}x{self.size[1]})"


def postprocess(
    output: DetectionOutput, sizes: Sequence[tuple[int, int]], *, softmax: bool
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Scores, labels and boxes in pixels from what a detector returns for B images and Q queries.

    Args:
        sizes: (height, width) in pixels of each image that the boxes are for: the original ones.
        softmax: whether classes exclude each other and the last is no-object, as in DETR: one detection per query, in
            the order of the queries (PostProcess in the authors' models/detr.py). Else every class of every query is
            a detection of its own with a sigmoid score, and the best Q are kept, best first (Deformable DETR).

    Returns:
        For each image scores (N,) 0..1, labels (N,) int64 and boxes (N, 4) xyxy, which are not cut at the border.
        Scores and boxes are float32 under mixed precision too.

    Raises:
        ConfigError: not one size for each image.
    """
    if len(sizes) != len(output.logits):
        raise ConfigError(f"{len(sizes)} sizes for predictions of {len(output.logits)} images")
    logits = output.logits.float()
    boxes = cxcywh_to_xyxy(output.boxes.float())
    num_queries = logits.shape[1]
    if softmax:
        scores, labels = logits.softmax(-1)[..., :-1].max(-1)
    else:
        num_classes = logits.shape[2]
        best, places = logits.flatten(1).topk(num_queries)
        scores, labels = best.sigmoid(), places % num_classes
        boxes = boxes.gather(1, (places // num_classes)[..., None].expand(-1, -1, 4))
    scale = torch.tensor([(w, h, w, h) for h, w in sizes], dtype=boxes.dtype).to(boxes.device)
    return list(zip(scores, labels, boxes * scale[:, None], strict=True))
