"""`regard predict` over a folder of mixed photographs: its share of the model's own speed.

The model alone is its engine on tensors that are ready, of the shapes and in the batches of the command, on all cores.
The command decodes, resizes, computes and writes a file of results, or pictures. Both take turns in alternating rounds.
Before that, the command's results are compared with those of the plain path, one image after the other.

Time on the clock is what a user waits for; beside other work on the machine it is noisy. CPU time of all threads is
not: its share is what two cores without other work reach if none of them ever waits.

Weights are random, so the threshold is chosen such that an image has a few detections or segments.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from regard.benchmarks.photographs import generate_photographs
from regard.data.image_folders import list_images
from regard.models.build import Detector, Model, build, predicts_masks
from regard.models.configs import CONFIGS
from regard.models.detr import DETR
from regard.prediction.files import predict_files
from regard.prediction.lanes import Planned, in_batches, planned
from regard.prediction.options import PredictionOptions
from regard.prediction.predict import Prediction, ReadyModel, make_ready, predict_each
from regard.structures.categories import Category
from regard.structures.image_batch import ImageBatch

if TYPE_CHECKING:
    from rich.table import Table

COMPARED = 12  # images whose results are compared
FOUND = 5  # detections or segments of an image
# (height, width) of generated photographs: of the web, of data sets, of cameras and telephones.
SIZES = (
    (194, 259), (480, 640), (427, 640), (640, 480), (600, 800), (768, 1024), (960, 1280), (1200, 1600), (1080, 1920),
    (2048, 1536), (2250, 3000), (3024, 4032),
)  # fmt: skip


class Measured(NamedTuple):
    """A model of the benchmark. sizes: short side and maximum of the long side in pixels. images: how many files."""

    name: str
    sizes: tuple[int, int]
    images: int
    panoptic: bool = False


MODELS = (
    Measured("detr_tiny", (320, 534), 200),
    Measured("detr_lite", (320, 534), 200),
    Measured("detr_lite_panoptic", (320, 534), 100, panoptic=True),
    Measured("deit_small_patch16_224", (224, 224), 200),
    Measured("retinanet_resnet50", (640, 640), 60),
    Measured("detr_resnet50", (800, 1333), 40),
)


@dataclass(frozen=True)
class Share:
    """Share of the model's own speed that the command reaches: median, least and most over the rounds.

    by_cpu: the same by CPU time of all threads, median.
    """

    median: float
    least: float
    most: float
    by_cpu: float


@dataclass(frozen=True)
class PredictRow:
    """alone: images a second of the model on ready tensors, median. found: results of an image. threads: of torch."""

    model: str
    threads: int
    images: int
    found: float
    alone: float
    json: Share
    pictures: Share


def main(data: Path | None, rounds: int) -> list[PredictRow]:
    """Measure all models and print the table; `data`: a folder with images, None generates some."""
    from rich.console import Console

    rows = run(data, rounds)
    Console().print(table(rows))
    return rows


def run(data: Path | None, rounds: int = 5, *, models: Sequence[Measured] = MODELS) -> list[PredictRow]:
    """Measure models over the images of a folder, or over generated ones, in alternating rounds.

    Raises:
        DataError: there are no images in `data`.
    """
    with tempfile.TemporaryDirectory() as folder:
        if data is None:
            most = max(model.images for model in models)
            files = generate_photographs(Path(folder), [SIZES[number % len(SIZES)] for number in range(most)])
        else:
            files = list_images(data)
        return [_measure(model, files[: model.images], rounds) for model in models]


def table(rows: Sequence[PredictRow]) -> Table:
    """Return a table of the rows."""
    from rich.table import Table

    found = Table(title=f"regard predict: share of the model's own speed, {torch.get_num_threads()} threads")
    headers = (
        "model", "images", "found in each", "model alone, images/s", "with --json", "by CPU", "with --output", "by CPU",
    )  # fmt: skip
    for header in headers:
        found.add_column(header, justify="left" if header == "model" else "right", overflow="fold")
    for row in rows:
        cells = []
        for share in (row.json, row.pictures):
            cells += [f"{share.median:.0%} ({share.least:.0%} to {share.most:.0%})", f"{share.by_cpu:.0%}"]
        found.add_row(row.model, str(row.images), f"{row.found:.1f}", f"{row.alone:.2f}", *cells)
    return found


def _measure(measured: Measured, files: Sequence[Path], rounds: int) -> PredictRow:
    net = _network(measured)
    options = _few_results(net, files[:COMPARED])
    found = _compare(net, files[:COMPARED], options)
    ready = make_ready(net, options, device="cpu", keep_pixels=False)
    batches = list(in_batches(planned(files, ready.input_size), None))
    with tempfile.TemporaryDirectory() as folder:
        results, drawn = Path(folder, "results.json"), Path(folder, "drawn")
        ways: tuple[Callable[[], object], ...] = (
            _alone(ready, batches, _mask_count(net, files[:COMPARED], options)),
            lambda: list(predict_files(net, files, json_file=results, options=options)),
            lambda: list(predict_files(net, files, output=drawn, options=options)),
        )
        alone, with_json, with_pictures = _rounds(ways, rounds)
    seconds = statistics.median(spent.wall for spent in alone)
    shares = [_share(alone, spent) for spent in (with_json, with_pictures)]
    name = f"{measured.name}, {measured.sizes[0]} pixels"
    return PredictRow(name, torch.get_num_threads(), len(files), found, len(files) / seconds, *shares)


def _network(measured: Measured) -> Model:
    torch.manual_seed(0)
    config = CONFIGS[measured.name]
    names = (Category(n, f"class {n}", is_thing=n % 2 == 0 or not measured.panoptic) for n in range(config.num_classes))
    net = build(config, measured.name, tuple(names), measured.sizes).eval()
    net.card = replace(net.card, panoptic=measured.panoptic)
    return net


def _few_results(net: Model, files: Sequence[Path]) -> PredictionOptions:
    """Return options with the threshold in the widest gap of the scores around `FOUND` results an image."""
    if not isinstance(net, Detector):
        return PredictionOptions()
    every = predict_each(net, files, options=PredictionOptions(threshold=0.0))
    scores = sorted((score for result in every for score in _scores(net, result)), reverse=True)
    first, last = (int(len(files) * FOUND * part) for part in (0.8, 1.2))
    gaps = [(a - b, (a + b) / 2) for a, b in zip(scores[first:last], scores[first + 1 :], strict=False)]
    return PredictionOptions(threshold=max(gaps)[1] if gaps else 0.0)


def _mask_count(net: Model, files: Sequence[Path], options: PredictionOptions) -> int:
    """Return for how many queries of an image the model computes a mask, before some are dropped."""
    if not isinstance(net, DETR) or not predicts_masks(net):
        return 0
    counts: list[int] = []
    assert isinstance(net.mask_head, nn.Module)
    hook = net.mask_head.register_forward_hook(lambda module, inputs, masks: counts.append(len(masks)))
    try:
        list(predict_each(net, files, options=options))
    finally:
        hook.remove()
    return round(sum(counts) / len(files))


def _scores(net: Model, result: Prediction) -> list[float]:
    """Return the scores of the detections or segments, or of the classes that the command lists."""
    most = None if isinstance(net, Detector) else PredictionOptions().top
    return [row["score"] for row in result.to_dicts()[:most]]


def _compare(net: Model, files: Sequence[Path], options: PredictionOptions) -> float:
    """Check that the command's results are those of the plain path; return the number of results of an image."""
    plain = list(predict_each(net, files, options=options))
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "results.json")
        lines = list(predict_files(net, files, json_file=target, options=options))
        content = json.loads(target.read_text())
    if isinstance(net, Detector):
        expected = [f"{result.path}: {result.summary()}" for result in plain]
        assert lines == expected, f"the results of {net.card.name} differ: {lines} and {expected}"
    if isinstance(content, list):  # segments are compared by class alone
        rows = [row for part in content for row in part.get("classes", [part])]
        wanted = [score for result in plain for score in _scores(net, result)]
        difference = max((abs(row["score"] - score) for row, score in zip(rows, wanted, strict=True)), default=0.0)
        assert difference < 1e-4, f"the scores of {net.card.name} differ by {difference}"
    return sum(len(_scores(net, result)) for result in plain) / len(files)


