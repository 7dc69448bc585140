"""Options of requests, and examples of answers for the description of the interface."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

_MODEL = Field(None, description="Name of the model, as in /v1/models; the first if not given.", max_length=64)
_THRESHOLD = Field(None, ge=0, le=1, description="Minimum score; the model's own if not given.")


class _Options(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    model: str | None = _MODEL


class PredictOptions(_Options):
    """Options of /v1/predict, as in `regard predict`."""

    threshold: float | None = _THRESHOLD
    segments: Literal["auto", "published", "clean", "scored"] = Field(
        "auto", description="How masks of a panoptic model become segments."
    )
    multi_label: bool = Field(False, description="Give an object several labels; for models with sigmoid scores.")
    top: int = Field(5, ge=1, le=10000, description="Number of classes of a classifier.")


class ExplainOptions(_Options):
    """Options of /v1/explain, as in `regard explain`."""

    what: str | None = Field(None, max_length=40, description="Kind of maps; the first of the model if not given.")
    x: float | None = Field(None, description="With y: a point in pixels of the image.")
    y: float | None = Field(None, description="With x: a point in pixels of the image.")
    query: int | None = Field(None, description="Query of a DETR, as in the answer of /v1/predict.")
    layer: int | None = Field(None, description="From 0; negative ones count from the end. The last if not given.")
    head: int | None = Field(None, description="From 0. The mean of all if not given.")
    threshold: float | None = _THRESHOLD
    format: Literal["json", "png"] = Field("json", description="Arrays, or a picture.")


class AttentionOptions(_Options):
    """Options of /v1/attention."""

    query: int | None = Field(None, description="Query of a DETR, in the decoder.")
    x: float | None = Field(None, description="With y: a point in pixels of the image.")
    y: float | None = Field(None, description="With x: a point in pixels of the image.")
    token: int = Field(0, description="Of a vision transformer without a point: 0 class, 1 distillation token.")


_SIZE = {"height": 480, "width": 640}
_MASK = {"size": [480, 640], "counts": "Zo1h0e03M2N2N..."}
_BOX = {"xmin": 343.8, "ymin": 24.6, "xmax": 640.2, "ymax": 373.1}
_DETECTION = {"label": "cat", "label_id": 17, "score": 0.98, "box": _BOX, "query": 31}
_SEGMENT = {"id": 1, "label": "cat", "label_id": 17, "score": 0.98, "is_thing": True, "area": 5120, "query": 31}
_ERROR = {"error": {"code": "I04", "message": "JPEG is cut off before its end — copy or download it again"}}

EXAMPLES: dict[str, dict[str, Any]] = {
    "/v1/predict": {
        "detection": {
            "model": "mine", "task": "detection", "threshold": 0.5,
            "results": [{"size": _SIZE, "detections": [_DETECTION], "rejected": None}, _ERROR],
        },
        "segmentation": {
            "model": "mine", "task": "segmentation", "threshold": 0.85,
            "results": [{"size": _SIZE, "segments": [{**_SEGMENT, "mask": _MASK}], "rejected": None}],
        },
        "classification": {
            "model": "mine", "task": "classification", "threshold": None,
            "results": [{"size": _SIZE, "classes": [{"label": "tabby", "label_id": 281, "score": 0.83}]}],
        },
    },
    "/v1/explain": {
        "json": {
            "model": "mine", "what": "decoder", "size": _SIZE, "columns": 4, "rejected": None,
            "maps": [
                {
                    "title": "cat 0.98", "extent": [0, 0, 640, 480], "point": None,
                    "boxes": [[343.8, 24.6, 640.2, 373.1]], "labels": [17], "weights": [[0.01, 0.02], [0.9, 0.07]],
                }
            ],
        }
    },
    "/v1/attention": {
        "query": {
            "model": "mine", "source": "query", "size": _SIZE, "extent": [0, 0, 640, 480], "point": None,
            "layers": [{"name": "decoder 0", "shape": [8, 25, 34], "data": "zczMPQ..."}],
        }
    },
}  # fmt: skip


def answers_of(path: str) -> dict[int | str, dict[str, Any]]:
    """Return the description of the answers at a path, for OpenAPI."""
    examples = {name: {"value": value} for name, value in EXAMPLES.get(path, {}).items()}
    error = {"content": {"application/json": {"example": {"error": {**_ERROR["error"], "request_id": "5e1f0c…"}}}}}
    meanings = {
        400: "a wrong option or a malformed body", 404: "no such model", 408: "the body came too slowly",
        413: "too many bytes or images", 415: "neither an image nor multipart", 422: "the image cannot be decoded",
        503: "busy: try again after Retry-After seconds", 504: "not answered within the deadline",
    }  # fmt: skip
    refusals: dict[int | str, dict[str, Any]] = {
        status: {"description": meaning, **error} for status, meaning in meanings.items()
    }
    return {200: {"description": "OK", "content": {"application/json": {"examples": examples}}}, **refusals}


IMAGES: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "The bytes of one image file, or a form with a file for each image.",
        "content": {
            "image/*": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"image": {"type": "array", "items": {"type": "string", "format": "binary"}}},
                }
            },
        },
    }
}
