"""Generated detection data: coloured shapes on a landscape, with boxes, masks and panoptic labels, as a COCO folder.

The same options give the same bytes. `--data shapes` means these images: a small detector learns them in minutes, with
nothing to download. `--data shapes_hard` have more classes, objects and sizes, more of an object may be hidden, and
there are lines that are no objects. Our own tests use them too.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from regard.data.coco.outlines import run_lengths
from regard.data.generated.cache import cached_folder
from regard.data.paths import refuse_address
from regard.errors import ConfigError

SHAPES = ("circle", "square", "triangle", "star", "cross", "heart")
STUFF = ("sky", "ground")
FIRST_STUFF_ID = 101
SUPERSAMPLING = 4  # outlines are drawn at this multiple of the size and reduced, for smooth edges
MAX_TURN = 0.06  # of a full turn, either way: shapes are nearly upright
VERSION = 1  # part of the cache key: raise it when the same options give other bytes


@dataclass(frozen=True, kw_only=True)
class ShapesConfig:
    """Options of generated images. As text: `shapes:size=96,train=2000,classes=5`."""

    size: int = 64  # height and width of the images in pixels
    train: int = 4000  # images for training
    val: int = 250  # images for validation
    classes: int = 3  # number of SHAPES to use, from the first
    min_objects: int = 1  # in an image; fewer if there is no room for them
    max_objects: int = 4  # in an image
    min_scale: float = 0.25  # extent of an object as a share of the image
    max_scale: float = 0.5  # maximum extent of an object as a share of the image
    min_visible: float = 0.6  # share of an object that later objects must leave visible
    clutter: int = 0  # lines in an image that are no objects, behind and before them
    one_class: bool = False  # whether all objects of an image are of one class
    seed: int = 0  # other seeds give other images

    def __post_init__(self) -> None:
        limits = (
            ("size", 32, 2048), ("train", 1, 1_000_000), ("val", 1, 1_000_000), ("classes", 1, len(SHAPES)),
            ("min_objects", 0, self.max_objects), ("max_objects", 1, 50), ("min_scale", 0.05, self.max_scale),
            ("max_scale", 0.05, 0.9), ("min_visible", 0.1, 1), ("clutter", 0, 100), ("seed", 0, 2**31),
        )  # fmt: skip
        for name, low, high in limits:
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"{name}={getattr(self, name)}, expected {low} to {high}", where="shapes", code="C03")

    @property
    def fingerprint(self) -> str:
        """Short hash of everything that the images depend on."""
        text = json.dumps([VERSION, self.options()], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:10]

    def options(self) -> dict[str, Any]:
        """Return all options; the later ones only if they change anything: images from before keep their bytes."""
        same = {
            field.name for field in fields(self) if field.name in LATER and getattr(self, field.name) == field.default
        }
        return {name: value for name, value in asdict(self).items() if name not in same}


LATER = ("min_visible", "clutter", "one_class")  # options that came after images had been generated
NAMED: dict[str, ShapesConfig] = {
    "shapes": ShapesConfig(),
    "shapes_hard": ShapesConfig(
        classes=6, min_objects=2, max_objects=8, min_scale=0.15, max_scale=0.6, min_visible=0.35, clutter=6
    ),
}


def parse_shapes(text: str) -> ShapesConfig:
    """Parse `shapes`, `shapes_hard`, or one of them with options, such as `shapes:key=value,...`.

    Raises:
        ConfigError: an unknown option (C01), or a wrong value (C02, C03).
    """
    from regard.config import apply_overrides

    name, _, options = text.partition(":")
    return apply_overrides(NAMED[name], [o for o in options.split(",") if o], where=text)


def is_shapes(data: str) -> bool:
    """Whether `--data` names generated images with boxes: one of `NAMED`, with or without options."""
    return data.partition(":")[0] in NAMED


def data_folder(data: str | Path) -> Path:
    """Return the folder that `--data` names; for the text `shapes...` that of the generated images.

    Generates the images at the first call, in the cache folder.

    Raises:
        ConfigError: `shapes`, and there is a folder of that name (C09); `shapes:` always means the generated images.
        DataError: an address (A64).
    """
    refuse_address(data)
    if isinstance(data, Path) or not is_shapes(data):
        return Path(data)
    if Path(data).is_dir():
        what = f"{data} means generated images, but there is also a folder of that name"
        raise ConfigError(what, where=data, remedy=f"write ./{data} for the folder, {data}: for the images", code="C09")
    return shapes_folder(parse_shapes(data))


def shapes_folder(config: ShapesConfig) -> Path:
    """Return the folder of generated images, written at the first call to the cache folder."""
    return cached_folder(f"shapes-{config.size}px-{config.fingerprint}", lambda folder: write_shapes(config, folder))


def write_shapes(config: ShapesConfig, folder: Path) -> None:
    """Write images and annotations as a COCO folder: `train/`, `val/`, `annotations/`.

    Raises:
        ConfigError: `folder` exists and is not empty (C11).
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError("the folder is not empty", where=folder, remedy="name another folder", code="C11")
    (folder / "annotations").mkdir(parents=True)
    for number, (split, count) in enumerate((("train", config.train), ("val", config.val))):
        (folder / split).mkdir()
        (folder / "annotations" / f"panoptic_{split}").mkdir()
        scenes = (render_scene(config, (config.seed, number, i)) for i in range(count))
        _write_split(config, folder, split, scenes)


