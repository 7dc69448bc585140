"""Settings of RetinaNet, plain and attention-augmented, and the named models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from regard.config import check_choices
from regard.errors import ConfigError

GROUP_WIDTH = 8  # channels of a group of the heads' normalisation: torchvision has 32 groups of 256 channels


@dataclass(frozen=True, kw_only=True)
class RetinaNetConfig:
    """Settings of a RetinaNet; its checkpoints keep them."""

    num_classes: int = 91  # each with a sigmoid; in COCO's numbering label 0 is unused
    backbone: str = "resnet50"  # ResNet, classifier or timm/NAME; `small`, `aa_small`: a small CNN
    backbone_norm: Literal["frozen", "batch"] = "batch"  # batch normalisation of the backbone: fixed, or trained
    image_size: int = 640  # longer side of the images for whose maps a ResNet makes its tables of relative positions
    feature_maps: int = 3  # maps of the backbone in the pyramid, from the coarsest on; two coarser levels follow
    channels: int = 256  # of the pyramid and the heads
    head_norm: bool = False  # group normalisation in the heads, for training from random weights
    anchor_size: int = 32  # side of the smallest anchors of the finest level in pixels; it doubles at every level

    def __post_init__(self) -> None:
        check_choices(self)
        for name in ("num_classes", "image_size", "feature_maps", "channels", "anchor_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"model.{name} is {getattr(self, name)}, expected at least 1", code="C08")
        if self.head_norm and self.channels % GROUP_WIDTH:
            what = f"model.channels {self.channels} is not a multiple of {GROUP_WIDTH}, as model.head_norm needs it"
            raise ConfigError(what, code="C05")

    @property
    def sigmoid(self) -> bool:
        return True


# Only what differs from RetinaNet-R50. `retinanet_tiny` and its twin with attention are ours.
RETINANET_PRESETS: dict[str, RetinaNetConfig] = {
    "retinanet_resnet50": RetinaNetConfig(),
    "retinanet_resnet101": RetinaNetConfig(backbone="resnet101"),
    "retinanet_aa_resnet50": RetinaNetConfig(backbone="aa_resnet50"),
    "retinanet_aa_resnet101": RetinaNetConfig(backbone="aa_resnet101"),
    "retinanet_tiny": RetinaNetConfig(
        backbone="small", image_size=64, feature_maps=2, channels=64, head_norm=True, anchor_size=16
    ),
    "retinanet_aa_tiny": RetinaNetConfig(
        backbone="aa_small", image_size=64, feature_maps=2, channels=64, head_norm=True, anchor_size=16
    ),
}
