"""Self-attention networks whose spatial layers are all vector attention (SAN), pairwise or patchwise.

Source: Zhao, Jia and Koltun 2020, section 4 and table 1. Parameters have the names of the authors' model/san.py, whose
files load. Published top-1 of ImageNet: SAN-10 74.9 pairwise and 77.1 patchwise, SAN-15 76.6 and 78.0, SAN-19 76.9 and
78.2.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from regard.attention import PairwiseVectorAttention2d, PatchwiseVectorAttention2d
from regard.models.configs.san import WIDTHS, SANConfig
from regard.structures.categories import ModelCard

SHARE = 8


class SAN(nn.Module):
    """Stages of pooling, a 1x1 convolution and blocks of attention; mean over the map; one linear layer."""

    card: ModelCard

    def __init__(self, config: SANConfig) -> None:
        super().__init__()
        self.config = config
        self.conv_in = nn.Conv2d(3, WIDTHS[0], 1, bias=False)
        self.bn_in = nn.BatchNorm2d(WIDTHS[0])
        channels = WIDTHS[0]
        for stage, (width, count, size) in enumerate(zip(WIDTHS, config.layers, config.kernel_sizes, strict=True)):
            self.add_module(f"conv{stage}", nn.Conv2d(channels, width, 1, bias=False))
            self.add_module(f"bn{stage}", nn.BatchNorm2d(width))
            blocks = [_Block(width, size, config.attention) for _ in range(count)]
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
            channels = width
        self.num_channels = channels
        self.fc = nn.Linear(channels, config.num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) -> logits (B, classes)."""
        return self.fc(self.features(images)[-1].mean(dim=(2, 3)))

    def features(self, images: Tensor) -> list[Tensor]:
        """The map of every stage, from fine to coarse, with h_i = max(1, H // 2^i), i = 1 .. 5: (B, C_i, h_i, w_i)."""
        x = self.bn_in(self.conv_in(images)).relu()
        maps = []
        for stage in range(len(WIDTHS)):
            # The authors' 2x2, which drops the last cells of odd sides. A side of one cell stays, where theirs fails.
            x = F.max_pool2d(x, [min(2, side) for side in x.shape[2:]])
            x = getattr(self, f"layer{stage}")(getattr(self, f"conv{stage}")(x))
            x = getattr(self, f"bn{stage}")(x).relu()
            maps.append(x)
        return maps


class _Block(nn.Module):
    """Normalisation, attention to a quarter of the channels, normalisation, a 1x1 convolution, and a shortcut."""

    def __init__(self, channels: int, kernel_size: int, attention: str) -> None:
        super().__init__()
        kind = PairwiseVectorAttention2d if attention == "pairwise" else PatchwiseVectorAttention2d
        self.bn1 = nn.BatchNorm2d(channels)
        self.sam = kind(channels, channels // 4, kernel_size, relation_channels=channels // 16, share=SHARE)
        self.bn2 = nn.BatchNorm2d(channels // 4)
        self.conv = nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        attended = self.bn2(self.sam(self.bn1(x).relu())).relu()
        return x + self.conv(attended)
