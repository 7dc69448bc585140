"""Models, one per file. `catalog` knows their names, `build` makes them, `configs` holds their settings."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from regard.models.configs.detr import DETRConfig as DETRConfig
    from regard.models.configs.retinanet import RetinaNetConfig as RetinaNetConfig
    from regard.models.configs.vit import ViTConfig as ViTConfig
    from regard.models.detr import DETR as DETR
    from regard.models.retinanet import RetinaNet as RetinaNet
    from regard.models.token_merging import merge_tokens as merge_tokens
    from regard.models.vit import VisionTransformer as VisionTransformer
    from regard.structures.outputs import DetectionOutput as DetectionOutput
    from regard.structures.outputs import DistilledLogits as DistilledLogits

# Imported when first used, so that names and settings are known without torch.
_MODULES = {
    "DETR": "regard.models.detr",
    "DETRConfig": "regard.models.configs.detr",
    "DetectionOutput": "regard.structures.outputs",
    "DistilledLogits": "regard.structures.outputs",
    "RetinaNet": "regard.models.retinanet",
    "RetinaNetConfig": "regard.models.configs.retinanet",
    "ViTConfig": "regard.models.configs.vit",
    "VisionTransformer": "regard.models.vit",
    "merge_tokens": "regard.models.token_merging",
}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'regard.models' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
