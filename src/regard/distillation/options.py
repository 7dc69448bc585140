"""Options of `regard distill cache`. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from regard.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class StorageOptions:
    """How to store logits.

    Args:
        views: augmented views of each image.
        top: number of most probable classes to keep per view, such as 10 of 1000; all if not given.
        dtype: float16 or float32.
        batch_size: images per batch.

    Raises:
        ConfigError: a value is out of range (C03).
    """

    views: int = 10
    top: int | None = None
    dtype: str = "float16"
    batch_size: int = 64

    def __post_init__(self) -> None:
        if self.views < 1 or self.batch_size < 1 or self.dtype not in ("float16", "float32"):
            what = f"views={self.views}, batch_size={self.batch_size}, dtype={self.dtype}"
            raise ConfigError(f"{what}, expected at least 1, at least 1, and float16 or float32", code="C03")
