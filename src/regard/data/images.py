"""Images from files, bytes, arrays, tensors and Pillow, as RGB uint8 tensors.

The format is recognised by the bytes of a file, never by its name. The size is checked before pixels are decoded. An
image is accepted only if all of it decodes, so that `regard data check` finds a cut file before training starts.
Flipped bits are found in formats with checksums (PNG) and where the decoder fails. JPEG, WEBP, BMP and GIF have no
checksums: most flips there decode to a few wrong blocks.

Pixels look as in an image viewer: rotated by the EXIF orientation, transparency on white, 16 bits scaled to 8. Colour
profiles are not applied. Files are never changed.
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
from PIL import WebPImagePlugin as WebPImagePlugin  # without it, the first WEBP makes Pillow import all its formats
from torch import Tensor

from regard.data.image_errors import (
    COPY_AGAIN,
    as_image_error,
    check_jpeg_end,
    check_png,
    png_holds_orientation,
    sniff,
    too_large,
)
from regard.data.paths import open_file
from regard.data.report import Issue, IssueWarning
from regard.errors import ImageError

# Pillow's default limit: half a gigabyte of RGB, more than cameras have. A hostile header of a few bytes can claim a
# thousand times more.
MAX_PIXELS = 178_956_970
BACKGROUND = (255, 255, 255)

ImageSource = str | Path | Image.Image | np.ndarray | Tensor

_T = TypeVar("_T")
_MAKE_UINT8 = "convert it to uint8 0..255 or float 0..1"
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
    """Decode an image file.

    Takes the first frame of an animation or a multi-page file, with a warning.

    Args:
        max_pixels: larger images are refused before their pixels are decoded. Pillow's own limit,
            `2 * PIL.Image.MAX_IMAGE_PIXELS`, applies as well.

    Returns:
        (3, H, W) uint8, RGB, 0..255. A view of memory in the order (H, W, 3), which torch resizes fastest.

    Raises:
        ImageError: the file cannot be read or decoded.
    """
    return read_turned(path, max_pixels=max_pixels)[0]


def read_turned(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> tuple[Tensor, int]:
    """Decode an image file as `read_image` does. Returns the pixels, and the EXIF orientation 1..8 that was undone."""
    path = Path(path)
    with open_file(path) as file:
        before = os.fstat(file.fileno())
        try:
            return _guarded(_decode, file, path, max_pixels)
        except ImageError:
            if not _changed_since(before, path):
                raise
    with open_file(path) as file:  # the file was replaced while it was read
        return _guarded(_decode, file, path, max_pixels)


def decode_image(data: bytes, *, name: str, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Decode the bytes of an image file to (3, H, W) uint8, RGB, as `read_image`. Errors show `name` as the path."""
    return _guarded(_decode, io.BytesIO(data), name, max_pixels)[0]


def image_size(path: str | Path) -> tuple[int, int]:
    """Return (height, width) in pixels of the image as `read_image` decodes it. Reads the header only."""
    path = Path(path)
    with open_file(path) as file:
        return _guarded(_displayed_size, file, path, MAX_PIXELS)


def image_orientation(path: str | Path) -> int:
    """Return the EXIF orientation of an image file, 1..8; 1 if it is missing or damaged."""
    path = Path(path)
    with open_file(path) as file:
        return _guarded(lambda *source: _orientation(_described(*source)), file, path, MAX_PIXELS)


