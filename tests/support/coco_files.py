"""A small COCO folder that tests change: images of noise, and one box in each."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def noise(seed: int, height: int = 64, width: int = 64) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


def write_split(
    folder: Path,
    file: Path,
    images: Mapping[str, Image.Image],
    objects: Sequence[tuple[str, int, list[float]]],
    categories: Sequence[Mapping[str, Any]] = ({"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}),
) -> None:
    """Write images `name: picture`, and the file with objects (image name, category id, box)."""
    folder.mkdir(parents=True, exist_ok=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, (name, image) in enumerate(images.items(), start=1):
        image.save(folder / name, exif=image.getexif())
        rows.append({"id": number, "file_name": name, "width": image.width, "height": image.height})
    ids = {row["file_name"]: row["id"] for row in rows}
    annotations = [
        {
            "id": k,
            "image_id": ids[name],
            "category_id": category,
            "bbox": box,
            "area": box[2] * box[3],
            "iscrowd": 0,
        }
        for k, (name, category, box) in enumerate(objects, start=1)
    ]
    document = {"images": rows, "annotations": annotations, "categories": list(categories)}
    file.write_text(json.dumps(document))


def write_pair(root: Path, count: int = 2) -> Path:
    """`train` and `val` of `count` images with a cat and a dog each."""
    for split, start in (("train", 0), ("val", 100)):
        images = {f"{k}.png": noise(start + k) for k in range(count)}
        objects = [(name, label, [5.0 * label, 5, 20, 20]) for name in images for label in (1, 2)]
        write_split(root / split, root / f"annotations/instances_{split}.json", images, objects)
    return root


def change(file: Path, mutate: Any) -> None:
    """Change a JSON document in place."""
    document = json.loads(file.read_text())
    mutate(document)
    file.write_text(json.dumps(document))
