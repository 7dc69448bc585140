"""Panoptic segments of an image, both things and stuff, as predictions or ground truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from regard.errors import ConfigError
from regard.structures.categories import Category


@dataclass(frozen=True, eq=False, repr=False)
class PanopticSegments:
    """The S segments of one image. A pixel belongs to at most one. Tensors are moved to the CPU.

    Args:
        ids: (H, W) int64, segment of each pixel, 1..S, or 0 for void. Segment i has row i - 1 of `labels` and `scores`.
        labels: (S,) int64, index into `categories`.
        scores: (S,) float32, 0..1; ones for ground truth.
        categories: all classes, things and stuff.
        is_crowd: (S,) bool, of ground truth: whether the segment is a group of objects; None if no segment is.
        queries: (S,) int64, of predictions: the query of the detector that found each segment; None if not known.

    Raises:
        ConfigError: shapes do not match, a pixel has an id above S, or a label has no category.
    """

    ids: Tensor
    labels: Tensor
    scores: Tensor
    categories: tuple[Category, ...]
    is_crowd: Tensor | None = None
    queries: Tensor | None = None

    def __post_init__(self) -> None:
        ids, labels = (tensor.detach().long().cpu() for tensor in (self.ids, self.labels))
        scores = self.scores.detach().float().cpu()
        shapes = tuple(ids.shape), tuple(labels.shape), tuple(scores.shape)
        if self.is_crowd is not None:
            object.__setattr__(self, "is_crowd", self.is_crowd.detach().bool().cpu())
            if self.is_crowd.shape != labels.shape:
                raise ConfigError(f"expected is_crowd {tuple(labels.shape)}, got {tuple(self.is_crowd.shape)}")
        if self.queries is not None:
            object.__setattr__(self, "queries", self.queries.detach().long().cpu())
            if self.queries.shape != labels.shape:
                raise ConfigError(f"expected queries {tuple(labels.shape)}, got {tuple(self.queries.shape)}")
        if ids.ndim != 2 or labels.ndim != 1 or scores.shape != labels.shape:
            raise ConfigError("expected ids (H, W), labels (S,) and scores (S,), got {}, {} and {}".format(*shapes))
        values = ids.numpy()  # numpy compares int64 many times faster than torch
        lowest, highest = (int(values.min()), int(values.max())) if values.size else (0, 0)
        if lowest < 0 or highest > len(labels):
            wrong = lowest if lowest < 0 else highest
            raise ConfigError(f"a pixel has segment {wrong}, expected 0 (void) to {len(labels)}")
        if labels.numel() and not 0 <= labels.min() <= labels.max() < len(self.categories):
            wrong = next(label for label in labels.tolist() if not 0 <= label < len(self.categories))
            remedy = "pass the categories that the model was trained on"
            raise ConfigError(f"label {wrong}, expected 0 to {len(self.categories) - 1}", remedy=remedy)
        for name, value in (("ids", ids), ("labels", labels), ("scores", scores)):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "categories", tuple(self.categories))

    def __len__(self) -> int:
        """The number of segments."""
        return len(self.labels)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.ids.shape[0], self.ids.shape[1]

    @property
    def names(self) -> list[str]:
        """The class name of each segment."""
        return [self.categories[label].name for label in self.labels.tolist()]

    @property
    def areas(self) -> Tensor:
        """(S,) int64, number of pixels of each segment."""
        return torch.from_numpy(np.bincount(self.ids.numpy().ravel(), minlength=len(self) + 1)[1:])

    def translated(self, categories: Sequence[Category], label_of: Mapping[int, int]) -> PanopticSegments:
        """Return the segments with other categories. Segments of classes that these do not have become void.

        Args:
            categories: the new categories.
            label_of: index in `categories` of the class of each old label.
        """
        kept = [row for row, label in enumerate(self.labels.tolist()) if label in label_of]
        number = torch.zeros(len(self) + 1, dtype=torch.int64)
        number[torch.tensor(kept, dtype=torch.int64) + 1] = torch.arange(1, len(kept) + 1)
        labels = torch.tensor([label_of[int(self.labels[row])] for row in kept], dtype=torch.int64)
        crowd = None if self.is_crowd is None else self.is_crowd[kept]
        queries = None if self.queries is None else self.queries[kept]
        return PanopticSegments(number[self.ids], labels, self.scores[kept], tuple(categories), crowd, queries)

    def __repr__(self) -> str:
        return f"PanopticSegments({len(self)} segments, {self.size[0]}x{self.size[1]})"
