"""Numbers of a finished run of a detector that its metrics.json does not have.

Each function takes the run's folder, the data as in its settings, and the folder of another run or None, and returns
numbers by name; some also leave a picture in the run's `pictures/`. Torch is imported when one is called.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from regard.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from regard.data.coco.dataset import CocoDataset
    from regard.models.detr import DETR

COPIES = (1, 4, 8, 20)  # objects of one class in an image
COPIES_IMAGES = 60  # for each of them
LOOKED_AT = 50  # validation images whose attention is measured


def decoder_layers(run: Path, data: str, other: Path | None) -> dict[str, float]:
    """AP, 0..1, of the output of each decoder layer: `AP_1`, ..., and with suppression added: `AP_1_suppressed`, ...

    Suppression is at IoU 0.5 within a class. NaN if the data have no object. (DETR, figure 4.)
    """
    from regard.evaluation.decoder_layers import layer_detections, suppressed
    from regard.metrics.detection import evaluate_detections

    net, device = _load_detr(run)
    dataset = _open(data, net)
    truth, numbers = dataset.to_coco(), {}
    for layer, found in enumerate(layer_detections(net, dataset, device=device), start=1):
        for name, detections in ((f"AP_{layer}", found), (f"AP_{layer}_suppressed", suppressed(found))):
            value = evaluate_detections(truth, detections).stats["AP"]
            numbers[name] = math.nan if value is None else value
    return numbers


def copies(run: Path, data: str, other: Path | None) -> dict[str, float]:
    """Share of objects found, 0..1, in images with 1, 4, ... objects of one class: `found_1`, `found_4`, ...

    Otherwise the images are like those of the run's data; there are fewer objects where there is no room for all.
    Found: a detection of its class at IoU 0.5 above the best threshold of the run. (DETR, figure 5.)

    Raises:
        ConfigError: the data are not generated images (C09).
    """
    from regard.data.coco.dataset import open_detection
    from regard.data.generated.shapes import is_shapes, parse_shapes, shapes_folder
    from regard.evaluation.decoder_layers import layer_detections
    from regard.metrics.curves import count_per_image
    from regard.weights.load import best_threshold_of

    if not is_shapes(data):
        raise ConfigError("not generated images", where=data, remedy="train on --data shapes", code="C09")
    net, device = _load_detr(run)
    threshold = best_threshold_of(run)
    drawn, numbers = parse_shapes(data), {}
    for count in COPIES:
        config = replace(
            drawn, one_class=True, min_objects=count, max_objects=count, train=1, val=COPIES_IMAGES, seed=drawn.seed + 1
        )
        dataset = open_detection(shapes_folder(config), "val", categories=net.card.categories)
        found = layer_detections(net, dataset, device=device)[-1]
        images = count_per_image(dataset.to_coco(), found, score_threshold=0.5 if threshold is None else threshold)
        hits, objects = sum(image.found for image in images), sum(image.found + image.missed for image in images)
        numbers[f"found_{count}"] = hits / objects
    return numbers


def query_slots(run: Path, data: str, other: Path | None) -> dict[str, float]:
    """How far the places of boxes depend on the query that they come from; draws `pictures/query_places.png`.

    `explained`: share, 0..1, of the variance of the boxes' centres between queries, over all queries and validation
    images: 0 if all queries look alike, 1 if each has a place of its own. `small`, `wide`, `high`: shares of the boxes,
    as they are coloured in the picture. (DETR, figure 7.)
    """
    from regard.explanations.query_places import SMALL, query_places

    net, _ = _load_detr(run)
    dataset = _open(data, net)
    places = query_places(net, (dataset.image(index) for index in range(len(dataset))))
    (run / "pictures").mkdir(exist_ok=True)
    places.save(run / "pictures" / "query_places.png")
    width, height = places.boxes[..., 2], places.boxes[..., 3]
    small = width * height < SMALL
    shares = {"small": small, "wide": ~small & (width >= height), "high": ~small & (width < height)}
    return {"explained": explained(places.boxes), **{k: v.double().mean().item() for k, v in shares.items()}}


def explained(boxes: Tensor) -> float:
    """Share, 0..1, of the variance of centres that lies between queries, for boxes (N, Q, 4) cxcywh; NaN without any.

    One minus the mean variance within a query over the variance of all (eta squared of an analysis of variance).
    """
    centres = boxes[..., :2].double()
    total = (centres - centres.mean((0, 1))).square().sum()
    within = (centres - centres.mean(0)).square().sum()
    return (1 - within / total).item() if total > 0 else math.nan


def attention(run: Path, data: str, other: Path | None) -> dict[str, float]:
    """Share of cross-attention inside the box of a detection; draws `pictures/attention_over_training.jpg`.

    `inside`: share, 0..1, of the last decoder layer's weights, mean of heads, on cells with their centre in the box of
    the query with the highest score; mean over validation images. `area`: the share of cells there, which even
    attention would have. The picture has those of all evaluations of the run, one below the other. (DETR, figure 6.)
    """
    import torch

    from regard.data.samples import Sample
    from regard.data.transforms.detection import EvaluationResize
    from regard.models.evaluation_mode import evaluation_mode
    from regard.structures.image_batch import ImageBatch

    draw_training(run / "pictures")
    net, device = _load_detr(run)
    dataset = _open(data, net)
    resize = EvaluationResize(net.card.short_side, net.card.max_size)
    inside, area = [], []
    with evaluation_mode(net), torch.inference_mode():
        for index in range(min(LOOKED_AT, len(dataset))):
            batch = ImageBatch.from_images([resize(Sample(dataset.image(index))).image])
            maps = net.attention(batch.to(device).normalized(), encoder=False)
            logits = maps.output.logits[0].float()
            scores = logits.sigmoid() if net.config.sigmoid else logits.softmax(-1)[:, :-1]
            query = int(scores.amax(-1).argmax())
            cells = _inside(maps.output.boxes[0, query].cpu(), maps.feature_size)
            weights = maps.decoder_cross[-1, 0, :, query].float().mean(0).cpu()
            inside.append(weights[cells].sum().item())
            area.append(cells.double().mean().item())
    return {"inside": sum(inside) / len(inside), "area": sum(area) / len(area)}


def _inside(box: Tensor, size: tuple[int, int]) -> Tensor:
    """Return which cells (h*w,) of a map have their centre in a box (4,) cxcywh 0..1."""
    import torch

    (h, w), (x, y, width, height) = size, box.tolist()
    rows, columns = ((torch.arange(n) + 0.5) / n for n in (h, w))
    return (((rows - y).abs() <= height / 2)[:, None] & ((columns - x).abs() <= width / 2)).flatten()


def draw_training(pictures: Path) -> None:
    """Put the attention pictures of a run's evaluations one below the other; none are there without pictures."""
    from PIL import Image

    from regard.drawing.boxes import grid

    steps = {int(path.stem.rpartition("_")[2]): path for path in pictures.glob("attention_step_*.jpg")}
    if steps:
        images = [Image.open(steps[step]) for step in sorted(steps)]
        sheet = grid(images, 1, captions=[f"step {step}" for step in sorted(steps)], longest=2000)
        sheet.save(pictures / "attention_over_training.jpg", quality=80)


def _load_detr(run: Path) -> tuple[DETR, torch.device]:
    from regard.models.detr import DETR
    from regard.weights.load import load_on

    net, device = load_on(str(run), "auto")
    if not isinstance(net, DETR):
        raise ConfigError("not a DETR", where=run, code="C09")
    return net, device


def _open(data: str, net: DETR) -> CocoDataset:
    from regard.data.coco.dataset import open_detection
    from regard.data.generated.shapes import data_folder

    return open_detection(data_folder(data), "val", categories=net.card.categories)
