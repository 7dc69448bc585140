"""What `regard.predict` returns for a classifier."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from regard.data.images import read_image
from regard.drawing.boxes import draw_probabilities, save_picture
from regard.errors import ConfigError, DivergedError, MachineError, escape
from regard.structures.categories import Category

if TYPE_CHECKING:
    import pandas

TOP = 5  # classes that are shown


class ClassProbability(NamedTuple):
    """A class and its probability, 0..1. label: index into the model's categories."""

    name: str
    label: int
    probability: float


@dataclass(frozen=True, eq=False, repr=False)
class Classification:
    """What one image is taken for.

    Args:
        probabilities: (C,) float32, 0..1, one for each of `categories`; moved to the CPU.
        categories: all classes of the model.
        size: (height, width) in pixels of the original image as displayed.
        path: file of the image, which is read again for pictures; None where there is none.
        image: (3, H, W) uint8 RGB or a PIL image to draw on, for images that do not come from a file.

    Raises:
        ConfigError: not one probability for each category.
        DivergedError: a probability is not finite.
    """

    probabilities: Tensor
    categories: tuple[Category, ...]
    size: tuple[int, int]
    path: str | None = None
    image: Tensor | Image.Image | None = None

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

    @property
    def label(self) -> int:
        """The most probable class, index into `categories`."""
        return int(self.probabilities.argmax())

    @property
    def name(self) -> str:
        """The most probable class."""
        return self.categories[self.label].name

    @property
    def probability(self) -> float:
        """Of the most probable class, 0..1."""
        return self.probabilities.max().item()

    def top(self, k: int = TOP) -> list[ClassProbability]:
        """The `k` most probable classes, or all if there are fewer; of equal ones the lower label comes first.

        Raises:
            ConfigError: `k` is less than 1.
        """
        if k < 1:
            raise ConfigError(f"top={k}, expected at least 1", code="C03")
        order = self.probabilities.argsort(descending=True, stable=True)[:k]
        values = self.probabilities[order].tolist()
        return [
            ClassProbability(self.categories[label].name, label, value)
            for label, value in zip(order.tolist(), values, strict=True)
        ]

    def to_dicts(self, k: int = TOP) -> list[dict[str, Any]]:
        """`[{"name", "label", "score"}, ...]` of the `k` most probable classes, best first."""
        return [{"name": name, "label": label, "score": score} for name, label, score in self.top(k)]

    def to_json(self, k: int = TOP) -> str:
        """`to_dicts` as JSON text."""
        return json.dumps(self.to_dicts(k), ensure_ascii=False, allow_nan=False)

    def to_pandas(self, k: int | None = None) -> pandas.DataFrame:
        """A table: path, name, label, score, one row for each of the `k` most probable classes; all if None.

        Raises:
            MachineError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            remedy = "install it with: pip install 'regard[interop]'"
            raise MachineError("a table needs pandas", remedy=remedy) from error

        rows = self.to_dicts(len(self.categories) if k is None else k)
        return pandas.DataFrame([{"path": self.path, **row} for row in rows])

    def plot(self, k: int = TOP) -> Image.Image:
        """The image with bars for the `k` most probable classes under it; small images are enlarged.

        Raises:
            ConfigError: the result has neither an image nor a path.
            DataError: the file can no longer be read.
        """
        image = self.image
        if image is None:
            if self.path is None:
                raise ConfigError("there is no image to draw on", remedy="give Classification an image or a path")
            image = read_image(self.path)
        best = self.top(k)
        return draw_probabilities(image, [found.name for found in best], [found.probability for found in best])

    def save(self, path: str | Path, k: int = TOP) -> None:
        """Write `plot` to a picture file; its suffix tells the format. Missing folders are made.

        Raises:
            ConfigError: no picture format has this suffix.
            MachineError: the file cannot be written.
        """
        save_picture(self.plot(k), path)

    def summary(self, k: int = 1) -> str:
        """The `k` most probable classes in words: `tabby cat 0.83, tiger cat 0.12`."""
        return ", ".join(f"{found.name} {found.probability:.2f}" for found in self.top(k))

    def __repr__(self) -> str:
        place = "" if self.path is None else f"{escape(self.path)}, "
        return f"Classification({escape(self.summary())}; {place}{self.size[0]}x{self.size[1]})"


def classify(logits: Tensor) -> Tensor:
    """Probabilities (B, C) float32 of logits (B, C), under mixed precision too."""
    return torch.softmax(logits.float(), dim=-1)
