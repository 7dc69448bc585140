"""Panoptic files for tests, written with `PanopticWriter`."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from regard.data.coco.panoptic_writer import PanopticWriter, png_names
from regard.data.coco.tables import ImageRecord
from regard.structures.segments import PanopticSegments


def write_panoptic(path: Path, images: Sequence[ImageRecord], segments: Iterable[PanopticSegments]) -> Path:
    """Write the segments of each image; returns the folder of PNG files."""
    writer = PanopticWriter(path)
    for image, found, name in zip(images, segments, png_names(images), strict=True):
        writer.add(image, found, name)
    writer.close()
    return writer.folder
