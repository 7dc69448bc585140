"""Write panoptic segments in COCO's format: a JSON file, and a PNG file for each image."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from PIL import Image

from regard.data.coco.panoptic_png import boxes_of, rgb_of
from regard.data.coco.tables import ImageRecord, first_repeat, image_rows
from regard.errors import ConfigError
from regard.safe_files import replace_text
from regard.structures.categories import Category
from regard.structures.segments import PanopticSegments


class PanopticWriter:
    """Write segments image by image, to `path` (JSON) and a folder of PNG files with the same name.

    The format is that of COCO's ground truth and of submissions to its server. `read_panoptic` and `segments_of` read
    it back exactly, without the scores, which the format does not have.

    Args:
        path: of the JSON file. `close` writes it; the folder is made when the first image is written.
        description: of the content, written under `info`.
        categories: of all segments; None for those of the written segments.

    Raises:
        ConfigError: a path without suffix, which would be that of the folder (C09).
    """

    def __init__(
        self, path: str | Path, description: str | None = None, *, categories: Sequence[Category] | None = None
    ) -> None:
        self.path = Path(path)
        self.folder = self.path.with_suffix("")
        if self.folder == self.path:
            what = "the file name has no suffix; without it, it names the folder of PNG files"
            raise ConfigError(what, where=path, remedy=f"name it {self.path.name}.json", code="C09")
        self.info = {} if description is None else {"info": {"description": description}}
        self.images: list[ImageRecord] = []
        self.rows: list[dict[str, Any]] = []
        self.categories = () if categories is None else tuple(categories)

    def add(self, image: ImageRecord, segments: PanopticSegments, name: str) -> None:
        """Write the PNG file `name` of an image. Raises ConfigError as `encode_segments` does."""
        self.write(encode_segments(image, segments, name))

    def write(self, encoded: EncodedSegments) -> None:
        """Write the PNG file of an image whose segments are encoded already."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / encoded.row["file_name"]).write_bytes(encoded.png)
        self.images.append(encoded.image)
        self.rows.append(encoded.row)
        self.categories = encoded.categories

    def close(self) -> None:
        """Write the JSON file."""
        rows = {"images": image_rows(self.images), "annotations": self.rows}
        content = {**self.info, **rows, "categories": category_rows(self.categories)}
        self.folder.mkdir(parents=True, exist_ok=True)  # Without any image it is empty.
        replace_text(self.path, json.dumps(content, separators=(",", ":")))


class EncodedSegments(NamedTuple):
    """The segments of an image in COCO's format. row: of the JSON file. png: of the PNG file that it names."""

    image: ImageRecord
    row: dict[str, Any]
    png: bytes
    categories: tuple[Category, ...]


def encode_segments(image: ImageRecord, segments: PanopticSegments, name: str) -> EncodedSegments:
    """Encode the segments of an image for a PNG file `name`.

    Raises:
        ConfigError: another size than the image's, or a segment without pixels, which the format does not have.
    """
    if segments.size != (image.height, image.width):
        height, width = segments.size
        what = f"segments of {width}x{height} for an image of {image.width}x{image.height} pixels"
        raise ConfigError(what, where=image.file_name)
    row = {"image_id": image.id, "file_name": name, "segments_info": segment_rows(segments, image.file_name)}
    png = io.BytesIO()
    Image.fromarray(rgb_of(segments.ids.numpy())).save(png, "PNG")
    return EncodedSegments(image, row, png.getvalue(), tuple(segments.categories))


def png_names(images: Sequence[ImageRecord]) -> list[str]:
    """Return a PNG file name for each image: the image's name, or its id if two images have the same name."""
    names = [PurePosixPath(image.file_name).stem + ".png" for image in images]
    return names if first_repeat(names) is None else [f"{image.id}.png" for image in images]


def segment_rows(segments: PanopticSegments, where: str) -> list[dict[str, Any]]:
    """Return the `segments_info` of an image. where: the image, for errors.

    Raises:
        ConfigError: a segment without pixels.
    """
    areas = segments.areas.tolist()
    if 0 in areas:
        raise ConfigError(f"segment {areas.index(0) + 1} has no pixels", where=where, remedy="leave such segments out")
    crowd = [False] * len(segments) if segments.is_crowd is None else segments.is_crowd.tolist()
    boxes = boxes_of(segments.ids.numpy(), len(segments)).astype(int)
    boxes[:, 2:] -= boxes[:, :2]
    columns = zip(segments.labels.tolist(), areas, crowd, boxes.tolist(), strict=True)
    return [
        {"id": k, "category_id": segments.categories[label].id, "iscrowd": int(is_crowd), "bbox": box, "area": area}
        for k, (label, area, is_crowd, box) in enumerate(columns, start=1)
    ]


def category_rows(categories: Sequence[Category]) -> list[dict[str, Any]]:
    """Return the `categories` table of a panoptic document."""
    return [{"id": c.id, "name": c.name, "isthing": int(c.is_thing)} for c in categories]
