"""Time and memory until a large data set can give its first sample, next to pycocotools and torchvision.

Ours includes everything that `open_detection` and `open_classification` do: all checks, and the look for each image
file. pycocotools parses the file and builds its index; torchvision lists the class folders. Each measurement has a
fresh fork of this process, in which nothing else is counted.
"""

from __future__ import annotations

import contextlib
import io
import json
import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torchvision.datasets import ImageFolder

from regard.benchmarks.memory import measured
from regard.data.class_images.dataset import open_classification
from regard.data.coco.dataset import open_detection
from regard.errors import MachineError, install_command

if TYPE_CHECKING:
    from rich.table import Table

HEIGHT, WIDTH = 480, 640
NUM_IMAGES, NUM_OBJECTS = 120_000, 860_000  # of COCO's train2017
NUM_CLASSES, NUM_FILES = 1000, 100_000  # of the class folders
_FORMS = 2000  # different boxes and outlines; objects repeat them


@dataclass(frozen=True)
class DataRow:
    """CPU seconds and peak MiB above the imports, medians over the rounds."""

    data: str
    peer: str
    peer_seconds: float
    regard_seconds: float
    peer_memory: float
    regard_memory: float

    @property
    def ratio(self) -> float:
        """How many times as fast Regard is."""
        return self.peer_seconds / self.regard_seconds


def main(rounds: int) -> list[DataRow]:
    """Measure and print the table. The generated files take 0.7 GB for a while."""
    from rich.console import Console

    rows = run(rounds)
    Console().print(table(rows))
    return rows


def run(
    rounds: int,
    num_images: int = NUM_IMAGES,
    num_objects: int = NUM_OBJECTS,
    num_classes: int = NUM_CLASSES,
    num_files: int = NUM_FILES,
) -> list[DataRow]:
    """Measure COCO files with boxes alone and with outlines, and class folders, on generated files without pixels.

    Raises:
        MachineError: pycocotools is missing.
    """
    open_theirs = _pycocotools()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "coco")
        for outlined, what in ((False, "boxes"), (True, "boxes and outlines")):
            file = write_coco(root, num_images, num_objects, outlined=outlined)
            size = f"COCO, {num_images:,} images, {num_objects:,} {what}, {file.stat().st_size / 1e6:.0f} MB"
            open_ours = partial(open_detection, root, "train", masks=outlined)
            rows.append(_row(size, "pycocotools", partial(open_theirs, file), open_ours, rounds))
        tree = write_tree(Path(folder, "tree"), num_classes, num_files)
        what = f"class folders, {num_files:,} files of {num_classes:,} classes"
        ways = partial(ImageFolder, tree / "train"), partial(open_classification, tree, "train")
        rows.append(_row(what, "torchvision", *ways, rounds))
    return rows


def table(rows: list[DataRow]) -> Table:
    """Return a table of the rows."""
    from rich.table import Table

    result = Table(title="Opening large data: CPU seconds, and peak MiB above the imports (lower is better)")
    for header in ("data", "peer", "its seconds", "regard", "times as fast", "its MiB", "regard"):
        result.add_column(header, justify="left" if header in ("data", "peer") else "right")
    for row in rows:
        seconds = f"{row.peer_seconds:.2f}", f"{row.regard_seconds:.2f}", f"{row.ratio:.2f}x"
        result.add_row(row.data, row.peer, *seconds, f"{row.peer_memory:.0f}", f"{row.regard_memory:.0f}")
    return result


def _row(data: str, peer: str, theirs: Callable[[], object], ours: Callable[[], object], rounds: int) -> DataRow:
    """Measure both ways in alternating rounds. Round 0 brings the files into memory and is not counted."""
    found: dict[Callable[[], object], list[tuple[float, int]]] = {theirs: [], ours: []}
    for number in range(rounds + 1):
        for way in (theirs, ours) if number % 2 else (ours, theirs):
            figures = measured(_of_a_round(way))
            if number:
                found[way].append(figures)
    seconds = [statistics.median(taken for taken, _ in figures) for figures in found.values()]
    memory = [statistics.median(grown for _, grown in figures) / 2**20 for figures in found.values()]
    return DataRow(data, peer, *seconds, *memory)


def _of_a_round(way: Callable[[], object]) -> Callable[[int], object]:
    return lambda _: way()


def _pycocotools() -> Callable[[Path], object]:
    try:
        from pycocotools.coco import COCO
    except ImportError as error:
        what, remedy = "this comparison needs pycocotools", install_command("pycocotools")
        raise MachineError(what, remedy=remedy) from error

    def open_theirs(file: Path) -> object:
        with contextlib.redirect_stdout(io.StringIO()):
            return COCO(str(file))

    return open_theirs