def to_image(source: ImageSource, *, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Convert a path, Pillow image, array or tensor to an image tensor.

    Args:
        source: a path; a Pillow image; an array (H, W), (H, W, 1), (H, W, 3) RGB or (H, W, 4) RGBA; or a tensor
            (3, H, W) RGB. Arrays and tensors are uint8 0..255 or floats 0..1.
        max_pixels: as in `read_image`.

    Returns:
        (3, H, W) uint8, RGB, on the device of a tensor. Never shares memory with `source`.

    Raises:
        ImageError: the file cannot be decoded, or `source` is none of these (I31).
    """
    if isinstance(source, str | Path):
        if str(source).startswith(("http://", "https://")):
            raise ImageError("a URL instead of a file", where=source, remedy="download the image first")
        return read_image(source, max_pixels=max_pixels)
    if isinstance(source, Image.Image):
        return _guarded(lambda _, where, limit: _pixels(source, where, limit), io.BytesIO(), "Pillow image", max_pixels)
    if isinstance(source, Tensor):
        return _from_tensor(source)
    if isinstance(source, np.ndarray):
        return _from_array(source)
    raise ImageError(
        f"cannot make an image from {type(source).__name__}",
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
    """Run `step`; turn the many exceptions of Pillow and its codecs into `ImageError`."""
    try:
        return step(file, where, max_pixels)
    except ImageError:
        raise
    except Warning:
        # The caller turned warnings into errors, and Pillow warns about harmless things. Filters belong to the whole
        # process, so they are changed in this case only.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            file.seek(0)
            return _guarded(step, file, where, max_pixels)
    except Exception as error:
        raise as_image_error(error, file, where) from error


def _decode(file: BinaryIO, where: str | Path, max_pixels: int) -> tuple[Tensor, int]:
    """Return the pixels as displayed, and the EXIF orientation."""
    image = _open_image(file, where)
    scan = file.tell()
    _check_size(image, where, max_pixels)
    fast = _simplejpeg_pixels(file, image)
    if fast is not None:
        return fast, 1
    file.seek(scan)
    orientation = _orientation(image)  # Pillow turns TIFF when it decodes, and forgets the orientation
    pixels = _pixels(image, where, max_pixels)
    if image.format == "JPEG":
        check_jpeg_end(file, scan, where)
    if _has_more_frames(image):
        issue = Issue("I21", "fix", "image has more than one frame, only the first is used", str(where))
        warnings.warn(IssueWarning(issue), stacklevel=5)
    return pixels, max(orientation, _orientation(image))  # that of a PNG may follow its pixels


def _displayed_size(file: BinaryIO, where: str | Path, max_pixels: int) -> tuple[int, int]:
    image = _described(file, where, max_pixels)
    width, height = image.size
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        # Pillow rotates these when it decodes; newer versions swap the size already when they open the file.
        width, height = image.tag_v2[256], image.tag_v2[257]
    return (width, height) if _orientation(image) >= 5 else (height, width)


def _described(file: BinaryIO, where: str | Path, max_pixels: int) -> Image.Image:
    """Return the image with its size checked and everything read that may hold its orientation."""
    image = _open_image(file, where, check=False)
    _check_size(image, where, max_pixels)
    if image.format == "PNG" and png_holds_orientation(file):
        image.load()  # the orientation may follow the pixels
    return image


def _open_image(file: BinaryIO, where: str | Path, *, check: bool = True) -> Image.Image:
    """Return the image with its header read and its pixels not yet decoded."""
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        ImageFile.LOAD_TRUNCATED_IMAGES = False
        message = "turned off PIL.ImageFile.LOAD_TRUNCATED_IMAGES: it fills cut images with grey"
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
        raise ImageError(f"image of {width}x{height} pixels", where=where, remedy=COPY_AGAIN, code="I20")
    if width * height > max_pixels:
        code = "I16" if image.format == "GIF" else "I17" if width * height > MAX_PIXELS else "I18"
        raise too_large(f"{width}x{height}", max_pixels, code, where)


def _simplejpeg_pixels(file: BinaryIO, image: Image.Image) -> Tensor | None:
    """Decode an upright RGB JPEG with simplejpeg, if it is installed: the same pixels as Pillow's in less time.

    Returns None for other images, and for files that simplejpeg refuses. Pillow decodes those.
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
    """Decode to (3, H, W) uint8 with the memory order (H, W, 3)."""
    _check_size(image, where, max_pixels)
    image.load()
    orientation = _orientation(image)
    if image.mode != "RGB" or "transparency" in image.info:
        image = _rgb(image, where)
    if orientation in _TURNS:
        image = image.transpose(_TURNS[orientation])
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1..8; 1 if it is missing or damaged."""
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
    """Return whether more frames follow the first one. Damage after the first frame does not matter."""
    try:
        return bool(getattr(image, "is_animated", False))
    except Warning:
        raise
    except Exception:
        return False


# Pixel formats


def _rgb(image: Image.Image, where: str | Path) -> Image.Image:
    """Convert to mode RGB, transparency on `BACKGROUND`."""
    if image.mode.startswith("I;16"):
        image = _grey_from_16_bits(image)
    elif image.mode == "F":
        values = torch.from_numpy(np.array(image))
        image = Image.fromarray(_bytes_from_floats(values, where=where, code="I14").numpy())
    elif image.mode == "I":
        what = "grey image of 32-bit or signed integers, which do not define white"
        raise ImageError(what, where=where, remedy="convert it to 8 or 16 bits, unsigned", code="I13")
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    opaque = Image.new("RGB", image.size, BACKGROUND)
    opaque.paste(layer, mask=layer)
    return opaque


def _grey_from_16_bits(image: Image.Image) -> Image.Image:
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(258, (16,))[0]  # BitsPerSample; Pillow does not scale 12 bits
    white = 2**bits - 1
    values = np.asarray(image).astype(np.uint32)
    grey = ((values * 255 + white // 2) // white).astype(np.uint8)
    if tags.get(262) == 0:  # PhotometricInterpretation: 0 is white; Pillow inverts 8 bits only
        grey = 255 - grey
    if isinstance(image.info.get("transparency"), int):
        grey[values == image.info["transparency"]] = 255
    return Image.fromarray(grey)


def _bytes_from_floats(values: Tensor, *, where: str | Path | None, code: str) -> Tensor:
    """Convert floats 0..1 to uint8 0..255, rounded. Accepts values that round to 0 or 255."""
    low, high = (float(x) for x in values.float().aminmax())
    if not (low > -0.5 / 255 and high < 255.5 / 255):  # false for NaN too
        what = f"float pixels of {low:g}..{high:g}, expected 0..1"
        remedy = "divide 0..255 by 255 or convert to uint8, undo a normalisation, replace NaN and infinity"
        raise ImageError(what, where=where, remedy=remedy, code=code)
    return (values.float() * 255).round().clamp(0, 255).to(torch.uint8)


# Arrays and tensors


def _from_array(array: np.ndarray) -> Tensor:
    what = f"array of shape {array.shape}, {array.dtype}"
    shape = array.shape if array.ndim != 2 else (*array.shape, 1)
    if len(shape) != 3 or shape[2] not in (1, 3, 4) or 0 in shape:
        expected = "(H, W), (H, W, 1), (H, W, 3) or (H, W, 4)"
        remedy = "pass array.transpose(1, 2, 0)" if len(shape) == 3 and shape[0] in (1, 3, 4) else None
        remedy = "pass a list of images" if len(shape) == 4 else remedy
        raise ImageError(f"{what}, expected {expected} without empty sides", remedy=remedy, code="I31")
    if array.dtype.kind == "f" and array.dtype.itemsize <= 8:
        values = torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))
        array = _bytes_from_floats(values, where=what, code="I31").numpy()
    elif array.dtype != np.uint8:
        raise ImageError(f"{what}, expected uint8 or float 0..1", remedy=_MAKE_UINT8, code="I31")
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
        raise ImageError(f"{what}, expected (3, H, W) without empty sides", remedy=remedy, code="I31")
    tensor = tensor.detach()
    if tensor.is_floating_point():
        return _bytes_from_floats(tensor, where=what, code="I31")
    if tensor.dtype != torch.uint8:
        raise ImageError(f"{what}, expected uint8 or float 0..1", remedy=_MAKE_UINT8, code="I31")
    return tensor.clone()
