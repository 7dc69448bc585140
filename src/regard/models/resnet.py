"""ResNets, plain and attention-augmented, for ImageNet and for the small images of CIFAR.

Sources: He et al. 2016, with the stride in the 3x3 convolution as torchvision has it, whose weights fit the plain
networks; Bello et al. 2019, section 4.2: in every block of the last stages one 3x3 convolution, the first of a basic
block and the only one of a bottleneck, becomes an augmented convolution. On the largest of these maps attention works
at half the size.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from regard.attention import AugmentedConv2d, attention_channels
from regard.models.attention_in_place import SqueezeExcitation, attention_in_place
from regard.models.configs.resnet import ResNetConfig
from regard.structures.categories import ModelCard

# Parameters without weight decay; see `parameter_groups`.
POSITION_TABLES = frozenset({"height_table", "width_table"})


class ResNet(nn.Module):
    """Stem, stages of residual blocks, mean over the map, one linear layer. Parameters have torchvision's names."""

    card: ModelCard
    no_weight_decay = POSITION_TABLES

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        self.config = config
        block = Bottleneck if config.block == "bottleneck" else BasicBlock
        large = config.stem == "imagenet"
        width = config.widths[0]
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False) if large else nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if large else nn.Identity()
        side = -(-config.image_size // (4 if large else 1))
        channels = width
        for stage, (count, stage_width) in enumerate(zip(config.layers, config.widths, strict=True), start=1):
            blocks = []
            for number in range(count):
                stride = 2 if stage > 1 and number == 0 else 1
                side = -(-side // stride)
                blocks.append(block(channels, stage_width, stride, _attention_of(config, stage, side), config.squeeze))
                channels = stage_width * block.expansion
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
        self.num_channels = channels
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, config.num_classes)
        initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) -> logits (B, classes)."""
        return self.fc(self.avgpool(self.features(images)[-1]).flatten(1))

    def features(self, images: Tensor) -> list[Tensor]:
        """The map of every stage, from fine to coarse: (B, C_i, h_i, w_i)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        maps = []
        for stage in range(1, len(self.config.layers) + 1):
            x = getattr(self, f"layer{stage}")(x)
            maps.append(x)
        return maps


@dataclass(frozen=True)
class BlockAttention:
    """Settings of the attention in a block. `side`: side of the map for which relative tables are made."""

    kind: str
    key_ratio: float
    value_ratio: float
    num_heads: int
    position: str
    pooled: bool
    side: int


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; attention augments the first."""

    expansion = 1

    def __init__(
        self, in_channels: int, width: int, stride: int, attention: BlockAttention | None, squeeze: int = 0
    ) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, width, stride, attention)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = conv3x3(width, width, 1, None)
        self.bn2 = nn.BatchNorm2d(width)
        self.excitation = SqueezeExcitation(width, squeeze) if squeeze else None
        self.downsample = _bypass(in_channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        bypass = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        return self.relu((x if self.excitation is None else self.excitation(x)) + bypass)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut; attention augments the 3x3."""

    expansion = 4

    def __init__(
        self, in_channels: int, width: int, stride: int, attention: BlockAttention | None, squeeze: int = 0
    ) -> None:
        super().__init__()
        out_channels = width * self.expansion
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width, stride, attention)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.excitation = SqueezeExcitation(out_channels, squeeze) if squeeze else None
        self.downsample = _bypass(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        bypass = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        x = self.bn3(self.conv3(x))
        return self.relu((x if self.excitation is None else self.excitation(x)) + bypass)


def conv3x3(in_channels: int, out_channels: int, stride: int, attention: BlockAttention | None) -> nn.Module:
    """A 3x3 convolution without bias, augmented if `attention` is given."""
    if attention is None:
        return nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
    if attention.kind != "augmented":
        heads, side = attention.num_heads, attention.side
        return attention_in_place(attention.kind, in_channels, out_channels, stride, heads, side)
    keys, values = attention_channels(out_channels, attention.key_ratio, attention.value_ratio, attention.num_heads)
    return AugmentedConv2d(
        in_channels,
        out_channels,
        3,
        key_channels=keys,
        value_channels=min(values, out_channels),
        num_heads=attention.num_heads,
        map_size=(attention.side, attention.side),
        stride=stride,
        bias=False,
        position=attention.position,
        pool_attention=attention.pooled,
    )


def initialize(model: nn.Module) -> None:
    """Normal weights that keep the variance of gradients (He et al. 2015), as torchvision's ResNets have them."""
    for module in reversed(list(model.modules())):  # parts first
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, AugmentedConv2d) and module.value_channels:
            # Linear layers without a ReLU behind them.
            nn.init.xavier_uniform_(module.kqv.weight)
            nn.init.xavier_uniform_(module.out.weight)


def _attention_of(config: ResNetConfig, stage: int, side: int) -> BlockAttention | None:
    is_plain = config.attention == "augmented" and not config.value_ratio
    if is_plain or stage not in config.augmented_stages:
        return None
    pooled = stage in config.pooled_stages and config.attention == "augmented"
    side = -(-side // 2) if pooled else side
    return BlockAttention(
        config.attention, config.key_ratio, config.value_ratio, config.num_heads, config.position, pooled, side
    )


def _bypass(in_channels: int, out_channels: int, stride: int) -> nn.Module | None:
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels))