def write_coco(root: Path, num_images: int, num_objects: int, *, outlined: bool) -> Path:
    """Write COCO data with the keys, numbers and order of train2017; images are empty files. Returns the large file."""
    rng = np.random.default_rng(0)
    ids = np.sort(rng.choice(5 * num_images, num_images, replace=False)).tolist()
    images = [
        {
            "license": 1 + number % 8,
            "file_name": f"{number:012d}.jpg",
            "coco_url": f"http://images.cocodataset.org/train2017/{number:012d}.jpg",
            "height": HEIGHT,
            "width": WIDTH,
            "date_captured": "2013-11-14 16:28:13",
            "flickr_url": f"http://farm4.staticflickr.com/3153/29{number:08d}_164f0c0b83_z.jpg",
            "id": number,
        }
        for number in ids
    ]
    categories = [{"supercategory": "things", "id": k, "name": f"class {k}"} for k in range(1, 81)]
    for split in ("train", "val"):
        (root / split).mkdir(parents=True, exist_ok=True)
    for image in images:
        (root / "train" / str(image["file_name"])).touch()
    (root / "val" / str(images[0]["file_name"])).touch()
    (root / "annotations").mkdir(exist_ok=True)
    box = {"id": 1, "image_id": ids[0], "category_id": 1, "bbox": [1, 1, 9, 9], "area": 81, "iscrowd": 0}
    few = {"images": images[:1], "annotations": [box], "categories": categories}
    (root / "annotations/instances_val.json").write_text(json.dumps(few))
    forms = [_form(rng, outlined=outlined) for _ in range(_FORMS)]
    chosen = rng.integers(0, [num_images, 80, _FORMS], (num_objects, 3)).tolist()
    numbers = (rng.permutation(num_objects) + 1).tolist()
    file = root / "annotations/instances_train.json"
    with file.open("w") as stream:
        stream.write(f'{{"info": {{"year": 2017}}, "images": {json.dumps(images)}, "annotations": [')
        for k, (image_row, category, form) in enumerate(chosen):
            outline, box_text = forms[form]
            which = f'"image_id": {ids[image_row]}, "bbox": {box_text}, "category_id": {category + 1}'
            stream.write(f'{", " if k else ""}{{{outline}, {which}, "id": {numbers[k]}}}')
        stream.write(f'], "categories": {json.dumps(categories)}}}')
    return file


def _form(rng: np.random.Generator, *, outlined: bool) -> tuple[str, str]:
    """Return the texts of an outline with its area, and of its box.

    Of the outlines, 1.2 % are run lengths of crowds, 10 % have several polygons; a polygon has about 24 points.
    """
    width, height = rng.uniform(0.03, 0.6, 2) * (WIDTH, HEIGHT)
    left, top = rng.uniform(0, 1, 2) * (WIDTH - width, HEIGHT - height)
    box = json.dumps([round(float(value), 2) for value in (left, top, width, height)])
    area, crowd = 0.6 * width * height, rng.uniform() < 0.012
    if not outlined:
        return f'"area": {area}, "iscrowd": {int(crowd)}', box
    if crowd:
        runs = list(_runs(rng, int(left), int(top), int(width), int(height)))
        outline = {"counts": [*runs, HEIGHT * WIDTH - sum(runs)], "size": [HEIGHT, WIDTH]}
        return f'"segmentation": {json.dumps(outline)}, "area": {sum(runs[1::2])}, "iscrowd": 1', box
    count = 1 if rng.uniform() < 0.9 else int(rng.integers(2, 5))
    polygons = [_polygon(rng, left, top, width, height) for _ in range(count)]
    return f'"segmentation": {json.dumps(polygons)}, "area": {area}, "iscrowd": 0', box


def _runs(rng: np.random.Generator, left: int, top: int, width: int, height: int) -> Iterator[int]:
    """Return the run lengths of a region, one run in each column of its box, without the last zeros."""
    end = 0
    for column in range(left, left + width):
        start = column * HEIGHT + top + int(rng.integers(0, height // 2 + 1))
        run = int(rng.integers(1, height // 2 + 1))
        yield start - end
        yield run
        end = start + run


def _polygon(rng: np.random.Generator, left: float, top: float, width: float, height: float) -> list[float]:
    """Return x, y, ... of a polygon that fills its box."""
    count = int(np.clip(rng.gamma(2.5, 9.0), 4, 250))
    turns = np.linspace(0, 2 * np.pi, count, endpoint=False)
    reach = rng.uniform(0.6, 1, count)
    reach[[0, count // 4, count // 2, 3 * count // 4]] = 1
    x = left + width / 2 * (1 + reach * np.cos(turns))
    y = top + height / 2 * (1 + reach * np.sin(turns))
    return np.stack((x, y), axis=1).round(2).ravel().tolist()


def write_tree(root: Path, num_classes: int, num_files: int) -> Path:
    """Write `train/CLASS/*.jpg` and one file of each class in `val`, without pixels."""
    for k in range(num_classes):
        for split, count in (("train", num_files // num_classes), ("val", 1)):
            folder = root / split / f"n{k:08d}"
            folder.mkdir(parents=True)
            for number in range(count):
                (folder / f"n{k:08d}_{number}.JPEG").touch()
    return root
