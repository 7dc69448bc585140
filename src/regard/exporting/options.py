"""Options of `regard export`. No torch."""

from __future__ import annotations

from typing import Literal

Format = Literal["onnx", "torch", "openvino"]
SUFFIXES: dict[Format, str] = {"onnx": ".onnx", "torch": ".pt2", "openvino": ".xml"}
MAX_DROP = 0.5  # points of AP, PQ or accuracy that int8 may cost
