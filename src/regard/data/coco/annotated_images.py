"""What data sets of objects and of panoptic segments share: images that match checked annotations."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Generic, TypeVar

from torch import Tensor

from regard.data.coco.tables import Annotations, ImageRecord
from regard.data.images import image_orientation, image_size, read_turned
from regard.data.report import Issue, IssueWarning
from regard.data.splits import Split
from regard.errors import ImageError
from regard.structures.categories import Category

_VOTES = 20  # images that show by their size how boxes were drawn; enough to decide
_MAX_HEADERS = 1000  # that are read to find them
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
        return self.read(index)[0]

    def read(self, index: int) -> tuple[Tensor, int]:
        """Decode an image as `image` does. Returns its pixels, and its EXIF orientation 1..8.

        Undoes the EXIF rotation if the annotations were made without it: image and boxes must be rotated alike. Keeping
        both as the annotator saw them also keeps scores comparable. The sizes in the annotations tell it of images that
        lie on their side; the others follow those.
        """
        record = self.annotations.images[index]
        path = self.image_folder / record.file_name
        image, orientation = read_turned(path)
        size, wanted = tuple(image.shape[-2:]), (record.height, record.width)
        is_sure = orientation >= 5 and size[0] != size[1]
        if size == wanted and (orientation == 1 or is_sure or not self.are_stored):
            return image, orientation
        if size != wanted and not (is_sure and size[::-1] == wanted):
            what = f"the image is {size[1]}x{size[0]}, its annotations say {record.width}x{record.height}"
            report = self.annotations.report
            place = self.annotations.path if report.places is None else report.at("images", record.id - 1)
            remedy = f"correct width, height and boxes in {place}, or restore the image"
            raise ImageError(what, where=path, remedy=remedy, code="A33")
        what = f"sizes in {self.annotations.path} ignore the EXIF rotation of images; such images are used unrotated"
        warnings.warn(IssueWarning(Issue("I22", "fix", what, "")), stacklevel=3)  # one text, so that it is shown once
        return unturned(image, orientation), orientation

    def turns_back(self, record: ImageRecord) -> bool:
        """Return whether the annotated size of an image is that of its file without EXIF rotation. Reads the header."""
        sizes = stored_size(self.image_folder / record.file_name)
        return sizes is not None and (record.height, record.width) == sizes[1]

    @cached_property
    def are_stored(self) -> bool:
        """Whether the annotations refer to pixels before their EXIF rotation.

        Most of the first images say so that lie on their side and whose annotated size tells it. Reads headers, and is
        asked only for an image whose rotation does not change its size.
        """
        votes: list[bool] = []
        for record in self.annotations.images[:_MAX_HEADERS]:
            sizes = stored_size(self.image_folder / record.file_name) if record.file_name else None
            if sizes is not None and (record.height, record.width) in sizes:
                votes.append((record.height, record.width) == sizes[1])
            if len(votes) == _VOTES:
                break
        return 2 * sum(votes) > len(votes)

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


def stored_size(path: Path) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """Return (height, width) as displayed and as stored, None if EXIF does not tell them apart. Reads the header."""
    try:
        orientation = image_orientation(path)
        height, width = image_size(path) if orientation >= 5 else (0, 0)
    except ImageError:
        return None
    return None if height == width else ((height, width), (width, height))


def unturned(image: Tensor, orientation: int) -> Tensor:
    """Return the pixels (C, H, W) as they are stored in a file with this EXIF orientation, 1..8."""
    match orientation:
        case 2:
            return image.flip(2)
        case 3:
            return image.flip(1, 2)
        case 4:
            return image.flip(1)
        case 5:
            return image.transpose(1, 2)
        case 6:
            return image.rot90(1, (1, 2))
        case 7:
            return image.rot90(2, (1, 2)).transpose(1, 2)
        case 8:
            return image.rot90(-1, (1, 2))
    return image
