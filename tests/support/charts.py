"""Charts that cost nothing, for tests of what is not a chart."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image


@contextmanager
def without_charts() -> Iterator[None]:
    """Write each chart as one white pixel: rendering them takes most of the time of a small run."""

    def write(figure: object, path: Path, **_: Any) -> None:
        Image.new("RGB", (1, 1), "white").save(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("matplotlib.figure.Figure.savefig", write)
        yield


def looks_drawn(path: Path) -> bool:
    """Whether a picture is large and has many colours."""
    with Image.open(path) as image:
        return min(image.size) > 300 and len(image.convert("RGB").getcolors(1 << 24) or []) > 20
