"""Images from files, bytes, arrays and Pillow: RGB pixels of one kind, or one clear `DataError`.

Only the bytes count. The format is told by them and never by the name, the size is checked before pixels are
decoded, and an image is good only when all of it decodes: a cut file is found by `regard data check`, not at epoch 7.
Flipped bits are found where the format has checksums (PNG) or where the decoder stumbles. JPEG, WEBP, BMP and
GIF have none: there most flips decode to a few wrong blocks without a word, and only a checksum of the file
can tell.

Pixels are shown as a viewer shows them: turned as the EXIF orientation says, transparency laid on white, 16
bits scaled to 8. Colour profiles are not applied. Files are never changed.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
import torch
from PIL import Image, ImageFile, TiffImagePlugin
from PIL import WebPImagePlugin as WebPImagePlugin  # else the first WEBP makes Pillow import all its formats
from torch import Tensor

from regard.data.image_errors import (
    COPY_AGAIN,
    check_jpeg_end,
    check_png,
    explained,
    png_holds_orientation,
    sniff,
    too_large,
)
from regard.data.paths import open_file
from regard.errors import DataError, escape

# As many as Pillow decodes unless its own limit is raised: half a gigabyte of RGB, more than cameras have,
# while a hostile header of a few bytes can claim a thousand times more.
MAX_PIXELS = 178_956_970
BACKGROUND = (255, 255, 255)

ImageSource = str | Path | Image.Image | np.ndarray | Tensor

_T = TypeVar("_T")
_MAKE_UINT8 = "make it uint8 0..255 or float 0..1"
_ORIENTATION_HOLDERS = frozenset({"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"})
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Decode an image file: (3, H, W) uint8, RGB.

    The tensor is a view with the memory order (H, W, 3), as decoded; torch resizes uint8 fastest so. Of an
    animation or a multi-page file the first frame is taken, with a warning. Images of more than `max_pixels`
    pixels are refused from their header; Pillow's own limit, `2 * PIL.Image.MAX_IMAGE_PIXELS`, holds besides.

    Raises:
        DataError: with the path, what is wrong with the file, and a remedy.
    """
    path = Path(path)
    with open_file(path) as file:
        before = os.fstat(file.fileno())
        try:
            return _guarded(_decode, file, path, max_pixels)
        except DataError:
            if not _changed_since(before, path):
                raise
    with open_file(path) as file:  # it was being replaced while it was read
        return _guarded(_decode, file, path, max_pixels)


def decode_image(data: bytes, *, name: str, max_pixels: int = MAX_PIXELS) -> Tensor:
    """`read_image` for the bytes of a file: (3, H, W) uint8, RGB. `name` stands for the path in errors."""
    return _guarded(_decode, io.BytesIO(data), name, max_pixels)


def image_size(path: str | Path) -> tuple[int, int]:
    """(height, width) in pixels as displayed, equal to that of `read_image`. Reads the header only."""
    path = Path(path)
    with open_file(path) as file:
        return _guarded(_displayed_size, file, path, MAX_PIXELS)


def image_orientation(path: str | Path) -> int:
    """The EXIF orientation of an image file, 1..8: how `read_image` turns it. 1 if there is none or it is damaged."""
    path = Path(path)
    with open_file(path) as file:
        return _guarded(lambda *place: _orientation(_described(*place)), file, path, MAX_PIXELS)


