"""`regard data show`: one picture of a data set: some of its images with their boxes or classes, and charts below."""

from __future__ import annotations

import tempfile
from pathlib import Path

from PIL import Image

from regard.data.class_images.dataset import ClassificationDataset, is_classification, open_classification
from regard.data.coco.dataset import CocoDataset, open_detection
from regard.data.coco.layout import has_panoptic
from regard.data.coco.panoptic import PanopticDataset, open_panoptic
from regard.data.formats.find import detection_splits, has_detection
from regard.drawing.boxes import class_color, draw_boxes, grid, rgb_copy, save_picture
from regard.drawing.masks import draw_masks
from regard.metrics.charts.classification import plot_class_counts
from regard.metrics.charts.detection import plot_dataset

MAX_IMAGES = 12
_COLUMNS = 4
_MAX_DRAWN = 500  # panoptic images in the charts: their boxes are read from PNG files
_LONGEST = 480  # side of an image in the sheet, in pixels


def draw_data(path: str | Path, output: Path) -> Path:
    """Draw a data set of any format of detection, panoptic segments or classes.

    Images are taken evenly from the training split, or from the validation split if there is no other.

    Raises:
        DataError: the data are wrong, or in no known format.
        ConfigError: no picture format has the suffix of `output`.
        MachineError: matplotlib is missing, or the file cannot be written.
    """
    with tempfile.TemporaryDirectory() as folder:
        if is_classification(path):
            cells, captions, chart = _classes(path, Path(folder))
        else:
            cells, captions, chart = _objects(path, Path(folder))
        with Image.open(chart) as opened:
            charts = opened.convert("RGB")
    sheet = grid(cells, columns=min(_COLUMNS, len(cells)), captions=captions, longest=_LONGEST)
    save_picture(_below(sheet, charts), output)
    return output


def _objects(path: str | Path, folder: Path) -> tuple[list[Image.Image], list[str], Path]:
    data: CocoDataset | PanopticDataset
    if has_panoptic(path) and not has_detection(path):
        data = open_panoptic(path, "train")
        shown = range(0, len(data), -(-len(data) // _MAX_DRAWN))
        chart = plot_dataset(data.objects(shown), folder, of=len(data))
    else:
        data = open_detection(path, detection_splits(path)[0])
        chart = plot_dataset(data.to_coco(), folder)
    indices = _spread(len(data))
    return [_with_boxes(data, index) for index in indices], [data.names[index] for index in indices], chart


def _with_boxes(data: CocoDataset | PanopticDataset, index: int) -> Image.Image:
    """Draw the objects of an image that are learned; outlines where all of them have one."""
    sample = data[index]
    picture = rgb_copy(sample.image)
    categories = data.categories
    colors = [class_color(label) for label in sample.labels.tolist()]
    if isinstance(data, CocoDataset) and len(sample.labels):
        annotations = data.annotations
        rows = annotations.rows_of(index)
        targets = annotations.objects.is_target[rows]
        if bool(annotations.objects.has_outline[rows][targets].all()):
            import torch

            picture = draw_masks(picture, torch.from_numpy(annotations.masks(index)), colors)
    names = [categories[label].name for label in sample.labels.tolist()]
    # The name of the only class would tell nothing, and hide small objects.
    return draw_boxes(picture, sample.boxes, names, colors, show_labels="off" if len(categories) == 1 else "auto")


def _classes(path: str | Path, folder: Path) -> tuple[list[Image.Image], list[str], Path]:
    train, val = (open_classification(path, split) for split in ("train", "val"))
    names = [category.name for category in train.categories]
    chart = plot_class_counts(train.counts(), val.counts(), names, folder)
    indices = _of_classes(train)
    cells = [rgb_copy(train[index].image) for index in indices]
    return cells, [names[int(train.labels[index])] for index in indices], chart


def _of_classes(data: ClassificationDataset) -> list[int]:
    """Return the images to show: as evenly from all classes as possible."""
    if len(data.categories) >= MAX_IMAGES:
        labels = {label: index for index, label in reversed(list(enumerate(data.labels.tolist())))}
        first = sorted(labels.values(), key=lambda index: int(data.labels[index]))
        return [first[place] for place in _spread(len(first))]
    counts: dict[int, int] = {}
    ranked = []
    for index, label in enumerate(data.labels.tolist()):
        counts[label] = counts.get(label, 0) + 1
        ranked.append((counts[label], label, index))
    chosen = sorted(ranked)[:MAX_IMAGES]
    return [index for _, _, index in sorted(chosen, key=lambda item: (item[1], item[0]))]


def _spread(count: int) -> list[int]:
    """Return up to `MAX_IMAGES` indices, evenly from 0 to `count` - 1."""
    shown = min(count, MAX_IMAGES)
    return [place * count // shown for place in range(shown)]


def _below(sheet: Image.Image, charts: Image.Image) -> Image.Image:
    """Return one picture with the charts below the sheet; the narrower one is in the middle."""
    if charts.width > sheet.width and sheet.width >= 640:
        charts = charts.resize((sheet.width, round(charts.height * sheet.width / charts.width)))
    width = max(sheet.width, charts.width)
    whole = Image.new("RGB", (width, sheet.height + charts.height), "white")
    whole.paste(sheet, ((width - sheet.width) // 2, 0))
    whole.paste(charts, ((width - charts.width) // 2, sheet.height))
    return whole
