"""What a user may name as images: files, folders, patterns, addresses, the standard input, videos and cameras.

Torch is imported where pixels are read, so that a mistyped name is answered at once.
"""

from __future__ import annotations

import glob
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regard.config import near_path
from regard.data.addresses import MAX_BYTES, fetch_image, file_name_of, is_address
from regard.data.paths import open_file
from regard.errors import DataError, ImageError

if TYPE_CHECKING:
    from torch import Tensor

STDIN = "-"
VIDEO_SUFFIXES = frozenset((".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".wmv", ".flv"))
_CAMERA = re.compile(r"camera:(\d{1,3})")


def camera_number(source: str | Path) -> int | None:
    """Return N of `camera:N`, else None. A `Path` is never a camera."""
    found = _CAMERA.fullmatch(source) if isinstance(source, str) else None
    return int(found[1]) if found else None


def is_streamed(source: str | Path) -> bool:
    """Return whether an image is no file: an address, or `-` for the standard input."""
    return source == STDIN or is_address(source)


def is_video(source: str | Path) -> bool:
    """Return whether a source is a camera, or by its name a video file."""
    if camera_number(source) is not None:
        return True
    return not is_address(source) and Path(source).suffix.lower() in VIDEO_SUFFIXES and not Path(source).is_dir()


def is_many(source: str | Path) -> bool:
    """Return whether a source stands for any number of images: a folder, or a pattern such as `photos/*.jpg`."""
    return not is_streamed(source) and (Path(source).is_dir() or _is_pattern(source))


def _is_pattern(source: str | Path) -> bool:
    return isinstance(source, str) and glob.has_magic(source) and not Path(source).exists()


def expand(source: str | Path) -> list[str | Path]:
    """Return the single sources that `source` stands for.

    A folder gives all its images, a pattern the images and videos among its files: `*` and `?` within a name, `**` for
    folders of any depth. Text that is no path stays text: addresses, `-` and `camera:0`.

    Raises:
        DataError: there is no such file, no image in the folder, or no file for the pattern (I29), or a file or folder
            cannot be read.
    """
    if is_streamed(source) or camera_number(source) is not None:
        return [source]
    from regard.data.image_folders import SUFFIXES, list_images  # imports Pillow

    if not _is_pattern(source):
        return list(list_images(source))
    wanted = SUFFIXES | VIDEO_SUFFIXES
    names = glob.glob(str(source), recursive=True)  # noqa: PTH207 (Path.glob takes no absolute pattern)
    found = [Path(name) for name in sorted(names)]
    files = [path for path in found if path.suffix.lower() in wanted and path.is_file()]
    if not files:
        folder = next(place for place in Path(source).parents if not glob.has_magic(str(place)))
        if not folder.is_dir():
            raise DataError("no such folder", where=folder, remedy=near_path(folder), code="I29")
        what = "no image matches the pattern" if found else "no file matches the pattern"
        remedy = "put the pattern in quotes, with ** for folders of any depth"
        raise DataError(what, where=source, remedy=remedy, code="I29")
    return list(files)


def check_sources(sources: Iterable[str | Path]) -> None:
    """Check that named files and folders exist and can be opened, and that patterns match a file.

    Raises:
        DataError: as for `expand`.
    """
    for source in sources:
        if _is_pattern(source):
            expand(source)
        elif not is_streamed(source) and camera_number(source) is None and not Path(source).is_dir():
            open_file(Path(source)).close()


def source_name(source: str | Path) -> str:
    """Return the name of a source as a file, with its suffix: `cat.jpg`, `stdin`, `camera-0`."""
    if source == STDIN:
        return "stdin"
    if is_address(source):
        return file_name_of(str(source))
    number = camera_number(source)
    return Path(source).name if number is None else f"camera-{number}"


def read_source(source: Any, *, allow_urls: bool = True) -> Tensor:
    """Return the pixels (3, H, W) uint8 of a single image: an address, `-`, or what `to_image` takes.

    Raises:
        ImageError: the image cannot be had or decoded; addresses are not allowed (I33); a video instead of an image.
    """
    from regard.data.images import decode_image, to_image

    if isinstance(source, str) and source == STDIN:
        data = sys.stdin.buffer.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ImageError(f"more than {MAX_BYTES >> 20} MB, too large for an image", where="standard input")
        return decode_image(data, name="standard input")
    if is_address(source):
        if not allow_urls:
            raise ImageError("addresses are not allowed here", where=source, remedy="send the image", code="I33")
        return decode_image(fetch_image(source), name=source)
    if isinstance(source, (str, Path)) and is_video(source):
        raise ImageError("a video among images", where=source, remedy="pass it alone", code="I31")
    return to_image(source)
