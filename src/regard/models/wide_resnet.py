"""Wide residual networks for images of 32 pixels, plain and attention-augmented.

Sources: Zagoruyko and Komodakis 2016; Bello et al. 2019, section 4.1: the first 3x3 convolution of every block becomes
an augmented convolution, on whole maps. Shortcuts have no parameters (averages, and zeros for new channels): so the
plain network has the 36.3 million that the paper gives for 100 classes.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from regard.models.configs.wide_resnet import WideResNetConfig
from regard.models.resnet import POSITION_TABLES, BlockAttention, conv3x3, initialize
from regard.structures.categories import ModelCard


class WideResNet(nn.Module):
    """A 3x3 convolution, three stages of blocks with normalisation first, mean over the map, one linear layer."""

    card: ModelCard
    no_weight_decay = POSITION_TABLES

    def __init__(self, config: WideResNetConfig) -> None:
        super().__init__()
        self.config = config
        count, side, channels = (config.depth - 4) // 6, config.image_size, 16
        self.conv1 = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        stages = []
        for stage in range(3):
            width = 16 * 2**stage * config.width_factor
            blocks = []
            for number in range(count):
                stride = 2 if stage > 0 and number == 0 else 1
                side = -(-side // stride)
                attention = None
                if config.value_ratio:
                    attention = BlockAttention(
                        "augmented",
                        config.key_ratio,
                        config.value_ratio,
                        config.num_heads,
                        config.position,
                        False,
                        side,
                    )
                blocks.append(PreActivationBlock(channels, width, stride, attention))
                channels = width
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3 = stages
        self.bn = nn.BatchNorm2d(channels)
        self.num_channels = channels
        self.fc = nn.Linear(channels, config.num_classes)
        initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) -> logits (B, classes)."""
        return self.fc(self.features(images)[-1].mean(dim=(2, 3)))

    def features(self, images: Tensor) -> list[Tensor]:
        """The map of every stage, from fine to coarse: (B, C_i, h_i, w_i)."""
        first = self.layer1(self.conv1(images))
        second = self.layer2(first)
        return [first, second, self.bn(self.layer3(second)).relu()]


class PreActivationBlock(nn.Module):
    """Norm, ReLU, convolution, twice, and a shortcut; attention augments the first convolution."""

    def __init__(self, in_channels: int, width: int, stride: int, attention: BlockAttention | None) -> None:
        super().__init__()
        self.stride = stride
        self.new_channels = width - in_channels
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv3x3(in_channels, width, stride, attention)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width, 1, None)

    def forward(self, x: Tensor) -> Tensor:
        bypass = x if self.stride == 1 else F.avg_pool2d(x, self.stride, ceil_mode=True)
        bypass = F.pad(bypass, (0, 0, 0, 0, 0, self.new_channels))
        x = self.conv1(self.bn1(x).relu())
        return self.conv2(self.bn2(x).relu()) + bypass
