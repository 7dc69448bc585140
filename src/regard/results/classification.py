"""`Classification`: what `regard.predict` returns for a classifier."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from regard.drawing.boxes import draw_probabilities, save_picture
from regard.errors import ConfigError, DivergedError
from regard.results.result import Result
from regard.structures.categories import Category

TOP = 5  # classes in a picture


@dataclass(frozen=True, eq=False, repr=False)
class Classification(Result):
    """The class probabilities of one image. Rows are all classes, most probable first; see `Result`.

    Equal probabilities are ordered by label.

    Args:
        probabilities: (C,) float32, 0..1, in the order of `categories`; moved to the CPU.
        categories: all classes of the model.
        size: (height, width) in pixels of the original image as displayed.

    Raises:
        ConfigError: the number of probabilities is not the number of categories.
        DivergedError: a probability is not finite.
    """

    probabilities: Tensor
    categories: tuple[Category, ...]
    size: tuple[int, int]

    def __post_init__(self) -> None:
        probabilities = self.probabilities.detach().float().cpu()
        if probabilities.shape != (len(self.categories),) or not len(self.categories):
            what = f"probabilities {tuple(probabilities.shape)} for {len(self.categories)} categories, expected (C,)"
            raise ConfigError(what)
        if not probabilities.isfinite().all():
            remedy = "the weights are damaged or their training diverged: use an earlier checkpoint"
            raise DivergedError("a predicted probability is not finite", where=self.path, remedy=remedy)
        object.__setattr__(self, "probabilities", probabilities)
        object.__setattr__(self, "categories", tuple(self.categories))

    def __len__(self) -> int:
        """Return the number of classes."""
        return len(self.categories)

    @property
    def label(self) -> int:
        """The most probable class, index into `categories`."""
        return int(self.probabilities.argmax())

    @property
    def name(self) -> str:
        """The name of the most probable class."""
        return self.categories[self.label].name

    @property
    def score(self) -> float:
        """The probability of the most probable class, 0..1."""
        return self.probabilities.max().item()

    def to_dicts(self, k: int | None = None) -> list[dict[str, Any]]:
        """Return `[{"label", "label_id", "score"}, ...]` of the `k` most probable classes; of all if None.

        Raises:
            ConfigError: `k` is less than 1 (C03).
        """
        if k is not None and k < 1:
            raise ConfigError(f"k={k}, expected at least 1", code="C03")
        order = self.probabilities.argsort(descending=True, stable=True)[:k]
        scores = self.probabilities[order].tolist()
        return [
            {"label": self.categories[label].name, "label_id": label, "score": score}
            for label, score in zip(order.tolist(), scores, strict=True)
        ]

    def plot(self, k: int = TOP) -> Image.Image:
        """Draw the image with bars for the `k` most probable classes below it; see `Result.plot`."""
        rows = self.to_dicts(k)
        return draw_probabilities(self._pixels(), [row["label"] for row in rows], [row["score"] for row in rows])

    def save(self, path: str | Path, k: int = TOP) -> None:
        """Write `plot(k)` to a picture file; see `Result.save`."""
        save_picture(self.plot(k), path)

    def summary(self, k: int = 1) -> str:
        """Return the `k` most probable classes in words: `tabby cat 0.83, tiger cat 0.12`."""
        return ", ".join(f"{row['label']} {row['score']:.2f}" for row in self.to_dicts(k))

    def _columns(self) -> dict[str, Any]:
        rows = self.to_dicts()
        return {name: [row[name] for row in rows] for name in ("label", "label_id", "score")}

    def __repr__(self) -> str:
        return self._repr(self.size)


def class_probabilities(logits: Tensor) -> Tensor:
    """Return probabilities (B, C) for logits (B, C), float32 under mixed precision too."""
    return torch.softmax(logits.float(), dim=-1)
