"""Time and memory of a detector and a transformer as images, batches and queries grow, beside the arithmetic floor.

The floor is the time of the arithmetic alone: the operations of the model over the rate of a large product of
matrices or of a convolution, whichever is higher, measured in the same rounds. Weights are random. Detectors take
images of 4 : 3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from regard.benchmarks.memory import peak_memory
from regard.benchmarks.timing import large_products, medians
from regard.models.build import Detector, build
from regard.models.catalog import preset
from regard.models.configs.detr import DETRConfig
from regard.models.engine import optimize
from regard.structures.image_batch import ImageBatch

if TYPE_CHECKING:
    from rich.table import Table

DETECTOR, CLASSIFIER = "detr_resnet50", "deit_small_patch16_224"
SHORT_SIDES = (240, 360, 480, 640, 800)  # of the detector's images, pixels
CLASSIFIER_SIDES = (160, 224, 320, 448, 640)
BATCHES = (1, 2, 4, 8)  # at 360 pixels for the detector, 224 for the classifier
QUERIES = (25, 100, 400, 1600)  # at 360 pixels


class Point(NamedTuple):
    """What is measured: `what` grows to `value`, and with it the images (B, 3, H, W)."""

    model: str
    what: str
    value: int
    shape: tuple[int, int, int]
    queries: int | None = None


@dataclass(frozen=True)
class CostRow:
    """A point of a curve. seconds: of a batch on one core, with the engine. floor: of its arithmetic. memory: MiB."""

    model: str
    what: str
    value: int
    seconds: float
    floor: float
    gigaflops: float
    memory: float


def points() -> list[Point]:
    """Return the points of all curves."""
    found = [Point(DETECTOR, "short side", side, (1, side, side * 4 // 3)) for side in SHORT_SIDES]
    found += [Point(CLASSIFIER, "side", side, (1, side, side)) for side in CLASSIFIER_SIDES]
    for batch in BATCHES:
        found.append(Point(DETECTOR, "images", batch, (batch, 360, 480)))
        found.append(Point(CLASSIFIER, "images", batch, (batch, 224, 224)))
    return found + [Point(DETECTOR, "queries", count, (1, 360, 480), count) for count in QUERIES]


def main(rounds: int, output: Path) -> list[CostRow]:
    """Measure, print the table and draw the curves."""
    from rich.console import Console

    rows = run(rounds)
    Console().print(table(rows))
    draw(rows, output)
    print(output)
    return rows


def run(rounds: int = 3, *, measured: Sequence[Point] | None = None) -> list[CostRow]:
    """Measure points, each in rounds that alternate with the product of matrices."""
    return [_measure(point, rounds) for point in (points() if measured is None else measured)]


def table(rows: Sequence[CostRow]) -> Table:
    """Return a table of the rows."""
    from rich.table import Table

    found = Table(title="Cost of a batch on one core", title_justify="left")
    for name in ("model", "", "", "G", "seconds", "floor", "ratio", "MiB"):
        is_text = name == "model"
        found.add_column(name, justify="left" if is_text else "right", no_wrap=not is_text, overflow="fold")
    for row in rows:
        numbers = f"{row.seconds:.3f}", f"{row.floor:.3f}", f"{row.seconds / row.floor:.2f}x", f"{row.memory:.0f}"
        found.add_row(row.model, row.what, str(row.value), f"{row.gigaflops:.1f}", *numbers)
    return found


def draw(rows: Sequence[CostRow], path: Path) -> None:
    """Draw time with its floor above, memory below; a column for what grows, a line for each model."""
    from regard.metrics.charts.style import BLUE, ORANGE, apply, figure, save

    columns = (("short side", "side"), ("images",), ("queries",))
    labels = "side, pixels (short side of detectors)", "images of a batch", "queries"
    picture = figure(11, 6)
    for number, (names, label) in enumerate(zip(columns, labels, strict=True)):
        above, below = (picture.add_subplot(2, 3, number + 1 + 3 * line) for line in (0, 1))
        for model, color in ((DETECTOR, BLUE), (CLASSIFIER, ORANGE)):
            mine = [row for row in rows if row.model == model and row.what in names]
            if not mine:
                continue
            values = [row.value for row in mine]
            above.plot(values, [row.seconds for row in mine], "o-", color=color, label=model)
            above.plot(values, [row.floor for row in mine], "--", color=color, label="its arithmetic")
            below.plot(values, [row.memory for row in mine], "o-", color=color, label=model)
        for axes, what in ((above, "seconds a batch, one core"), (below, "MiB")):
            axes.set(xlabel=label, ylabel=what)
            axes.set_ylim(bottom=0)
            apply(axes)
        if above.lines:
            above.legend(frameon=False, fontsize=8)
    save(picture, path)


def _measure(point: Point, rounds: int) -> CostRow:
    torch.manual_seed(0)
    config = preset(point.model)
    if isinstance(config, DETRConfig) and point.queries is not None:
        config = replace(config, num_queries=point.queries)
    model = build(config, point.model).eval()
    engine = optimize(model.requires_grad_(False))
    batch, height, width = point.shape
    images = torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(0))
    inputs = ImageBatch(images, ((height, width),) * batch) if isinstance(model, Detector) else images
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(inputs)
    operations = counter.get_total_flops()
    products = large_products()
    ways: list[Callable[[int], object]] = [lambda _: engine(inputs), *products]
    memory = peak_memory(ways[0]) / 2**20
    with torch.inference_mode():
        seconds, *of_products = medians(ways, rounds)
    floor = operations / max(count / each for count, each in zip(products.values(), of_products, strict=True))
    return CostRow(point.model, point.what, point.value, seconds, floor, operations / 1e9, memory)
