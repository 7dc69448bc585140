"""Pictures of a training run: batches and predictions of a classifier."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from regard.drawing.boxes import grid
from regard.structures.categories import Category

MAX_IMAGES = 16  # of a batch
SIDE = 192  # pixels to which small images are enlarged
_RIGHT, _WRONG = (0, 114, 178), (213, 94, 0)  # blue and orange: colour-blind people can tell them apart


def draw_class_batch(pixels: Tensor, targets: Tensor, categories: Sequence[Category]) -> Image.Image:
    """Draw a batch as the model receives it, augmented and mixed, with its targets.

    Args:
        pixels: (B, 3, H, W) uint8.
        targets: (B,) labels, or (B, C) shares of classes.
    """
    pixels, targets = pixels[:MAX_IMAGES].cpu(), targets[:MAX_IMAGES].cpu()
    names = [categories[t].name for t in targets.tolist()] if targets.ndim == 1 else _shares(targets, categories)
    return _sheet([_enlarged(image) for image in pixels], names)


def draw_class_predictions(
    images: Sequence[Tensor], labels: Tensor, logits: Tensor, categories: Sequence[Category]
) -> Image.Image:
    """Draw images with their predicted classes and probabilities. Blue frames are right, orange ones wrong.

    Args:
        images: N of (3, H, W) uint8, of any sizes.
        labels: (N,) true labels. logits: (N, C).
    """
    probabilities, found = logits.float().cpu().softmax(1).max(1)
    drawn, captions = [], []
    for image, truth, label, probability in zip(
        images, labels.tolist(), found.tolist(), probabilities.tolist(), strict=True
    ):
        right = truth == label
        drawn.append(ImageOps.expand(_enlarged(image), 5, fill=_RIGHT if right else _WRONG))
        caption = f"{categories[label].name} ({probability:.2f})"
        captions.append(caption if right else f"{caption}, not {categories[truth].name}")
    return _sheet(drawn, captions)


def _sheet(drawn: Sequence[Image.Image], captions: Sequence[str]) -> Image.Image:
    return grid(drawn, columns=min(4, len(drawn)), captions=captions, longest=320)


def _enlarged(image: Tensor) -> Image.Image:
    picture: Image.Image = F.to_pil_image(image)
    factor = SIDE // max(picture.size)
    if factor < 2:
        return picture
    # Sharp pixels are what the network sees.
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def _shares(targets: Tensor, categories: Sequence[Category]) -> list[str]:
    """`cat 0.62 + dog 0.38` for rows of shares; the share of label smoothing is left out."""
    lines = []
    for row in targets:
        smoothing = row.min()
        shares = (row - smoothing) / max((row - smoothing).sum().item(), 1e-9)
        best, labels = torch.topk(shares, min(2, len(shares)))
        parts = [
            f"{categories[label].name} {share:.2f}"
            for share, label in zip(best.tolist(), labels.tolist(), strict=True)
            if share >= 0.005
        ]
        lines.append(" + ".join(parts))
    return lines
