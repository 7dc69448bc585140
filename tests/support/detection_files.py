"""The same small detection data in the layouts of several programs, written without the code under test."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

Box = tuple[float, float, float, float]  # x, y, width, height in pixels


@dataclass(frozen=True)
class Picture:
    """An image file with its objects: class name and box."""

    file: Path
    size: tuple[int, int]  # width, height
    objects: Sequence[tuple[str, Box]]


def draw_pictures(folder: Path, count: int, names: Sequence[str] = ("cat", "dog"), seed: int = 0) -> list[Picture]:
    """Different images of noise with 0 to 3 boxes of whole pixels; every class has an object."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    pictures = []
    for number in range(count):
        width, height = (int(side) for side in rng.integers(30, 70, 2))
        file = folder / f"photo.{seed}-{number}.png"
        Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(file)
        objects = []
        for k in range(len(names) if number == 0 else int(rng.integers(0, 4))):
            x, y = (int(place) for place in rng.integers(0, 15, 2))
            w, h = (int(side) for side in rng.integers(3, 15, 2))
            objects.append((names[k % len(names)], (x, y, w, h)))
        pictures.append(Picture(file, (width, height), objects))
    return pictures


def pictures_of_coco(root: Path, split: str) -> list[Picture]:
    """The images of a COCO folder without crowds, in the order of their names."""
    (file,) = (
        root.glob(f"annotations/instances_{split}*7.json")
        if "coco" in root.name
        else [root / f"annotations/instances_{split}.json"]
    )
    document = json.loads(file.read_text())
    folder = root / file.stem.removeprefix("instances_")
    names = {row["id"]: row["name"] for row in document["categories"]}
    of_image: dict[int, list] = {row["id"]: [] for row in document["images"]}
    for row in document["annotations"]:
        if not row["iscrowd"]:
            of_image[row["image_id"]].append((names[row["category_id"]], tuple(row["bbox"])))
    rows = sorted(document["images"], key=lambda row: row["file_name"])
    return [Picture(folder / r["file_name"], (r["width"], r["height"]), of_image[r["id"]]) for r in rows]


def copy_images(pictures: Sequence[Picture], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for picture in pictures:
        shutil.copyfile(picture.file, folder / picture.file.name)


def write_yolo(pictures: Sequence[Picture], images: Path, labels: Path, names: Sequence[str]) -> None:
    """Images and label files, with all digits of the numbers."""
    copy_images(pictures, images)
    labels.mkdir(parents=True, exist_ok=True)
    for picture in pictures:
        lines = []
        for name, (x, y, w, h) in picture.objects:
            width, height = picture.size
            values = ((x + w / 2) / width, (y + h / 2) / height, w / width, h / height)
            lines.append(" ".join([str(names.index(name)), *map(repr, values)]))
        (labels / f"{picture.file.stem}.txt").write_text("\n".join(lines))


def write_voc(pictures: Sequence[Picture], images: Path, annotations: Path, *, sizes: bool = True) -> None:
    """Images and XML files: pixels are counted from 1, both corners are inside."""
    copy_images(pictures, images)
    annotations.mkdir(parents=True, exist_ok=True)
    for picture in pictures:
        width, height = picture.size if sizes else (0, 0)
        lines = ["<annotation>", f"<filename>{picture.file.name}</filename>"]
        lines.append(f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>")
        for name, (x, y, w, h) in picture.objects:
            corners = f"<xmin>{x + 1!r}</xmin><ymin>{y + 1!r}</ymin><xmax>{x + w!r}</xmax><ymax>{y + h!r}</ymax>"
            lines.append(f"<object><name>{name}</name><bndbox>{corners}</bndbox></object>")
        (annotations / f"{picture.file.stem}.xml").write_text("\n".join([*lines, "</annotation>"]))


def write_csv(pictures: Sequence[Picture], images: Path, file: Path, *, corners: bool = True) -> None:
    """Images, and rows as TensorFlow's tutorials have them, or with x, y, w, h."""
    copy_images(pictures, images)
    header = "filename,width,height,class,xmin,ymin,xmax,ymax" if corners else "image;label;x;y;w;h"
    rows = [header]
    for picture in pictures:
        width, height = picture.size
        for name, (x, y, w, h) in picture.objects:
            if corners:
                rows.append(f"{picture.file.name},{width},{height},{name},{x!r},{y!r},{x + w!r},{y + h!r}")
            else:
                rows.append(f"{picture.file.name};{name};{x!r};{y!r};{w!r};{h!r}")
        if not picture.objects:
            rows.append(f"{picture.file.name},{width},{height},,,,," if corners else f"{picture.file.name};;;;;")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(rows))
