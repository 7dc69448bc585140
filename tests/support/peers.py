"""Models of other libraries that several tests compare with: made once, as their random weights take a second."""

from __future__ import annotations

import copy
import functools
from typing import Any

from regard.benchmarks.detr import transformers_detr


def copied_transformers_detr() -> Any:
    """Return what `transformers_detr` returns: the same weights, in modules that a test may change."""
    return copy.deepcopy(_made())


@functools.cache
def _made() -> Any:
    return transformers_detr()
