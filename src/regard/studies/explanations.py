"""Test attention maps: deletion and insertion on the detections of a small DETR.

    regard study explanations --minutes 4

If a map shows the evidence for a detection, deleting its pixels removes the detection sooner than a random order.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import regard
from regard.data.coco.dataset import open_detection
from regard.data.generated.shapes import data_folder
from regard.errors import ConfigError, counted
from regard.explanations.deletion import deletion_curve, detection_score, insertion_curve
from regard.explanations.explain import Explanation, SaliencyMap, explain
from regard.models.detr import DETR
from regard.safe_files import replace_text
from regard.structures.boxes import xyxy_to_cxcywh
from regard.structures.image_batch import ImageBatch
from regard.studies.folder import claim
from regard.training.launch import run_processes

DATA = "shapes:"
KINDS = ("decoder", "relevance")
LEAST = 0.5  # score of a detection that is looked at
Areas = dict[str, list[tuple[float, float]]]  # of deletion and insertion, by the kind of map


def explanations(minutes: float, images: int, output: Path) -> None:
    """Train a `detr_tiny` and measure its maps; print a table and write `areas.json`.

    Raises:
        ConfigError: a number is out of range, or the folder holds something else.
    """
    if not 0 < minutes < math.inf or images < 1:
        raise ConfigError(f"minutes={minutes} and images={images}, expected more than 0", code="C03")
    claim(output, {"minutes": minutes, "images": images})
    run = output / "detr_tiny"
    if not (run / "metrics.json").is_file():
        settings = [f"minutes={minutes}", "epochs=1000", "batch_size=16", "evaluate_every=10", "workers=0"]
        settings += ["augmentation=flip", "device=cpu", "model.num_queries=10"]
        run_processes(["train", "detr_tiny", "--data", DATA, "--output", str(run), *settings], 2)
    net = regard.load(run)
    assert isinstance(net, DETR)
    areas = measure(net.eval(), images)
    replace_text(output / "areas.json", json.dumps(areas))
    Console().print(table(areas))


def measure(net: DETR, images: int) -> Areas:
    """Measure the areas under the curves of every detection in some validation images of shapes.

    Raises:
        ConfigError: the model detects nothing in them (C09).
    """
    dataset = open_detection(data_folder(DATA), "val", categories=net.card.categories)
    generator = torch.Generator().manual_seed(0)
    areas: Areas = {name: [] for name in (*KINDS, "box, uniform", "random")}
    for index in range(min(images, len(dataset))):
        pixels = dataset[index].image
        kinds = {what: explain(net, pixels, what, threshold=LEAST) for what in KINDS}
        for number in range(len(kinds["decoder"])):
            found = {what: explanation.maps[number] for what, explanation in kinds.items()}
            one = found["decoder"]
            assert one.boxes is not None
            found["random"] = SaliencyMap(torch.rand(one.weights.shape, generator=generator), "", one.extent)
            maps = {name: saliency.on_pixels(_size(pixels)) for name, saliency in found.items()}
            maps["box, uniform"] = _inside(one.boxes[0], _size(pixels), generator)
            score = _score(net, kinds["decoder"], number)
            seen = ImageBatch.from_images([pixels]).normalized().pixels[0]
            for name, weights in maps.items():
                curves = (curve(score, seen, weights) for curve in (deletion_curve, insertion_curve))
                deletion, insertion = (curve.area for curve in curves)
                areas[name].append((deletion, insertion))
    if not areas["random"]:
        what = f"no detection above {LEAST} in {images} images: there is nothing to explain"
        raise ConfigError(what, remedy="train longer, in a new folder, with a larger --minutes", code="C09")
    return areas


def table(areas: Areas) -> Table:
    """Means over all detections, and how far they are from those of random maps, with the standard error."""
    count = len(areas["random"])
    shown = Table(title=f"Area under the curves of {counted(count, 'detection')}", title_justify="left")
    for name in ("map", "deletion (low is good)", "less than random", "insertion (high is good)", "more than random"):
        shown.add_column(name, justify="left" if name == "map" else "right")
    for name, pairs in areas.items():
        cells = [name]
        for column, sign in ((0, -1), (1, 1)):
            values, random = ([pair[column] for pair in one] for one in (pairs, areas["random"]))
            gains = [sign * (a - b) for a, b in zip(values, random, strict=True)]
            error = stdev(gains) / math.sqrt(count) if count > 1 else math.nan
            cells += [f"{mean(values):.3f}", "" if name == "random" else f"{mean(gains):.3f} ± {error:.3f}"]
        shown.add_row(*cells)
    return shown


def _size(pixels: Tensor) -> tuple[int, int]:
    return pixels.shape[-2], pixels.shape[-1]


def _score(net: DETR, found: Explanation, number: int) -> Callable[[Tensor], Tensor]:
    """How well the detection `number` is still found in changed images."""
    detection = found.maps[number]
    assert detection.boxes is not None
    (label,) = detection.labels
    width, height = found.image.size
    box = xyxy_to_cxcywh(detection.boxes[0]) / torch.tensor([width, height, width, height])

    def score(images: Tensor) -> Tensor:
        batch = ImageBatch(images, tuple((images.shape[-2], images.shape[-1]) for _ in images))
        return detection_score(net(batch), label, box, softmax=not net.config.sigmoid)

    return score


def _inside(box: Tensor, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Return random weights, larger inside the box than outside: a baseline without attention."""
    x0, y0, x1, y1 = box.round().long().tolist()
    weights = torch.rand(size, generator=generator)
    weights[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)] += 1
    return weights
