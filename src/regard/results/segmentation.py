"""What `regard.predict` returns for a panoptic model."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from regard.data.images import read_image
from regard.drawing.boxes import class_color, save_picture
from regard.drawing.masks import draw_segments
from regard.errors import ConfigError, escape
from regard.structures.categories import Category
from regard.structures.segments import PanopticSegments


@dataclass(frozen=True, eq=False, repr=False)
class Segmentation:
    """One image cut into segments, things and stuff.

    Args:
        segments: ids (H, W) of the original image as displayed, with label and score of each segment.
        path: file of the image, which is read again for pictures; None where there is none.
        image: (3, H, W) uint8 RGB or a PIL image to draw on, for images that do not come from a file.
    """

    segments: PanopticSegments
    path: str | None = None
    image: Tensor | Image.Image | None = None

    def __len__(self) -> int:
        """The number of segments."""
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
        """`[{"id", "label", "score", "is_thing", "area"}, ...]`; areas in pixels."""
        return [
            {
                "id": number + 1,
                "label": self.names[number],
                "score": self.scores[number].item(),
                "is_thing": self.categories[int(self.labels[number])].is_thing,
                "area": area,
            }
            for number, area in enumerate(self.segments.areas.tolist())
        ]

    def to_json(self) -> str:
        """`to_dicts` as JSON text."""
        return json.dumps(self.to_dicts(), ensure_ascii=False, allow_nan=False)

    def plot(self) -> Image.Image:
        """The image with its segments painted over and named; small images are enlarged.

        Raises:
            ConfigError: the result has neither an image nor a path.
            DataError: the file can no longer be read.
        """
        image = self.image
        if image is None:
            if self.path is None:
                raise ConfigError("there is no image to draw on", remedy="give Segmentation an image or a path")
            image = read_image(self.path)
        colors = [class_color(label) for label in self.labels.tolist()]
        return draw_segments(image, self.ids, self.names, colors, self.scores.tolist())

    def save(self, path: str | Path) -> None:
        """Write `plot` to a picture file; its suffix tells the format. Missing folders are made.

        Raises:
            ConfigError: no picture format has this suffix.
            MachineError: the file cannot be written.
        """
        save_picture(self.plot(), path)

    def summary(self) -> str:
        """How many of each thing, and the stuff, most frequent first: `3 person, 1 dog, grass`."""
        things = {category.name for category in self.categories if category.is_thing}
        counted = Counter(self.names).most_common()
        words = [f"{count} {name}" for name, count in counted if name in things]
        words += [name for name, _ in counted if name not in things]
        return ", ".join(words) or "nothing"

    def __repr__(self) -> str:
        place = "" if self.path is None else f"{escape(self.path)}, "
        return f"Segmentation({escape(self.summary())}; {place}{self.size[0]}x{self.size[1]})"
