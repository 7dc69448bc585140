"""Settings of MnasNets, plain and attention-augmented, and the named models."""

from __future__ import annotations

from dataclasses import dataclass

from regard.errors import ConfigError
from regard.models.configs.resnet import check_ratios


@dataclass(frozen=True, kw_only=True)
class MnasNetConfig:
    """Settings of a MnasNet.

    num_classes: number of classes.
    width: multiplier of all channels: 0.5, 0.75, 1.0, 1.3, 1.4, ...
    dropout: before the classifier.
    key_ratio, value_ratio, num_heads, position: settings of the attention; value_ratio 0 for a plain network.
    image_size: side of the images for whose maps relative tables are made; other sizes work too.
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
