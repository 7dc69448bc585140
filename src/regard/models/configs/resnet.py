"""Settings of ResNets, plain and attention-augmented, and the named models."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from regard.config import check_choices
from regard.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ResNetConfig:
    """Settings of a ResNet.

    num_classes: number of classes.
    block: `basic` (two 3x3 convolutions) or `bottleneck` (1x1, 3x3, 1x1 with four times the width).
    layers: blocks of each stage.
    widths: channels of each stage, before the bottleneck's expansion.
    stem: `imagenet` (7x7 and pooling, both of stride 2) or `cifar` (3x3).
    key_ratio: kappa; 0 for a plain network.
    value_ratio: upsilon, at most 1; 1 puts attention in the place of the convolution.
    num_heads: attention heads.
    augmented_stages: stages, from 1, whose blocks are augmented.
    pooled_stages: augmented stages that attend at half the size.
    position: of `AugmentedConv2d`.
    attention: what replaces a 3x3 convolution in augmented stages: `augmented`, a smaller convolution beside global
        attention, or another kind alone, in windows of 7 cells (`stand_alone`, `local_relation`, vector attention that
        is `pairwise` or `patchwise`) or along rows and columns (`axial`).
    squeeze: channels of a block over those of its squeeze-and-excitation; 0 for none.
    image_size: side of the images for whose maps relative tables are made; other sizes work too.
    """

    num_classes: int = 1000
    block: str = "bottleneck"
    layers: tuple[int, ...] = (3, 4, 6, 3)
    widths: tuple[int, ...] = (64, 128, 256, 512)
    stem: str = "imagenet"
    key_ratio: float = 0.0
    value_ratio: float = 0.0
    num_heads: int = 8
    augmented_stages: tuple[int, ...] = (2, 3, 4)
    pooled_stages: tuple[int, ...] = (2,)
    position: str = "relative"
    attention: Literal["augmented", "stand_alone", "local_relation", "pairwise", "patchwise", "axial"] = "augmented"
    squeeze: int = 0
    image_size: int = 224

    def __post_init__(self) -> None:
        check_choices(self)
        if self.squeeze < 0:
            raise ConfigError(f"squeeze={self.squeeze}, expected at least 0", code="C03")
        if self.block not in ("basic", "bottleneck"):
            raise ConfigError(f"block={self.block}, expected basic or bottleneck", code="C03")
        if self.stem not in ("imagenet", "cifar"):
            raise ConfigError(f"stem={self.stem}, expected imagenet or cifar", code="C03")
        if len(self.layers) != len(self.widths) or not self.layers or min(self.layers + self.widths) < 1:
            what = f"layers={list(self.layers)} and widths={list(self.widths)}, expected one of each for every stage"
            raise ConfigError(what, code="C03")
        check_ratios(self.key_ratio, self.value_ratio)


def check_ratios(key_ratio: float, value_ratio: float, most: float = 1.0) -> None:
    """Raises ConfigError for shares of channels out of range."""
    if not 0 <= value_ratio <= most or not 0 <= key_ratio < math.inf:
        what = f"key_ratio={key_ratio} and value_ratio={value_ratio}, expected 0 or more and 0 to {most:g}"
        raise ConfigError(what, code="C03")


RESNET_PRESETS: dict[str, ResNetConfig] = {
    "resnet18": ResNetConfig(block="basic", layers=(2, 2, 2, 2)),
    "resnet34": ResNetConfig(block="basic"),
    "resnet50": ResNetConfig(),
    "resnet101": ResNetConfig(layers=(3, 4, 23, 3)),
    "resnet152": ResNetConfig(layers=(3, 8, 36, 3)),
    "aa_resnet18": ResNetConfig(block="basic", layers=(2, 2, 2, 2), key_ratio=0.25, value_ratio=0.25),
    "aa_resnet34": ResNetConfig(block="basic", key_ratio=0.25, value_ratio=0.25),
    "aa_resnet50": ResNetConfig(key_ratio=0.2, value_ratio=0.1),
    "aa_resnet101": ResNetConfig(layers=(3, 4, 23, 3), key_ratio=0.2, value_ratio=0.1),
    "aa_resnet152": ResNetConfig(layers=(3, 8, 36, 3), key_ratio=0.2, value_ratio=0.1),
}


def _cifar(blocks: int, augmented: bool = False) -> ResNetConfig:
    """6 n + 2 layers on 32 pixels (He et al., section 4.2). Augmented from 16 x 16 cells down, with four heads."""
    layers, widths = (blocks,) * 3, (16, 32, 64)
    if not augmented:
        return ResNetConfig(block="basic", layers=layers, widths=widths, stem="cifar", image_size=32, num_classes=10)
    return ResNetConfig(
        block="basic", layers=layers, widths=widths, stem="cifar", image_size=32, num_classes=10, key_ratio=0.25,
        value_ratio=0.25, num_heads=4, augmented_stages=(2, 3), pooled_stages=(),
    )  # fmt: skip


for _depth in (20, 32, 44, 56, 110):
    RESNET_PRESETS[f"resnet{_depth}"] = _cifar((_depth - 2) // 6)
    RESNET_PRESETS[f"aa_resnet{_depth}"] = _cifar((_depth - 2) // 6, augmented=True)
