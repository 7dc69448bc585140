"""The result of `regard.explain`: maps over one image."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from regard.drawing.boxes import class_color, grid, save_picture
from regard.errors import ConfigError, MachineError, escape
from regard.results.result import Rejected

Box = tuple[float, float, float, float]
ARRAYS = ".npz"
SHARE = 0.75  # opacity of the heat
MIN_SIDE, MAX_SIDE = 240, 480  # longer side of a map in the picture, in pixels


@dataclass(frozen=True, eq=False)
class SaliencyMap:
    """One map over the image: the attention of a query, a token, a pixel or a head.

    Args:
        weights: (h, w) float32, at least 0. Attention weights are not scaled; in a model with tokens without a place,
            such as a class token, these tokens have the rest of the sum of 1.
        title: caption in the picture.
        extent: x0, y0, x1, y1 in pixels of the original image, as displayed: the area of the (h, w) cells. It is
            larger than the image if cells reach beyond it, and smaller if the model sees only a part.
        point: x, y in pixels of the original of the attending place; None if it has none.
        boxes: (N, 4) xyxy in pixels of the original, or None.
        labels: of the boxes, index into the model's categories.
    """

    weights: Tensor
    title: str
    extent: Box
    point: tuple[float, float] | None = None
    boxes: Tensor | None = None
    labels: Sequence[int] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", self.weights.detach().float().cpu())
        if self.weights.ndim != 2:
            raise ConfigError(f"expected weights (h, w), got {tuple(self.weights.shape)}")

    def on_pixels(self, size: tuple[int, int]) -> Tensor:
        """Return the weights (H, W) at the pixels of an image of `size` (height, width), bilinear, 0 outside."""
        x0, y0, x1, y1 = self.extent
        ys = (torch.arange(size[0]) + 0.5 - y0) / (y1 - y0)
        xs = (torch.arange(size[1]) + 0.5 - x0) / (x1 - x0)
        places = torch.stack(torch.meshgrid(2 * xs - 1, 2 * ys - 1, indexing="xy"), dim=-1)
        found = F.grid_sample(
            self.weights[None, None], places[None], mode="bilinear", padding_mode="border", align_corners=False
        )[0, 0]
        inside = ((ys >= 0) & (ys <= 1))[:, None] & ((xs >= 0) & (xs <= 1))
        return found * inside


@dataclass(frozen=True, eq=False, repr=False)
class Explanation:
    """Maps of one kind over one image.

    Args:
        what: the kind of maps, as for `regard.explain`.
        maps: the maps, in reading order.
        columns: number of maps per row of the picture.
        image: the original as displayed, RGB.
        path: its file, or None.
        rejected: the best detection below the threshold, if none was above it and there is no map.
    """

    what: str
    maps: Sequence[SaliencyMap]
    columns: int
    image: Image.Image
    path: str | None = None
    rejected: Rejected | None = None

    def __len__(self) -> int:
        """Return the number of maps."""
        return len(self.maps)

    def arrays(self) -> dict[str, Any]:
        """Return all maps as arrays.

        `weights` (N, h, w) float32, or `weights_0`, `weights_1`, ... if sizes differ; `extents` (N, 4) and `points`
        (N, 2) in pixels of the original, NaN for none; `titles` (N,) text; `size` (height, width) of the original.
        """
        weights = [saliency.weights.numpy() for saliency in self.maps]
        found: dict[str, Any] = {}
        if len({one.shape for one in weights}) == 1:
            found["weights"] = np.stack(weights)
        else:
            found |= {f"weights_{number}": one for number, one in enumerate(weights)}
        nowhere = (math.nan, math.nan)
        return {
            **found,
            "extents": np.array([saliency.extent for saliency in self.maps], dtype=np.float64).reshape(-1, 4),
            "points": np.array([saliency.point or nowhere for saliency in self.maps], dtype=np.float64).reshape(-1, 2),
            "titles": np.array([saliency.title for saliency in self.maps], dtype=str),
            "size": np.array([self.image.height, self.image.width]),
        }

    def plot(self) -> Image.Image:
        """Draw all maps as heat over the grey image, each scaled from its minimum (none) to its maximum (bright).

        Raises:
            ConfigError: there is no map to draw.
        """
        if not self.maps and self.rejected is not None:
            lower = max(0.0, math.ceil(100 * self.rejected.score - 1) / 100)
            raise ConfigError(str(self.rejected), remedy=f"lower the threshold: --threshold {lower:g}", code="C09")
        if not self.maps:
            raise ConfigError(f"nothing to draw: no {self.what} maps", remedy="lower the threshold", code="C09")
        drawn = [draw_saliency(saliency, self.image) for saliency in self.maps]
        return grid(drawn, columns=min(self.columns, len(drawn)), captions=[saliency.title for saliency in self.maps])

    def save(self, path: str | Path) -> None:
        """Write `plot` to a picture file, or `arrays` to one that ends in `.npz`. Missing folders are created.

        Raises:
            ConfigError: no picture format has this suffix, or there is no map to draw.
            MachineError: the file cannot be written.
        """
        path = Path(path)
        if path.suffix.lower() != ARRAYS:
            save_picture(self.plot(), path)
            return
        packed = io.BytesIO()  # savez would add a suffix to a name that ends in .NPZ
        np.savez_compressed(packed, **self.arrays())
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(packed.getvalue())
        except OSError as error:
            raise MachineError(f"the arrays cannot be written: {error.strerror or error}", where=path) from error

    def __repr__(self) -> str:
        place = "" if self.path is None else f"; {escape(self.path)}"
        return f"Explanation({self.what}, {len(self)} maps{place})"


def draw_saliency(saliency: SaliencyMap, image: Image.Image) -> Image.Image:
    """Draw the image in grey with heat, the point and boxes, at least `MIN_SIDE` pixels large."""
    longest = max(image.size)
    scale = min(max(longest, MIN_SIDE), MAX_SIDE) / longest
    width, height = (max(1, round(side * scale)) for side in image.size)
    kernel = Image.Resampling.NEAREST if scale > 2 else Image.Resampling.LANCZOS
    grey = np.asarray(image.convert("L").resize((width, height), kernel), dtype=np.float32)[..., None] / 255
    scaled = SaliencyMap(saliency.weights, saliency.title, _times(saliency.extent, scale))
    weights = scaled.on_pixels((height, width))
    least, most = saliency.weights.min(), saliency.weights.max()
    heat = ((weights - least) / (most - least).clamp(min=torch.finfo(weights.dtype).tiny)).clamp(min=0).numpy()
    share = SHARE * heat[..., None]
    pixels = grey * (1 - share) + _colors(heat) * share
    picture = Image.fromarray((255 * pixels.clip(0, 1)).round().astype(np.uint8))
    pen = ImageDraw.Draw(picture)
    for label, box in zip(saliency.labels, [] if saliency.boxes is None else saliency.boxes.tolist(), strict=True):
        x0, y0, x1, y1 = (value * scale for value in box)
        pen.rectangle((x0, y0, max(x0, x1), max(y0, y1)), outline=class_color(label), width=2)
    if saliency.point is not None:
        x, y = (value * scale for value in saliency.point)
        pen.ellipse((x - 5, y - 5, x + 5, y + 5), fill="white", outline="black", width=2)
    return picture


def _times(extent: Box, scale: float) -> Box:
    x0, y0, x1, y1 = (value * scale for value in extent)
    return x0, y0, x1, y1


def _colors(heat: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """(H, W) 0..1 -> (H, W, 3): dark red, orange, bright yellow; told apart in grey and by the colour-blind."""
    stops = np.array([0.0, 0.5, 1.0])
    channels = ((0.45, 0.95, 1.0), (0.0, 0.45, 0.95), (0.3, 0.1, 0.5))
    return np.stack([np.interp(heat, stops, values) for values in channels], axis=-1).astype(np.float32)
