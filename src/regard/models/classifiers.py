"""Classification networks from their configurations. Detectors take them as backbones."""

from __future__ import annotations

from regard.errors import ConfigError
from regard.models.configs import ClassifierConfig
from regard.models.configs.efficientnet import EfficientNetConfig
from regard.models.configs.resnet import ResNetConfig
from regard.models.configs.san import SANConfig
from regard.models.configs.vit import ViTConfig
from regard.models.configs.wide_resnet import WideResNetConfig
from regard.models.efficientnet import EfficientNet
from regard.models.exported import ExportedClassifier
from regard.models.mnasnet import MnasNet
from regard.models.resnet import ResNet
from regard.models.san import SAN
from regard.models.vit import VisionTransformer
from regard.models.wide_resnet import WideResNet

Classifier = ResNet | WideResNet | MnasNet | EfficientNet | SAN | VisionTransformer | ExportedClassifier

# Attributes of classifiers, ours and others', that hold their final linear layers, with one row per class.
HEADS = ("fc", "classifier", "head", "head_dist", "heads")


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
    if isinstance(config, EfficientNetConfig):
        return EfficientNet(config)
    return MnasNet(config)