def to_image(source: ImageSource, *, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Whatever users hold as an image: (3, H, W) uint8, RGB, never sharing memory with `source`.

    source: a path; a Pillow image; an array (H, W), (H, W, 1), (H, W, 3) RGB or (H, W, 4) RGBA; a tensor (3,
        H, W) RGB, whose device is kept. Arrays and tensors hold uint8 or floats 0..1.

    Raises:
        DataError: for anything else, with what was expected and what was found.
    """
    if isinstance(source, str | Path):
        if str(source).startswith(("http://", "https://")):
            raise DataError("an address instead of a file", where=source, remedy="download the image first")
        return read_image(source, max_pixels=max_pixels)
    if isinstance(source, Image.Image):
        return _guarded(lambda _, where, limit: _pixels(source, where, limit), io.BytesIO(), "Pillow image", max_pixels)
    if isinstance(source, Tensor):
        return _from_tensor(source)
    if isinstance(source, np.ndarray):
        return _from_array(source)
    raise DataError(
        f"an image cannot be made from {type(source).__name__}",
        remedy="pass a path, a Pillow image, an array (H, W, 3) or a tensor (3, H, W)",
        code="I31",
    )


# Files


def _changed_since(before: os.stat_result, path: Path) -> bool:
    try:
        now = path.stat()
    except OSError:
        return False
    return any(getattr(now, f) != getattr(before, f) for f in ("st_ino", "st_dev", "st_size", "st_mtime_ns"))


# Decoding


def _guarded(step: Callable[[BinaryIO, str | Path, int], _T], file: BinaryIO, where: str | Path, max_pixels: int) -> _T:
    """`step` with the exceptions of Pillow and its codecs, of a dozen kinds, turned into `DataError`."""
    try:
        return step(file, where, max_pixels)
    except DataError:
        raise
    except Warning:
        # Somebody has turned warnings into errors, and Pillow warns of harmless things. The filters belong to
        # the whole process, so they are touched in this case alone.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            file.seek(0)
            return _guarded(step, file, where, max_pixels)
    except Exception as error:
        raise explained(error, file, where) from error


def _decode(file: BinaryIO, where: str | Path, max_pixels: int) -> Tensor:
    image = _open_image(file, where)
    scan = file.tell()
    _check_size(image, where, max_pixels)
    fast = _simplejpeg_pixels(file, image)
    if fast is not None:
        return fast
    file.seek(scan)
    pixels = _pixels(image, where, max_pixels)
    if image.format == "JPEG":
        check_jpeg_end(file, scan, where)
    if _has_more_frames(image):
        message = f"image has more than one frame, the first is used — {where}"
        warnings.warn(escape(message), stacklevel=4)
    return pixels


def _displayed_size(file: BinaryIO, where: str | Path, max_pixels: int) -> tuple[int, int]:
    image = _described(file, where, max_pixels)
    width, height = image.size
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        # Pillow turns these when it decodes, and its newer versions swap the size already when they open.
        width, height = image.tag_v2[256], image.tag_v2[257]
    return (width, height) if _orientation(image) >= 5 else (height, width)


def _described(file: BinaryIO, where: str | Path, max_pixels: int) -> Image.Image:
    """The image with its size checked and all read that may tell its orientation."""
    image = _open_image(file, where, check=False)
    _check_size(image, where, max_pixels)
    if image.format == "PNG" and png_holds_orientation(file):
        image.load()  # it may stand behind the pixels
    return image


def _open_image(file: BinaryIO, where: str | Path, *, check: bool = True) -> Image.Image:
    """The image with its header read, its pixels not yet decoded."""
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        ImageFile.LOAD_TRUNCATED_IMAGES = False
        message = "turned PIL.ImageFile.LOAD_TRUNCATED_IMAGES off: it fills cut images with grey"
        warnings.warn(message, stacklevel=5)
    head = file.read(512)
    file.seek(0)
    kind = sniff(head, where)
    if check and kind == "PNG":
        check_png(file, where)
        file.seek(0)
    return Image.open(file, formats=(kind,))


def _check_size(image: Image.Image, where: str | Path, max_pixels: int) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise DataError(f"image of {width}x{height} pixels", where=where, remedy=COPY_AGAIN, code="I20")
    if width * height > max_pixels:
        code = "I16" if image.format == "GIF" else "I17" if width * height > MAX_PIXELS else "I18"
        raise too_large(f"{width}x{height}", max_pixels, code, where)


def _simplejpeg_pixels(file: BinaryIO, image: Image.Image) -> Tensor | None:
    """An upright RGB JPEG through simplejpeg, where it is installed: the same pixels as Pillow's in less time.

    None for all others, and for files that it refuses: Pillow decides on those.
    """
    if image.format != "JPEG" or image.mode != "RGB" or _orientation(image) != 1:
        return None
    try:
        import simplejpeg
    except ImportError:
        return None
    file.seek(0)
    try:
        return torch.from_numpy(simplejpeg.decode_jpeg(file.read(), colorspace="RGB")).permute(2, 0, 1)
    except ValueError:
        return None


def _pixels(image: Image.Image, where: str | Path, max_pixels: int) -> Tensor:
    """Decode: (3, H, W) uint8 with the memory order (H, W, 3)."""
    _check_size(image, where, max_pixels)
    image.load()
    orientation = _orientation(image)
    if image.mode != "RGB" or "transparency" in image.info:
        image = _rgb(image, where)
    if orientation in _TURNS:
        image = image.transpose(_TURNS[orientation])
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1..8; 1 if there is none or its data are damaged."""
    if image.info.keys().isdisjoint(_ORIENTATION_HOLDERS) and not hasattr(image, "tag_v2"):
        return 1  # reading EXIF costs more than the rest of the header
    try:
        orientation = image.getexif().get(0x0112, 1)
    except Warning:
        raise
    except Exception:
        return 1
    return orientation if orientation in _TURNS else 1


def _has_more_frames(image: Image.Image) -> bool:
    """Whether frames follow the first, which is decoded: damage behind it does not matter."""
    try:
        return bool(getattr(image, "is_animated", False))
    except Warning:
        raise
    except Exception:
        return False


# Pixel formats


def _rgb(image: Image.Image, where: str | Path) -> Image.Image:
    """`image` in mode RGB, transparency laid on `BACKGROUND`."""
    if image.mode.startswith("I;16"):
        image = _grey_from_16_bits(image)
    elif image.mode == "F":
        values = torch.from_numpy(np.array(image))
        image = Image.fromarray(_bytes_from_floats(values, where=where, code="I14").numpy())
    elif image.mode == "I":
        what = "grey image of 32-bit or signed integers, whose white is not defined"
        raise DataError(what, where=where, remedy="convert it to 8 or 16 bits, unsigned", code="I13")
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    opaque = Image.new("RGB", image.size, BACKGROUND)
    opaque.paste(layer, mask=layer)
    return opaque


def _grey_from_16_bits(image: Image.Image) -> Image.Image:
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(258, (16,))[0]  # BitsPerSample; Pillow gives 12 bits as they are
    white = 2**bits - 1
    values = np.asarray(image).astype(np.uint32)
    grey = ((values * 255 + white // 2) // white).astype(np.uint8)
    if tags.get(262) == 0:  # PhotometricInterpretation: 0 is white, which Pillow heeds in 8 bits alone
        grey = 255 - grey
    if isinstance(image.info.get("transparency"), int):
        grey[values == image.info["transparency"]] = 255
    return Image.fromarray(grey)


def _bytes_from_floats(values: Tensor, *, where: str | Path | None, code: str) -> Tensor:
    """Floats 0..1 -> uint8 0..255, rounded. What rounds to 0 or 255 is in the range."""
    low, high = (float(x) for x in values.float().aminmax())
    if not (low > -0.5 / 255 and high < 255.5 / 255):  # false for NaN too
        what = f"float pixels of {low:g}..{high:g} where 0..1 was expected"
        remedy = "divide 0..255 by 255 or make it uint8, undo a normalisation, replace NaN and infinity"
        raise DataError(what, where=where, remedy=remedy, code=code)
    return (values.float() * 255).round().clamp(0, 255).to(torch.uint8)


# Arrays and tensors


def _from_array(array: np.ndarray) -> Tensor:
    what = f"array of shape {array.shape}, {array.dtype}"
    shape = array.shape if array.ndim != 2 else (*array.shape, 1)
    if len(shape) != 3 or shape[2] not in (1, 3, 4) or 0 in shape:
        expected = "(H, W), (H, W, 1), (H, W, 3) or (H, W, 4)"
        remedy = "pass array.transpose(1, 2, 0)" if len(shape) == 3 and shape[0] in (1, 3, 4) else None
        remedy = "pass a list of images" if len(shape) == 4 else remedy
        raise DataError(f"{what} where {expected} without empty sides was expected", remedy=remedy, code="I31")
    if array.dtype.kind == "f" and array.dtype.itemsize <= 8:
        values = torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))
        array = _bytes_from_floats(values, where=what, code="I31").numpy()
    elif array.dtype != np.uint8:
        raise DataError(f"{what} where uint8 or float 0..1 was expected", remedy=_MAKE_UINT8, code="I31")
    array = array.reshape(shape)
    if shape[2] == 4:
        array = np.asarray(_rgb(Image.fromarray(np.ascontiguousarray(array)), what))
    rgb = np.array(np.broadcast_to(array, (*shape[:2], 3)), order="C")
    return torch.from_numpy(rgb).permute(2, 0, 1)


def _from_tensor(tensor: Tensor) -> Tensor:
    what = f"tensor of shape {tuple(tensor.shape)}, {tensor.dtype}"
    if tensor.ndim != 3 or tensor.shape[0] != 3 or tensor.numel() == 0:
        remedy = "pass tensor.permute(2, 0, 1)" if tensor.ndim == 3 and tensor.shape[2] == 3 else None
        remedy = "pass a list of images" if tensor.ndim == 4 else remedy
        raise DataError(f"{what} where (3, H, W) without empty sides was expected", remedy=remedy, code="I31")
    tensor = tensor.detach()
    if tensor.is_floating_point():
        return _bytes_from_floats(tensor, where=what, code="I31")
    if tensor.dtype != torch.uint8:
        raise DataError(f"{what} where uint8 or float 0..1 was expected", remedy=_MAKE_UINT8, code="I31")
    return tensor.clone()
