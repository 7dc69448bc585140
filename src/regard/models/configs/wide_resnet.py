"""Settings of wide residual networks, plain and attention-augmented, and the named models."""

from __future__ import annotations

from dataclasses import dataclass

from regard.errors import ConfigError
from regard.models.configs.resnet import check_ratios


@dataclass(frozen=True, kw_only=True)
class WideResNetConfig:
    """Settings of a wide residual network.

    num_classes: number of classes.
    depth: layers, 6 n + 4.
    width_factor: k; stages have 16 k, 32 k and 64 k channels.
    key_ratio, value_ratio, num_heads, position: of the attention, as in `ResNetConfig`; ratio 0 for a plain network.
    image_size: side of the images for whose maps relative tables are made; other sizes work too.
    """

    num_classes: int = 100
    depth: int = 28
    width_factor: int = 10
    key_ratio: float = 0.0
    value_ratio: float = 0.0
    num_heads: int = 8
    position: str = "relative"
    image_size: int = 32

    def __post_init__(self) -> None:
        if self.depth < 10 or (self.depth - 4) % 6:
            raise ConfigError(f"depth={self.depth}, expected 6 n + 4, such as 16, 22 or 28", code="C03")
        check_ratios(self.key_ratio, self.value_ratio)
        if self.width_factor < 1:
            raise ConfigError(f"width_factor={self.width_factor}, expected at least 1", code="C03")


WIDE_RESNET_PRESETS: dict[str, WideResNetConfig] = {
    "wide_resnet28_10": WideResNetConfig(),
    "aa_wide_resnet28_10": WideResNetConfig(key_ratio=0.2, value_ratio=0.1),
    "wide_resnet16_2": WideResNetConfig(num_classes=10, depth=16, width_factor=2),
    "aa_wide_resnet16_2": WideResNetConfig(num_classes=10, depth=16, width_factor=2, key_ratio=0.2, value_ratio=0.1),
}
