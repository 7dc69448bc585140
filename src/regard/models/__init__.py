"""Models. One model, one file; `regard.models.catalog` knows their names."""

from regard.models.detr import DETR, DETRConfig
from regard.outputs import DetectionOutput

__all__ = ["DETR", "DETRConfig", "DetectionOutput"]
