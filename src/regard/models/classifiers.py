"""Networks that classify: their names, and how to build them. Detectors take them as backbones."""

from __future__ import annotations

from regard.errors import ConfigError
from regard.models.mnasnet import MNASNET_PRESETS, MnasNet, MnasNetConfig
from regard.models.resnet import RESNET_PRESETS, ResNet, ResNetConfig
from regard.models.san import SAN, SAN_PRESETS, SANConfig
from regard.models.vit import VIT_PRESETS, VisionTransformer, ViTConfig
from regard.models.wide_resnet import WIDE_RESNET_PRESETS, WideResNet, WideResNetConfig

Classifier = ResNet | WideResNet | MnasNet | SAN | VisionTransformer
ClassifierConfig = ResNetConfig | WideResNetConfig | MnasNetConfig | SANConfig | ViTConfig

CLASSIFIER_PRESETS: dict[str, ClassifierConfig] = {
    **RESNET_PRESETS,
    **WIDE_RESNET_PRESETS,
    **MNASNET_PRESETS,
    **SAN_PRESETS,
    **VIT_PRESETS,
}

# Layers with a row for every class.
HEADS = ("fc", "classifier", "head", "head_dist")


def build_classifier(config: ClassifierConfig) -> Classifier:
    """A network of a configuration, with random weights and without a card.

    Raises:
        ConfigError: settings that do not go together, such as heads that do not divide the channels.
    """
    if config.image_size < 1 or config.num_classes < 1:
        what = f"image_size={config.image_size} and num_classes={config.num_classes}, expected at least 1"
        raise ConfigError(what, where="model", code="C03")
    try:
        return _construct(config)
    except ValueError as error:  # of the layers, which know no settings
        raise ConfigError(str(error), where="model", code="C05") from error


def _construct(config: ClassifierConfig) -> Classifier:
    if isinstance(config, ResNetConfig):
        return ResNet(config)
    if isinstance(config, WideResNetConfig):
        return WideResNet(config)
    if isinstance(config, SANConfig):
        return SAN(config)
    if isinstance(config, ViTConfig):
        return VisionTransformer(config)
    return MnasNet(config)
