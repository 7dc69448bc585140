"""Files that take as long to decode as photographs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def generate_photographs(folder: Path, sizes: Sequence[tuple[int, int]]) -> list[Path]:
    """Write JPEG files with the detail, and so the size in bytes, of common photographs; return their paths.

    Args:
        sizes: (height, width) of each in pixels.
    """
    rng = np.random.default_rng(0)
    paths = []
    for index, (height, width) in enumerate(sizes):
        pixels = np.zeros((height, width, 3))
        for cells, strength in ((6, 90), (24, 40), (96, 25), (320, 15)):
            noise = rng.integers(0, 256, (cells * 3 // 4, cells, 3), dtype=np.uint8)
            smooth = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
            pixels += strength * (np.asarray(smooth) / 127.5 - 1)
        path = folder / f"{index}.jpg"
        Image.fromarray((127.5 + pixels).clip(0, 255).astype(np.uint8)).save(path, quality=95)
        paths.append(path)
    return paths
