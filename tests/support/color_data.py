"""A classification data set that anything can learn, and a classifier that knows it already: the brightest channel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from regard.structures.categories import Category, ModelCard
from regard.structures.image_batch import IMAGENET_MEAN, IMAGENET_STD

COLORS = ("red", "green", "blue")


def color_image(label: int, number: int, size: tuple[int, int] = (20, 24)) -> np.ndarray:
    """(H, W, 3) uint8: noise, with one channel brighter than the others."""
    image = np.random.default_rng((label, number)).integers(0, 120, (*size, 3), dtype=np.uint8)
    image[..., label] += 100
    return image


def write_colors(root: Path, train: int = 8, val: int = 4, names: tuple[str, ...] = COLORS) -> Path:
    """`train/red/0.png` and so on; sizes differ from image to image."""
    for split, count in (("train", train), ("val", val)):
        for label, name in enumerate(names):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                size = (20 + number, 24)
                Image.fromarray(color_image(label, number + 1000 * (split == "val"), size)).save(
                    folder / f"{number}.png"
                )
    return root


class ColorClassifier(nn.Module):
    """Logits for red, green and blue: the channels' means, times a learnt number. It keeps the batches it is given."""

    def __init__(self, categories: tuple[Category, ...] | None = None, side: int = 16) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(8.0))
        categories = categories or tuple(Category(i, name) for i, name in enumerate(COLORS))
        self.card = ModelCard("colors", categories, side, side)
        self.batches: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.batches.append(images)
        mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
        return self.scale * (images * std + mean).mean(dim=(2, 3))
