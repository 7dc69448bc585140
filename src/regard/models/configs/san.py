"""Settings of SANs, and the named models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from regard.config import check_choices
from regard.errors import ConfigError

WIDTHS = (64, 256, 512, 1024, 2048)  # channels of the five stages


@dataclass(frozen=True, kw_only=True)
class SANConfig:
    """Settings of a SAN.

    num_classes: number of classes.
    attention: kind of vector attention.
    layers: blocks of each of the five stages.
    kernel_sizes: sides of the windows of each stage.
    image_size: side of the images that the network is made for; other sizes work too.
    """

    num_classes: int = 1000
    attention: Literal["pairwise", "patchwise"] = "pairwise"
    layers: tuple[int, ...] = (3, 3, 4, 6, 3)
    kernel_sizes: tuple[int, ...] = (3, 7, 7, 7, 7)
    image_size: int = 224

    def __post_init__(self) -> None:
        check_choices(self)
        if not len(self.layers) == len(self.kernel_sizes) == len(WIDTHS) or min(self.layers + self.kernel_sizes) < 1:
            what = f"layers={list(self.layers)} and kernel_sizes={list(self.kernel_sizes)}"
            raise ConfigError(f"{what}, expected {len(WIDTHS)} numbers of at least 1 each", code="C03")
        if any(size % 2 == 0 for size in self.kernel_sizes):
            raise ConfigError(f"kernel_sizes={list(self.kernel_sizes)}, expected odd numbers", code="C03")


SAN_PRESETS: dict[str, SANConfig] = {
    "san10_pairwise": SANConfig(layers=(2, 1, 2, 4, 1)),
    "san10_patchwise": SANConfig(layers=(2, 1, 2, 4, 1), attention="patchwise"),
    "san15_pairwise": SANConfig(layers=(3, 2, 3, 5, 2)),
    "san15_patchwise": SANConfig(layers=(3, 2, 3, 5, 2), attention="patchwise"),
    "san19_pairwise": SANConfig(),
    "san19_patchwise": SANConfig(attention="patchwise"),
}
