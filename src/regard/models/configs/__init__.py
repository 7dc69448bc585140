"""Settings of every model family and the named models: dataclasses and data, no torch."""

from __future__ import annotations

from regard.models.configs.detr import DETR_PRESETS, DETRConfig, DETRDemoConfig
from regard.models.configs.efficientnet import EFFICIENTNET_PRESETS, EfficientNetConfig
from regard.models.configs.mnasnet import MNASNET_PRESETS, MnasNetConfig
from regard.models.configs.resnet import RESNET_PRESETS, ResNetConfig
from regard.models.configs.retinanet import RETINANET_PRESETS, RetinaNetConfig
from regard.models.configs.san import SAN_PRESETS, SANConfig
from regard.models.configs.vit import VIT_PRESETS, ViTConfig
from regard.models.configs.wide_resnet import WIDE_RESNET_PRESETS, WideResNetConfig

DetectorConfig = DETRConfig | DETRDemoConfig | RetinaNetConfig
ClassifierConfig = ResNetConfig | WideResNetConfig | MnasNetConfig | EfficientNetConfig | SANConfig | ViTConfig
ModelConfig = DetectorConfig | ClassifierConfig

CLASSIFIER_PRESETS: dict[str, ClassifierConfig] = {
    **RESNET_PRESETS,
    **WIDE_RESNET_PRESETS,
    **MNASNET_PRESETS,
    **EFFICIENTNET_PRESETS,
    **SAN_PRESETS,
    **VIT_PRESETS,
}
CONFIGS: dict[str, ModelConfig] = {
    **DETR_PRESETS,
    "detr_demo": DETRDemoConfig(),
    **RETINANET_PRESETS,
    **CLASSIFIER_PRESETS,
}

# Backbones for images of 32 to 256 pixels (`models/backbone.py`), which nobody has trained on ImageNet.
SMALL_BACKBONES = ("small", "aa_small")

# The default configuration of each model family, by the name of its dataclass, which checkpoints keep.
FAMILIES: dict[str, ModelConfig] = {type(config).__name__: type(config)() for config in CONFIGS.values()}
