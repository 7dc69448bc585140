"""Models. One model, one file; `regard.models.catalog` knows their names."""

from regard.models.detr import DETR, DETRConfig
from regard.models.token_merging import merge_tokens
from regard.models.vit import VisionTransformer, ViTConfig
from regard.structures.outputs import DetectionOutput, DistilledLogits

__all__ = ["DETR", "DETRConfig", "DetectionOutput", "DistilledLogits", "ViTConfig", "VisionTransformer", "merge_tokens"]