@dataclass(frozen=True)
class Scene:
    """A rendered image.

    Args:
        image: (S, S, 3) uint8, RGB.
        segments: (S, S) int, 0.. for objects, -1 for sky, -2 for ground.
        labels: index into SHAPES of each object.
    """

    image: np.ndarray
    segments: np.ndarray
    labels: list[int]


def render_scene(config: ShapesConfig, seed: Sequence[int]) -> Scene:
    """Render one image, which depends on the arguments alone."""
    rng = np.random.default_rng(list(seed))
    image, segments = _landscape(config.size, rng)
    for _ in range(config.clutter // 2):
        _draw_line(image, rng)
    labels: list[int] = []
    wanted = int(rng.integers(config.min_objects, config.max_objects + 1))
    only = int(rng.integers(config.classes)) if config.one_class else None
    areas: list[int] = []
    for _ in range(20 * wanted):  # positions that would hide too much of another object are drawn again
        if len(labels) == wanted:
            break
        label = int(rng.integers(config.classes)) if only is None else only
        alpha = _draw_shape(SHAPES[label], config, rng)
        mask = alpha > 0.5
        left = np.bincount(segments[~mask & (segments >= 0)], minlength=len(labels))[: len(labels)]
        if mask.any() and all(now >= config.min_visible * full for now, full in zip(left, areas, strict=True)):
            image += alpha[..., None] * (_paint(image, mask, rng) - image)
            segments[mask] = len(labels)
            labels.append(label)
            areas.append(int(mask.sum()))
    for _ in range(config.clutter - config.clutter // 2):
        _draw_line(image, rng)
    noise = rng.normal(0, 4, image.shape)
    return Scene((image + noise).clip(0, 255).astype(np.uint8), segments, labels)


def _landscape(size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw sky above a tilted horizon and ground below. Returns the image and the segments."""
    y, x = np.mgrid[:size, :size] / size
    horizon = rng.uniform(0.2, 0.8) + rng.uniform(-0.3, 0.3) * (x - 0.5)
    ground = y > horizon
    sky = _texture(size, 3, rng) * 30 + rng.uniform(60, 230, 3)
    earth = _texture(size, max(4, size // 5), rng) * 25 + rng.uniform(30, 200, 3)
    return np.where(ground[..., None], earth, sky), np.where(ground, -2, -1)


def _texture(size: int, cells: int, rng: np.random.Generator) -> np.ndarray:
    """Return smooth noise (size, size, 3), about -1..1, that changes `cells` times across the image."""
    coarse = rng.uniform(-1, 1, (cells, cells, 3)).astype(np.float32)
    channels = [Image.fromarray(coarse[..., c]).resize((size, size), Image.Resampling.BICUBIC) for c in range(3)]
    return np.stack([np.asarray(c) for c in channels], axis=-1)


def _draw_line(image: np.ndarray, rng: np.random.Generator) -> None:
    """Draw a thin line of any colour across a part of the image (S, S, 3), which changes."""
    size = len(image) * SUPERSAMPLING
    ends = rng.uniform(0, size, 4).tolist()
    canvas = Image.new("L", (size, size), 0)
    ImageDraw.Draw(canvas).line(ends, fill=255, width=round(rng.uniform(0.01, 0.03) * size))
    alpha = np.asarray(canvas.reduce(SUPERSAMPLING), dtype=np.float32)[..., None] / 255
    image += alpha * (rng.uniform(20, 235, 3) - image)


def _draw_shape(name: str, config: ShapesConfig, rng: np.random.Generator) -> np.ndarray:
    """Return how much of every pixel a rotated and shifted shape covers, (S, S) float 0..1."""
    size = config.size * SUPERSAMPLING
    radius = rng.uniform(config.min_scale, config.max_scale) / 2 * size
    centre = rng.uniform(radius * 0.8, size - radius * 0.8, 2)
    turn = rng.uniform(-MAX_TURN, MAX_TURN)
    points = [
        (
            centre[0] + radius * r * math.sin(2 * math.pi * (a + turn)),
            centre[1] - radius * r * math.cos(2 * math.pi * (a + turn)),
        )
        for r, a in _outline(name)
    ]
    canvas = Image.new("L", (size, size), 0)
    ImageDraw.Draw(canvas).polygon(points, fill=255)
    return np.asarray(canvas.reduce(SUPERSAMPLING), dtype=np.float32) / 255


def _outline(name: str) -> list[tuple[float, float]]:
    """Return the corners of a shape as (radius 0..1, angle in turns from the top). A circle has 40 corners."""
    if name == "circle":
        return [(0.9, i / 40) for i in range(40)]
    if name == "square":
        return [(1.0, (i + 0.5) / 4) for i in range(4)]
    if name == "triangle":
        return [(1.0, i / 3) for i in range(3)]
    if name == "star":
        return [(1.0 if i % 2 == 0 else 0.42, i / 10) for i in range(10)]
    if name == "cross":
        arm, corner = math.hypot(1, 0.32), 0.32 * math.sqrt(2)
        half = math.atan(0.32) / (2 * math.pi)
        return [
            p
            for i in range(4)
            for p in ((arm * 0.95, i / 4 - half), (arm * 0.95, i / 4 + half), (corner * 0.95, i / 4 + 0.125))
        ]
    # heart: the usual curve, x = 16 sin^3 t, y = 13 cos t - 5 cos 2t - 2 cos 3t - cos 4t
    outline = []
    for i in range(40):
        t = 2 * math.pi * i / 40
        x = 16 * math.sin(t) ** 3
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        outline.append((math.hypot(x, y) / 17, math.atan2(x, y) / (2 * math.pi)))
    return outline


def _paint(image: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a colour (3,) that contrasts with the pixels under it."""
    behind = image[mask].mean(0)
    colours = rng.uniform(20, 235, (8, 3))
    clear = np.abs(colours - behind).max(1) > 80
    return colours[int(clear.argmax())]


def _write_split(config: ShapesConfig, folder: Path, split: str, scenes: Iterable[Scene]) -> None:
    things = [{"id": i + 1, "name": name, "supercategory": "shape"} for i, name in enumerate(SHAPES[: config.classes])]
    stuff = [{"id": FIRST_STUFF_ID + i, "name": name, "supercategory": "stuff"} for i, name in enumerate(STUFF)]
    images: list[dict] = []
    instances: list[dict] = []
    panoptic: list[dict] = []
    for i, scene in enumerate(scenes, start=1):
        name = f"{i:06d}.png"
        Image.fromarray(scene.image).save(folder / split / name, compress_level=1)
        ids = np.zeros_like(scene.image)
        ids[..., 0] = scene.segments + 3  # COCO's id = R + 256 G + 65536 B; 0 is void
        Image.fromarray(ids).save(folder / "annotations" / f"panoptic_{split}" / name)
        images.append({"id": i, "file_name": name, "height": config.size, "width": config.size})
        segments = _segment_rows(scene)
        panoptic.append({"image_id": i, "file_name": name, "segments_info": segments})
        for row in segments:
            if row["category_id"] < FIRST_STUFF_ID:
                rle = {"size": [config.size] * 2, "counts": run_lengths(scene.segments + 3 == row["id"])}
                rest = {key: value for key, value in row.items() if key != "id"}
                instances.append({"id": len(instances) + 1, "image_id": i, **rest, "segmentation": rle})
    info = {"description": f"regard shapes {config.options()}"}
    flagged = [{**c, "isthing": 1} for c in things] + [{**c, "isthing": 0} for c in stuff]
    for kind, rows, categories in (("instances", instances, things), ("panoptic", panoptic, flagged)):
        content = {"info": info, "images": images, "annotations": rows, "categories": categories}
        _write_json(folder / "annotations" / f"{kind}_{split}.json", content)


def _segment_rows(scene: Scene) -> list[dict]:
    """Return the `segments_info` of an image; the id in the PNG file is the segment + 3."""
    classes = [*enumerate(label + 1 for label in scene.labels), (-1, FIRST_STUFF_ID), (-2, FIRST_STUFF_ID + 1)]
    rows = []
    for segment, category in classes:
        mask = scene.segments == segment
        if mask.any():
            area = int(mask.sum())
            rows.append({"id": segment + 3, "bbox": _box(mask), "area": area, "iscrowd": 0, "category_id": category})
    return rows


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, separators=(",", ":")))


def _box(mask: np.ndarray) -> list[int]:
    """Return the COCO box [x, y, width, height] around a mask."""
    y, x = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [int(x[0]), int(y[0]), int(x[-1] - x[0] + 1), int(y[-1] - y[0] + 1)]
