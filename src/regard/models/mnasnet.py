"""MnasNet, plain and attention-augmented: torchvision's network with attention in its expansions.

Sources: Tan et al. 2019; Bello et al. 2019, section 4.2: in the inverted bottlenecks from the map of 28 x 28 cells on,
the last 13, the 1x1 convolution that expands becomes an augmented convolution, with four heads. In the first stage of
them attention works at half the size.
"""

from __future__ import annotations

from typing import Any

import torchvision
from torch import Tensor, nn

from regard.attention import AugmentedConv2d, attention_channels
from regard.models.configs.mnasnet import MnasNetConfig
from regard.models.resnet import POSITION_TABLES
from regard.structures.categories import ModelCard

# Positions in torchvision's `layers` of the stages from 28 x 28 on, and the side of the map that enters their first
# and their other blocks, for images of 224 pixels.
STAGES = {9: (56, 28), 10: (28, 14), 11: (14, 14), 12: (14, 7), 13: (7, 7)}


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
        self.classifier[-1].reset_parameters()  # by its inputs: torchvision's logits grow as classes become few
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
