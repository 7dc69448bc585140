"""What data sets of objects and of panoptic segments share: images that match checked annotations."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Generic, TypeVar

from torch import Tensor

from regard.data.coco.tables import Annotations, ImageRecord
from regard.data.images import image_orientation, read_image
from regard.data.splits import Split
from regard.errors import ImageError
from regard.structures.categories import Category

AnyAnnotations = TypeVar("AnyAnnotations", bound=Annotations)


class AnnotatedImages(Generic[AnyAnnotations]):
    """The images of one split, in ascending order of their ids.

    Holds no open files and can be pickled for the workers of a data loader.

    Args:
        masks: whether samples have the masks of their objects or segments.
    """

    def __init__(self, annotations: AnyAnnotations, split: Split, *, masks: bool) -> None:
        assert annotations.image_folder is not None
        self.annotations = annotations
        self.image_folder = annotations.image_folder
        self.split = split
        self.masks = masks

    def __len__(self) -> int:
        return len(self.annotations.images)

    def image(self, index: int) -> Tensor:
        """Decode an image (3, H, W) uint8, RGB.

        Raises:
            ImageError: it cannot be decoded, or has another size than annotated (A33).
        """
        record = self.annotations.images[index]
        report = self.annotations.report
        place = None if report.places is None else report.at("images", record.id - 1)  # ids of tables count from 1
        return read_as_annotated(self.image_folder / record.file_name, record, self.annotations.path, place)

    @property
    def categories(self) -> tuple[Category, ...]:
        """The classes; labels are indices into them."""
        return self.annotations.categories

    @property
    def image_ids(self) -> tuple[int, ...]:
        """The data set's own id of each image."""
        return tuple(image.id for image in self.annotations.images)

    @property
    def names(self) -> tuple[str, ...]:
        """The file name of each image, relative to `image_folder`."""
        return tuple(image.file_name for image in self.annotations.images)


def fingerprint(annotations: bytes, folder: Path, names: Sequence[str]) -> str:
    """Return the sha256 of the bytes of annotations and of the names and sizes in bytes of the files in `folder`.

    Raises:
        ImageError: a file is gone (A31).
    """
    digest = hashlib.sha256(annotations)
    for name in names:
        path = folder / name
        try:
            size = path.stat().st_size
        except OSError as error:
            raise ImageError("image file is gone", where=path, remedy="restore it", code="A31") from error
        digest.update(f"\0{name}\0{size}".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def read_as_annotated(path: Path, record: ImageRecord, annotations: Path, place: str | None = None) -> Tensor:
    """Decode an image (3, H, W) uint8 at its annotated size.

    Undoes the EXIF rotation if the annotations were made without it: image and boxes must be rotated alike. Keeping
    both as the annotator saw them also keeps scores comparable.

    Args:
        place: where the size is annotated, if each image has its own file.

    Raises:
        ImageError: the image cannot be decoded, or has another size than annotated (A33).
    """
    image = read_image(path)
    height, width = record.height, record.width
    if tuple(image.shape[-2:]) == (height, width):
        return image
    unrotated = _without_rotation(image, path)
    if unrotated is None or tuple(unrotated.shape[-2:]) != (height, width):
        what = f"the image is {image.shape[-1]}x{image.shape[-2]}, its annotations say {width}x{height}"
        remedy = f"correct width, height and boxes in {place or annotations}, or restore the image"
        raise ImageError(what, where=path, remedy=remedy, code="A33")
    warnings.warn(
        f"fix[I22]: sizes in {annotations} ignore the EXIF rotation of images; such images are used unrotated",
        stacklevel=3,
    )
    return unrotated


def _without_rotation(image: Tensor, path: Path) -> Tensor | None:
    """Return the pixels (C, H, W) as stored in the file; None if the EXIF rotation does not swap height and width."""
    orientation = image_orientation(path)
    if orientation == 5:
        return image.transpose(1, 2)
    if orientation == 7:
        return image.rot90(2, (1, 2)).transpose(1, 2)
    if orientation in (6, 8):
        return image.rot90(1 if orientation == 6 else -1, (1, 2))
    return None
