"""What `Detections`, `Segmentation` and `Classification` have in common."""

from __future__ import annotations

import json
import math
import operator
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from PIL import Image, ImageShow
from torch import Tensor

from regard.data.images import read_image
from regard.drawing.boxes import rgb_copy, save_picture
from regard.errors import ConfigError, MachineError, escape, install_command, two_digits, unknown_name
from regard.structures.categories import Category

if TYPE_CHECKING:
    import pandas


class Rejected(NamedTuple):
    """The best of an image of which nothing scored above the threshold. score, threshold: 0..1. name: its class."""

    score: float
    name: str
    threshold: float

    def __str__(self) -> str:
        return f"nothing above {two_digits(self.threshold)}; best score {two_digits(self.score)} {self.name}"


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Result(ABC):
    """The prediction for one image: a sequence of rows, one dict for each detection, segment or class.

    Every row has `label` (class name), `label_id` (index into the model's categories) and `score` (0..1).
    `len(result)` counts the rows, `result[i]` is row i, iteration gives one row after the other, and
    `to_dicts()`, `to_json()` and `to_pandas()` give all of them.

    Args:
        path: the image file, which `plot` reads again; None if the image does not come from a file.
        image: (3, H, W) uint8 RGB or a PIL image to draw on, for images that do not come from a file.
    """

    path: str | None = None
    image: Tensor | Image.Image | None = None

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of rows."""

    @abstractmethod
    def to_dicts(self) -> list[dict[str, Any]]:
        """Return all rows as dicts of plain Python values."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.to_dicts())

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one row, the same as `to_dicts()[index]`.

        Raises:
            ConfigError: the index is not a number (C02).
        """
        return self.to_dicts()[row_number(index)]

    def to_json(self) -> str:
        """Return `to_dicts()` as JSON text; non-ASCII names stay readable."""
        return json.dumps(self.to_dicts(), ensure_ascii=False, allow_nan=False)

    def to_pandas(self) -> pandas.DataFrame:
        """Return a table with one line for each row; its first column is the path of the image.

        Raises:
            MachineError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise MachineError("a table needs pandas", remedy=install_command("pandas")) from error
        return pandas.DataFrame({"path": [self.path] * len(self), **self._columns()})

    @abstractmethod
    def plot(self) -> Image.Image:
        """Draw the result on its image; small images are enlarged.

        Raises:
            ConfigError: the result has neither an image nor a path.
            DataError: the file can no longer be read.
        """

    def save(self, path: str | Path) -> None:
        """Write `plot()` to a picture file; the suffix chooses the format. Create missing folders.

        Raises:
            ConfigError: the suffix is not that of a picture format.
            MachineError: the file cannot be written.
        """
        save_picture(self.plot(), path)

    def show(self) -> None:
        """Show `plot()`: below the cell of a notebook, else in the picture viewer of the system.

        Raises:
            MachineError: there is no viewer.
        """
        picture = self.plot()
        shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
        if shell is not None and hasattr(shell, "kernel"):  # a notebook; a terminal has no kernel
            sys.modules["IPython"].display.display(picture)
        elif not ImageShow.show(picture):
            raise MachineError("no picture viewer is installed", remedy="write a file: result.save('out.png')")

    @abstractmethod
    def summary(self) -> str:
        """Return the result in a few words."""

    @abstractmethod
    def _columns(self) -> dict[str, Any]:
        """Return the columns of `to_pandas`."""

    def _pixels(self) -> Tensor | Image.Image:
        """Return the image to draw on."""
        if self.image is not None:
            return self.image
        if self.path is None:
            name = type(self).__name__
            raise ConfigError(f"{name} has no image to draw on", remedy=f"create {name} with an image or a path")
        return read_image(self.path)

    def _crops(self, boxes_xyxy: Tensor) -> list[Image.Image]:
        """Cut boxes (N, 4) out of the image, widened to whole pixels; a box beyond the image gives its nearest one."""
        picture = rgb_copy(self._pixels())
        width, height = picture.size
        crops = []
        for x0, y0, x1, y1 in boxes_xyxy.tolist():
            left, top = min(max(math.floor(x0), 0), width - 1), min(max(math.floor(y0), 0), height - 1)
            right, bottom = min(max(math.ceil(x1), left + 1), width), min(max(math.ceil(y1), top + 1), height)
            crops.append(picture.crop((left, top, right, bottom)))
        return crops

    def _repr(self, size: tuple[int, int]) -> str:
        place = "" if self.path is None else f"{escape(self.path)}, "
        return f"{type(self).__name__}({escape(self.summary())}; {place}{size[0]}x{size[1]})"


def row_number(index: Any) -> int:
    """Return an index as an integer.

    Raises:
        ConfigError: it is none, such as the name of a column (C02).
    """
    try:
        return operator.index(index)
    except TypeError as error:
        what = f"index {index!r:.60}, expected the number of a row"
        raise ConfigError(what, remedy='result[0]["label"] is the label of the first row', code="C02") from error


def chosen_rows(
    scores: Tensor, labels: Tensor, categories: Sequence[Category], classes: str | Sequence[str] | None, above: float
) -> Tensor:
    """Return (N,) bool: the rows of some classes, all if None, with a score above `above`.

    Raises:
        ConfigError: no such class (C01).
    """
    kept = scores > above
    if classes is None:
        return kept
    label_of = {category.name: label for label, category in enumerate(categories)}
    wanted = [classes] if isinstance(classes, str) else list(classes)
    unknown = next((name for name in wanted if name not in label_of), None)
    if unknown is not None:
        known = list(label_of)
        remedy = f"known: {', '.join(known[:10])}" + (f" and {len(known) - 10} more" if len(known) > 10 else "")
        raise unknown_name("class", str(unknown), known, code="C01", remedy=remedy)
    return kept & torch.isin(labels, torch.tensor([label_of[name] for name in wanted], dtype=labels.dtype))
