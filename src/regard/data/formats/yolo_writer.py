"""Writes YOLO data in the tree of Ultralytics: `images/train/`, `labels/train/`, `data.yaml`.

Numbers have twelve decimals: boxes come back within a millionth of a pixel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import yaml

from regard.data.coco.annotated_images import AnnotatedImages
from regard.data.coco.annotations import CocoAnnotations
from regard.data.coco.tables import ImageRecord
from regard.data.formats.find import SplitTables
from regard.data.formats.yolo_labels import join_loops
from regard.data.images import image_orientation, image_size
from regard.data.splits import Split
from regard.errors import DataError

_DECIMALS = 12


@dataclass
class Lost:
    """Counts of what a format cannot hold."""

    crowds: int = 0  # left out
    masks: int = 0  # of run lengths, replaced by boxes
    boxes: int = 0  # that differ from the box around their outline by more than half a pixel
    renamed: int = 0  # images with the name of another one but for the suffix

    def lines(self) -> list[str]:
        """Return one line about what was lost, or none."""
        kinds = (
            (self.crowds, "crowds left out"),
            (self.masks, "masks of run lengths written as boxes"),
            (self.boxes, "boxes replaced by those around their outlines"),
            (self.renamed, "images renamed, since their names differed only in the suffix"),
        )
        found = [f"{count} {what}" for count, what in kinds if count]
        return [f"YOLO cannot hold everything: {', '.join(found)}"] if found else []


def write_yolo(splits: Mapping[Split, SplitTables], output: Path, place_image: Callable[[Path, Path], None]) -> Lost:
    """Write all splits. place_image: makes the second path the same image as the first.

    Raises:
        DataError: the splits have other classes (A26), or an image has another size than annotated (A33).
    """
    lost = Lost()
    categories = next(iter(splits.values())).annotations.categories
    names = [category.name for category in categories]
    for split, tables in splits.items():
        annotations = tables.annotations
        own = [category.name for category in annotations.categories]
        if sorted(own) != sorted(names):
            what = f"the splits have other classes: {len(own)} and {len(names)}"
            raise DataError(what, where=annotations.path, remedy="give both the same category names", code="A26")
        order = [names.index(name) for name in own]
        folder = annotations.image_folder
        assert folder is not None
        target_of = _targets([image.file_name for image in annotations.images], lost)
        images = AnnotatedImages(annotations, split, masks=False)
        lines: dict[str, list[str]] = {}
        for index, image in enumerate(annotations.images):
            lines.setdefault(image.file_name, []).extend(_lines(images, index, image, order, lost))
        for name, of_image in lines.items():
            place_image(folder / name, output / "images" / split / target_of[name])
            text = output / "labels" / split / PurePosixPath(target_of[name]).with_suffix(".txt")
            text.parent.mkdir(parents=True, exist_ok=True)
            text.write_text("".join(f"{line}\n" for line in of_image), encoding="utf-8")
    settings: dict[str, object] = {split: f"images/{split}" for split in splits}
    settings["names"] = dict(enumerate(names))
    (output / "data.yaml").write_text(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return lost


def _targets(names: Sequence[str], lost: Lost) -> dict[str, str]:
    """Return the new name of each image: one that no other image has without its suffix, in no folder `images`."""
    target_of: dict[str, str] = {}
    taken: set[str] = set()
    for name in dict.fromkeys(names):
        path = PurePosixPath(name.replace("\\", "/"))
        inside = [part for part in path.parts[:-1] if part.lower() not in ("images", "jpegimages", ".")]
        target = PurePosixPath(*inside, path.name)
        number = 1
        while str(target.with_suffix("")) in taken:
            number += 1
            target = target.with_name(f"{path.stem}-{number}{path.suffix}")
        lost.renamed += number > 1
        taken.add(str(target.with_suffix("")))
        target_of[name] = target.as_posix()
    return target_of


def _lines(
    images: AnnotatedImages[CocoAnnotations], index: int, image: ImageRecord, order: Sequence[int], lost: Lost
) -> list[str]:
    """Return the lines of one image."""
    annotations = images.annotations
    objects = annotations.objects
    turn = _turn(images, image)
    size = np.array([image.width, image.height], dtype=np.float64)
    found = []
    rows = annotations.rows_of(index)
    for row in range(rows.start, rows.stop):
        if objects.is_crowd[row]:
            lost.crowds += 1
            continue
        box = objects.boxes_xywh[row]
        corners = np.clip(np.stack((box[:2], box[:2] + box[2:])), 0, size)
        outline = objects.segmentation(row)
        if isinstance(outline, list) and outline:
            points = np.array(join_loops(outline)).reshape(-1, 2).clip(0, size)
            around = np.stack((points.min(axis=0), points.max(axis=0)))
            lost.boxes += bool(np.abs(around - corners).max() > 0.5)
            values = turn(points / size)
        else:
            lost.masks += outline is not None
            fractions = turn(corners / size)
            low, high = fractions.min(axis=0), fractions.max(axis=0)
            values = np.stack(((low + high) / 2, high - low))
        numbers = " ".join(_number(value) for value in values.ravel().tolist())
        found.append(f"{order[int(objects.labels[row])]} {numbers}")
    return found


def _turn(images: AnnotatedImages[CocoAnnotations], image: ImageRecord) -> Callable[[np.ndarray], np.ndarray]:
    """Return how fractions (N, 2) of the annotated image become those of the image as it is displayed.

    They differ where the annotations ignore the EXIF rotation; other differences of size are errors (A33).
    """
    path = images.image_folder / image.file_name
    shown, orientation = image_size(path), image_orientation(path)
    stated = (image.height, image.width)
    is_sure = orientation >= 5 and shown[0] != shown[1]
    if shown == stated and (orientation == 1 or is_sure or not images.are_stored):
        return lambda points: points
    if shown != stated and not (is_sure and shown[::-1] == stated):
        what = f"the image is {shown[1]}x{shown[0]}, its annotations say {image.width}x{image.height}"
        remedy = f"correct width, height and boxes in {images.annotations.path}, or restore the image"
        raise DataError(what, where=path, remedy=remedy, code="A33")
    flip_x, flip_y = orientation in (2, 3, 6, 7), orientation in (3, 4, 7, 8)

    def turn(points: np.ndarray) -> np.ndarray:
        x, y = points.T if orientation < 5 else points.T[::-1]
        return np.stack((1 - x if flip_x else x, 1 - y if flip_y else y), axis=1)

    return turn


def _number(value: float) -> str:
    return f"{value:.{_DECIMALS}f}".rstrip("0").rstrip(".")
