"""A folder of small photographs of several shapes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def write_photos(folder: Path, count: int, shapes: Sequence[tuple[int, int]], suffix: str = ".png") -> list[Path]:
    """Write `count` smooth random images, whose shapes (height, width) take turns; return them in order."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    paths = [folder / f"{number:04}{suffix}" for number in range(count)]
    for number, path in enumerate(paths):
        coarse = Image.fromarray(rng.integers(0, 256, (4, 6, 3), np.uint8))
        height, width = shapes[number % len(shapes)]
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(path)
    return paths
