"""EfficientNet-Lite0: a small convolutional network that runs well on CPUs.

Sources: Tan and Le 2019 (EfficientNet-B0); Liu 2020 and the authors' `lite/` folder: no squeeze-and-excitation, ReLU6
for Swish, and stem and head of fixed width. Parameter names follow timm's `tf_efficientnet_lite0`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.models.configs.efficientnet import EfficientNetConfig
from regard.structures.categories import ModelCard
from regard.structures.image_batch import renormalized

STEM, HEAD = 32, 1280  # channels of the first and of the last convolution


class Stage(NamedTuple):
    """A row of EfficientNet's table 1. expansion: hidden channels of a block over its input channels."""

    blocks: int
    kernel_size: int
    stride: int
    expansion: int
    channels: int


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)
MEAN = STD = (0.5, 0.5, 0.5)  # of the images of the published weights
MAPS = (1, 2, 4, 6)  # the last stage of each stride from 4 to 32


class EfficientNet(nn.Module):
    """EfficientNet-Lite0. It takes images normalised like those of every other model here.

    Its published weights want pixels of -1 to 1 (mean and deviation 0.5): `features` converts them first.
    """

    card: ModelCard
    head_parts = ("conv_head", "bn2")  # layers after the last feature map, beside the classifier

    def __init__(self, config: EfficientNetConfig) -> None:
        super().__init__()
        self.config = config
        self.conv_stem = SameConv2d(3, STEM, 3, stride=2)
        self.bn1 = _norm(STEM)
        self.blocks = nn.Sequential()
        channels = STEM
        for stage in STAGES:
            strides = [stage.stride] + [1] * (stage.blocks - 1)
            blocks: list[nn.Module] = []
            for stride in strides:
                kind = DepthwiseSeparable if stage.expansion == 1 else InvertedResidual
                blocks.append(kind(channels, stage, stride))
                channels = stage.channels
            self.blocks.append(nn.Sequential(*blocks))
        self.num_channels = channels
        self.conv_head = nn.Conv2d(channels, HEAD, 1, bias=False)
        self.bn2 = _norm(HEAD)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(HEAD, config.num_classes)
        self._reset_parameters()
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) -> logits (B, classes)."""
        x = F.relu6(self.bn2(self.conv_head(self.features(images)[-1])))
        return self.classifier(self.dropout(x.mean(dim=(2, 3))))

    def features(self, images: Tensor) -> list[Tensor]:
        """Normalised images -> maps of strides 4, 8, 16 and 32 with 24, 40, 112 and 320 channels."""
        # Channels last: a third faster on a CPU, forward and backward.
        images = images.contiguous(memory_format=torch.channels_last)
        x = F.relu6(self.bn1(self.conv_stem(renormalized(images, MEAN, STD))))
        maps = []
        for index, stage in enumerate(self.blocks):
            x = stage(x)
            if index in MAPS:
                maps.append(x)
        return maps

    def freeze_early_stages(self) -> None:
        """Freeze the stem and the stages up to stride 8: half of the time of a training step."""
        for part in (self.conv_stem, self.bn1, self.blocks[: MAPS[1] + 1]):
            part.requires_grad_(False)

    def _reset_parameters(self) -> None:
        """Draw convolutions from a normal distribution by their outputs, as the authors' code does.

        The class layer keeps torch's distribution by its inputs. The authors' is by its outputs: with few classes its
        logits would be so large that fine-tuning begins with wrong answers of full confidence.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                outputs = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
                nn.init.normal_(module.weight, std=(2 / outputs) ** 0.5)


class SameConv2d(nn.Conv2d):
    """A convolution whose map has ceil(H / stride) rows, as in TensorFlow: an odd pixel of padding comes last.

    Args:
        stride: 1 or 2.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1, groups: int = 1
    ) -> None:
        padding = kernel_size // 2 if stride == 1 else 0
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.stride[0] == 1:
            return super().forward(x)
        size = self.kernel_size[0]
        rows, columns = (size - 2 + side % 2 for side in x.shape[-2:])
        x = F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
        return super().forward(x)


class DepthwiseSeparable(nn.Module):
    """The first block: a depthwise convolution and a 1x1 convolution."""

    def __init__(self, in_channels: int, stage: Stage, stride: int) -> None:
        super().__init__()
        self.conv_dw = SameConv2d(in_channels, in_channels, stage.kernel_size, stride=stride, groups=in_channels)
        self.bn1 = _norm(in_channels)
        self.conv_pw = nn.Conv2d(in_channels, stage.channels, 1, bias=False)
        self.bn2 = _norm(stage.channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv_pw(F.relu6(self.bn1(self.conv_dw(x)))))


class InvertedResidual(nn.Module):
    """1x1 convolution that expands, depthwise convolution, 1x1 convolution that narrows; a bypass where sizes agree."""

    def __init__(self, in_channels: int, stage: Stage, stride: int) -> None:
        super().__init__()
        hidden = stage.expansion * in_channels
        self.conv_pw = nn.Conv2d(in_channels, hidden, 1, bias=False)
        self.bn1 = _norm(hidden)
        self.conv_dw = SameConv2d(hidden, hidden, stage.kernel_size, stride=stride, groups=hidden)
        self.bn2 = _norm(hidden)
        self.conv_pwl = nn.Conv2d(hidden, stage.channels, 1, bias=False)
        self.bn3 = _norm(stage.channels)
        self.has_bypass = stride == 1 and in_channels == stage.channels

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self.bn1(self.conv_pw(x)))
        y = F.relu6(self.bn2(self.conv_dw(y)))
        y = self.bn3(self.conv_pwl(y))
        return x + y if self.has_bypass else y


def _norm(channels: int) -> nn.BatchNorm2d:
    """Return batch normalisation with the constants of the authors' TensorFlow code."""
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)
