"""Recognises COCO itself among data in its format. No torch."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path

_MANY = 100_000  # train2017 has 118,287


def is_published_coco(folder: str | Path) -> bool:
    """Return whether a folder has COCO's own training images: `train2017` with more than 100,000 files."""
    images = Path(folder) / "train2017"
    if not images.is_dir():
        return False
    with os.scandir(images) as entries:
        return sum(1 for _ in islice(entries, _MANY + 1)) > _MANY
