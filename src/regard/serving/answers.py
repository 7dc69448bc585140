"""Results and explanations as JSON."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from regard.explanations.explain import AttentionStack, Explanation
from regard.prediction.predict import Prediction
from regard.results.classification import Classification
from regard.results.result import Rejected
from regard.results.run_lengths import run_lengths
from regard.results.segmentation import Segmentation


def as_json(content: dict[str, Any]) -> bytes:
    """Return JSON as bytes. Numbers are finite: results with others are errors before they come here."""
    return json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def result_of(result: Prediction, top: int) -> dict[str, Any]:
    """Return the result for one image: its size in pixels, and `detections`, `segments` or the `top` `classes`.

    Masks are compressed run lengths as in COCO, at the size of the image: `{"size": [H, W], "counts": text}`.
    """
    height, width = result.size
    size = {"size": {"height": height, "width": width}}
    if isinstance(result, Classification):
        return {**size, "classes": result.to_dicts(top)}
    masks = run_lengths(result)
    if isinstance(result, Segmentation):
        name, rows = "segments", _with(result.to_dicts(), "query", _numbers(result.segments.queries))
    else:
        name, rows = "detections", _with(result.to_dicts(), "query", _numbers(result.queries))
    rows = rows if masks is None else _with(rows, "mask", masks)
    return {**size, name: rows, "rejected": _rejected(result.rejected)}


def explanation_of(explanation: Explanation) -> dict[str, Any]:
    """Return the maps of an explanation; fields as in `SaliencyMap`, weights row by row."""
    maps = [
        {
            "title": one.title,
            "extent": list(one.extent),
            "point": None if one.point is None else list(one.point),
            "boxes": [] if one.boxes is None else one.boxes.tolist(),
            "labels": list(one.labels),
            "weights": one.weights.tolist(),
        }
        for one in explanation.maps
    ]
    height, width = explanation.image.height, explanation.image.width
    return {
        "what": explanation.what,
        "size": {"height": height, "width": width},
        "columns": explanation.columns,
        "maps": maps,
        "rejected": _rejected(explanation.rejected),
    }


def stack_of(stack: AttentionStack, size: tuple[int, int]) -> dict[str, Any]:
    """Return the attention of a place in all layers and heads.

    `data` of a layer is base64 of its weights (heads, h, w), float32, little-endian, row by row.

    Args:
        size: (height, width) of the image in pixels.
    """
    return {
        "source": stack.source,
        "size": {"height": size[0], "width": size[1]},
        "extent": list(stack.extent),
        "point": None if stack.point is None else list(stack.point),
        "layers": [
            {"name": layer.name, "shape": list(layer.weights.shape), "data": _base64(layer.weights)}
            for layer in stack.layers
        ],
    }


def _base64(weights: Tensor) -> str:
    values = weights.detach().to("cpu", torch.float32).contiguous().numpy().astype("<f4", copy=False)
    return base64.b64encode(values.tobytes()).decode()


def _numbers(queries: Tensor | None) -> list[int] | None:
    return None if queries is None else queries.tolist()


def _with(rows: list[dict[str, Any]], name: str, values: Sequence[Any] | None) -> list[dict[str, Any]]:
    """Add a column to rows, of None if there are no values."""
    return [{**row, name: value} for row, value in zip(rows, values or [None] * len(rows), strict=True)]


def _rejected(rejected: Rejected | None) -> dict[str, Any] | None:
    """Return the best of what was below the threshold."""
    return None if rejected is None else {"label": rejected.name, "score": rejected.score}