class _Spent(NamedTuple):
    """Seconds. cpu: of all threads."""

    wall: float
    cpu: float


def _rounds(ways: Sequence[Callable[[], object]], rounds: int) -> list[list[_Spent]]:
    """Return the time of each way in each round. Rounds alternate as in `medians`, which measures one core."""
    spent: list[list[_Spent]] = [[] for _ in ways]
    for number in range(rounds + 1):
        turn = list(zip(ways, spent, strict=True))
        for way, times in turn if number % 2 else reversed(turn):
            wall, cpu = time.perf_counter(), time.process_time()
            way()
            if number:
                times.append(_Spent(time.perf_counter() - wall, time.process_time() - cpu))
    return spent


def _share(alone: Sequence[_Spent], command: Sequence[_Spent]) -> Share:
    by_wall = [model.wall / whole.wall for model, whole in zip(alone, command, strict=True)]
    by_cpu = [model.cpu / whole.cpu for model, whole in zip(alone, command, strict=True)]
    return Share(statistics.median(by_wall), min(by_wall), max(by_wall), statistics.median(by_cpu))


def _alone(ready: ReadyModel, batches: Sequence[Sequence[Planned]], masks: int) -> Callable[[], None]:
    """Return the model on tensors as the command makes them, one after the other, with `masks` masks an image."""
    shapes = [(len(batch), *(batch[0].shape or (1, 1))) for batch in batches]
    most = max(count * height * width for count, height, width in shapes)
    values = torch.randn(3 * most, generator=torch.Generator().manual_seed(0))
    net: Any = ready.net

    @torch.no_grad()
    def way() -> None:
        for count, height, width in shapes:
            # Channels last, as the command's batches are.
            pixels = values[: 3 * count * height * width].view(count, height, width, 3).permute(0, 3, 1, 2)
            if not isinstance(net, Detector):
                net(pixels)
                continue
            batch = ImageBatch(pixels, ((height, width),) * count)
            if predicts_masks(net):
                output = net(batch, masks=False)
                image, query = torch.arange(count).repeat_interleave(masks), torch.arange(masks).repeat(count)
                net.masks(output, image, query)
            else:
                net(batch)

    return way
