"""Images per second and core, from the file to the batch: Regard against the authors' code with Pillow.

Both read the same files and make the same random draws. The Pillow side does what DETR's authors do: decode,
flip, resize and crop with Pillow, then `ToTensor` and `Normalize` to floats. Ours leaves uint8 pixels: the
device normalises them as part of the batch, so that this share of the work is
not measured. Boxes are left out on both sides.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional as F

from regard.benchmarks.photographs import generate_photographs
from regard.benchmarks.timing import medians
from regard.data.image_folders import list_images
from regard.data.images import read_image
from regard.data.samples import Sample
from regard.data.transforms.detection import EvaluationResize, Transform, paper_augmentation, resized_size
from regard.structures.image_batch import IMAGENET_MEAN, IMAGENET_STD

if TYPE_CHECKING:
    from rich.table import Table

SCALES = range(480, 801, 32)


@dataclass(frozen=True)
class LoadingRow:
    """Images per second on one core: medians over the rounds."""

    pipeline: str
    pillow: float
    regard: float

    @property
    def ratio(self) -> float:
        """How many times as fast Regard is."""
        return self.regard / self.pillow


def main(data: Path | None, rounds: int) -> list[LoadingRow]:
    """Measure and print the table; `data` is a folder with images, None for generated ones."""
    from rich.console import Console

    rows = run(data, rounds=rounds)
    Console().print(table(rows))
    return rows


def run(data: Path | None = None, *, num_images: int = 24, rounds: int = 7) -> list[LoadingRow]:
    """Measure training and evaluation on `num_images` images from `data` (a folder), in alternating rounds.

    Raises:
        DataError: there are no images in `data`.
    """
    with tempfile.TemporaryDirectory() as folder:
        if data is None:
            paths = generate_photographs(Path(folder), [(480, 640)] * num_images)
        else:
            every = list_images(data)
            paths = every[:: max(1, len(every) // num_images)][:num_images]
        return [
            _row("train", paths, rounds, _pillow_train, paper_augmentation()),
            _row("eval", paths, rounds, _pillow_evaluation, EvaluationResize()),
        ]


def table(rows: Sequence[LoadingRow]) -> Table:
    """Return a table of the rows."""
    from rich.table import Table

    result = Table(title="Loading: images per second and core (higher is better)")
    for header in ("pipeline", "Pillow, as the authors", "regard", "ratio"):
        result.add_column(header, justify="left" if header == "pipeline" else "right")
    for row in rows:
        result.add_row(row.pipeline, f"{row.pillow:.1f}", f"{row.regard:.1f}", f"{row.ratio:.2f}x")
    return result


def _row(
    name: str,
    paths: Sequence[Path],
    rounds: int,
    pillow: Callable[[Path, torch.Generator], Tensor],
    transform: Transform,
) -> LoadingRow:
    def ours(path: Path, generator: torch.Generator) -> Tensor:
        return transform(Sample(read_image(path)), generator).image

    def all_paths(load: Callable[[Path, torch.Generator], Tensor]) -> Callable[[int], None]:
        def load_all(number: int) -> None:
            for index, path in enumerate(paths):
                load(path, torch.Generator().manual_seed(number * len(paths) + index))

        return load_all

    seconds = medians([all_paths(pillow), all_paths(ours)], rounds)
    return LoadingRow(name, *(len(paths) / s for s in seconds))


def _pillow_train(path: Path, generator: torch.Generator) -> Tensor:
    image = Image.open(path).convert("RGB")
    if _heads(generator):
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if not _heads(generator):
        image = _pillow_resize(image, _one_of((400, 500, 600), generator), 10**9)
        width, height = (_one_of(range(min(384, n), min(600, n) + 1), generator) for n in image.size)
        top = _one_of(range(image.height - height + 1), generator)
        left = _one_of(range(image.width - width + 1), generator)
        image = image.crop((left, top, left + width, top + height))
    return _pillow_tensor(_pillow_resize(image, _one_of(SCALES, generator), 1333))


def _pillow_evaluation(path: Path, generator: torch.Generator) -> Tensor:
    return _pillow_tensor(_pillow_resize(Image.open(path).convert("RGB"), 800, 1333))


def _pillow_resize(image: Image.Image, short_side: int, max_size: int) -> Image.Image:
    height, width = resized_size(image.height, image.width, short_side, max_size)
    return image.resize((width, height), Image.Resampling.BILINEAR)


def _pillow_tensor(image: Image.Image) -> Tensor:
    return F.normalize(F.to_tensor(image), list(IMAGENET_MEAN), list(IMAGENET_STD))


def _heads(generator: torch.Generator) -> bool:
    return float(torch.rand((), generator=generator)) < 0.5


def _one_of(values: Sequence[int], generator: torch.Generator) -> int:
    return values[int(torch.randint(0, len(values), (), generator=generator))]
