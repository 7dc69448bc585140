"""Settings of EfficientNet-Lite, and the named model."""

from __future__ import annotations

from dataclasses import dataclass

from regard.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class EfficientNetConfig:
    """Settings of an EfficientNet-Lite0.

    num_classes: number of classes.
    dropout: before the classifier.
    image_size: side of the images that the network is made for; other sizes work too.
    """

    num_classes: int = 1000
    dropout: float = 0.2
    image_size: int = 224

    def __post_init__(self) -> None:
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout={self.dropout}, expected 0 to less than 1", code="C03")


EFFICIENTNET_PRESETS: dict[str, EfficientNetConfig] = {"efficientnet_lite0": EfficientNetConfig()}
