"""Masks of a result as COCO's compressed run lengths."""

from __future__ import annotations

from typing import Any

from regard.metrics.masks import encode_masks
from regard.results.detections import Detections
from regard.results.segmentation import Segmentation


def run_lengths(result: Detections | Segmentation) -> list[dict[str, Any]] | None:
    """Return `{"size": [H, W], "counts": text}` for each row, at the size of the image; None if there are no masks.

    One mask after the other is encoded, which takes a copy of it.

    Raises:
        MachineError: hotcoco is not installed.
    """
    if isinstance(result, Segmentation):
        return [encode_masks((result.ids == number)[None])[0] for number in range(1, len(result) + 1)]
    return None if result.masks is None else [encode_masks(mask[None])[0] for mask in result.masks]
