"""torchvision's RetinaNet on attention-augmented ResNets: the experiment of Bello et al. 2019, section 4.3."""

from __future__ import annotations

from dataclasses import replace

from torchvision.models.detection import RetinaNet
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from regard.errors import unknown_name
from regard.models.classifiers import build_classifier
from regard.models.configs import CLASSIFIER_PRESETS
from regard.models.configs.resnet import ResNetConfig

CHANNELS = 256  # of the pyramid
KNOWN = [
    name
    for name, config in CLASSIFIER_PRESETS.items()
    if isinstance(config, ResNetConfig) and config.stem == "imagenet"
]


def retinanet(backbone: str = "aa_resnet50", num_classes: int = 91, image_size: int = 640) -> RetinaNet:
    """A RetinaNet with random weights, all of which are trained, as in the paper.

    It is torchvision's own model: images as a list of (3, H, W) in 0..1, in training targets of `boxes` (n, 4) corners
    in pixels and `labels` (n,), and losses or detections as a dict. The tensors of `resnet50` are torchvision's, whose
    own function freezes batch norm with an epsilon of 0 once it has loaded its COCO weights; here it stays as trained.

    Published AP of COCO from scratch: ResNet-50 36.8 and augmented 38.2, ResNet-101 38.5 and augmented 39.2.

    Args:
        backbone: one of our ResNets for large images, plain or augmented; stages 2 to 4 go into the pyramid.
        num_classes: classes, with background at 0.
        image_size: longer side of the images for whose maps relative tables are made; others work as well. The paper
            trains with 640.

    Raises:
        ConfigError: no such network.
    """
    if backbone not in KNOWN:
        raise unknown_name("backbone", backbone, KNOWN, code="C01")
    body = build_classifier(replace(CLASSIFIER_PRESETS[backbone], image_size=image_size))
    widths = [body.num_channels // 4, body.num_channels // 2, body.num_channels]
    pyramid = BackboneWithFPN(
        body,
        return_layers={"layer2": "0", "layer3": "1", "layer4": "2"},
        in_channels_list=widths,
        out_channels=CHANNELS,
        extra_blocks=LastLevelP6P7(CHANNELS, CHANNELS),
    )
    return RetinaNet(pyramid, num_classes)
