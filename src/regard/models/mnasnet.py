"""MnasNet, plain and attention-augmented: torchvision's network with attention in its expansions.

Sources: Tan et al. 2019; Bello et al. 2019, section 4.2: in the inverted bottlenecks from the map of 28 x 28 cells on,
the last 13, the 1x1 convolution that expands becomes an augmented convolution, with four heads. In the first stage of
them attention works at half the size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torchvision
from torch import Tensor, nn

from regard.attention import AugmentedConv2d, attention_channels
from regard.errors import ConfigError
from regard.models.resnet import POSITION_TABLES, check_ratios
from regard.structures.categories import ModelCard

# Positions in torchvision's `layers` of the stages from 28 x 28 on, and the side of the map that enters their first
# and their other blocks, for images of 224 pixels.
STAGES = {9: (56, 28), 10: (28, 14), 11: (14, 14), 12: (14, 7), 13: (7, 7)}


@dataclass(frozen=True, kw_only=True)
class MnasNetConfig:
    """Settings of a MnasNet.

    num_classes: classes.
    width: multiplier of all channels: 0.5, 0.75, 1.0, 1.3, 1.4, ...
    dropout: before the classifier.
    key_ratio, value_ratio, num_heads, position: of the attention; ratio 0 for a plain network.
    image_size: side of the images for whose maps relative tables are made; others work as well.
    """

    num_classes: int = 1000
    width: float = 1.0
    dropout: float = 0.2
    key_ratio: float = 0.0
    value_ratio: float = 0.0
    num_heads: int = 4
    position: str = "relative"
    image_size: int = 224

    def __post_init__(self) -> None:
        check_ratios(self.key_ratio, self.value_ratio, most=0.95)
        if not 0.1 <= self.width <= 10 or not 0 <= self.dropout < 1:
            what = f"width={self.width} and dropout={self.dropout}, expected 0.1 to 10 and 0 to less than 1"
            raise ConfigError(what, code="C03")


MNASNET_PRESETS: dict[str, MnasNetConfig] = {}
for _width in (0.75, 1.0, 1.25, 1.4):
    _name = f"mnasnet{str(_width).replace('.', '_')}"
    MNASNET_PRESETS[_name] = MnasNetConfig(width=_width)
    MNASNET_PRESETS[f"aa_{_name}"] = MnasNetConfig(width=_width, key_ratio=0.1, value_ratio=0.05)


class MnasNet(nn.Module):
    """`layers` and `classifier` have torchvision's names, so that its weights fit the plain networks."""

    card: ModelCard
    no_weight_decay = POSITION_TABLES

    def __init__(self, config: MnasNetConfig) -> None:
        super().__init__()
        self.config = config
        body = torchvision.models.MNASNet(config.width, config.num_classes, config.dropout)
        self.layers = body.layers
        self.classifier = body.classifier
        self.num_channels: int = self.layers[-3].out_channels
        if config.value_ratio:
            for index in STAGES:
                _augment_stage(body.layers[index], index, config)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) -> logits (B, classes)."""
        return self.classifier(self.layers(images).mean(dim=(2, 3)))

    def features(self, images: Tensor) -> list[Tensor]:
        """The last map alone: (B, 1280, h, w)."""
        return [self.layers(images)]


def _augment_stage(stage: Any, index: int, config: MnasNetConfig) -> None:
    for number, block in enumerate(stage):
        expand = block.layers[0]
        keys, values = attention_channels(expand.out_channels, config.key_ratio, config.value_ratio, config.num_heads)
        pooled = index == min(STAGES)
        side = -(-STAGES[index][min(number, 1)] * config.image_size // 224)
        side = -(-side // 2) if pooled else side
        augmented = AugmentedConv2d(
            expand.in_channels,
            expand.out_channels,
            1,
            key_channels=keys,
            value_channels=values,
            num_heads=config.num_heads,
            map_size=(side, side),
            bias=False,
            position=config.position,
            pool_attention=pooled,
        )
        assert augmented.conv is not None
        nn.init.kaiming_normal_(augmented.conv.weight, mode="fan_out", nonlinearity="relu")
        nn.init.xavier_uniform_(augmented.kqv.weight)
        nn.init.xavier_uniform_(augmented.out.weight)
        block.layers[0] = augmented
