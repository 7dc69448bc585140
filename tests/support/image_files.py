"""Makers of image files, down to their bytes, for tests."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 36, 52


def scene(seed: int = 0) -> np.ndarray:
    """(H, W, 3) uint8: smooth, so that JPEG keeps it, and different in each corner, so that turns show."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0 : 1 : HEIGHT * 1j, 0 : 1 : WIDTH * 1j]
    weights = rng.uniform(0.3, 1, (3, 3))
    planes = [a * y + b * x + c * x * y for a, b, c in weights]
    return np.stack([(plane / plane.max() * 255).round() for plane in planes], axis=-1).astype(np.uint8)


def encode(image: Image.Image | np.ndarray, format: str, **options: object) -> bytes:
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """What a viewer shows of `pixels` stored with an EXIF orientation, by the definition of the tag."""
    return {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.transpose(1, 0, 2),
        6: np.rot90(pixels, -1),
        7: pixels[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(pixels, 1),
    }[orientation]


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, bits: int, color: int, rows: bytes, before: bytes = b"", after: bytes = b"") -> bytes:
    """PNG from raw rows, each with its filter byte; `before` and `after` are chunks around the pixels."""
    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    parts = chunk(b"IHDR", header) + before + chunk(b"IDAT", zlib.compress(rows)) + after
    return b"\x89PNG\r\n\x1a\n" + parts + chunk(b"IEND", b"")


def png_rows(values: np.ndarray) -> bytes:
    """Rows (H, ...) of uint8 or uint16 as PNG stores them."""
    values = values.astype(values.dtype.newbyteorder(">"))
    return b"".join(b"\0" + row.tobytes() for row in values)


def grey_tiff(width: int, height: int, bits: int, photometric: int, strip: bytes) -> bytes:
    tags = {
        256: width,
        257: height,
        258: bits,
        259: 1,
        262: photometric,
        273: 8,
        277: 1,
        278: height,
        279: len(strip),
    }
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    directory = struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    return b"II*\0" + struct.pack("<I", 8 + len(strip)) + strip + directory


def three(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=-1)


def on_white(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    a = alpha[..., None].astype(np.float64) / 255
    return (rgb * a + 255 * (1 - a)).round().astype(np.uint8)


def rgb_of_cmyk(cmyk: np.ndarray) -> np.ndarray:
    ink = cmyk.astype(np.float64) / 255
    return (255 * (1 - ink[..., :3]) * (1 - ink[..., 3:])).round().astype(np.uint8)


def jpeg_size_changed(data: bytes, width: int, height: int) -> bytes:
    place = data.index(b"\xff\xc0") + 5
    return data[:place] + struct.pack(">HH", height, width) + data[place + 4 :]


def with_jpeg_segment(data: bytes, marker: bytes, content: bytes) -> bytes:
    return data[:2] + marker + struct.pack(">H", len(content) + 2) + content + data[2:]


def seeds() -> dict[str, bytes]:
    """Whole files of each format and packing, to be damaged at random."""
    rgb = np.random.default_rng(2).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    rgb[:, :20] = 90
    more = {"save_all": True, "append_images": [Image.fromarray(scene())]}
    palette = Image.fromarray(rgb).quantize()
    return {
        "JPEG": encode(rgb, "JPEG", exif=exif(6)),
        "JPEG-progressive": encode(rgb, "JPEG", progressive=True),
        "PNG": encode(rgb, "PNG", exif=exif(5)),
        "GIF": encode(palette, "GIF", **more),
        "TIFF": encode(rgb, "TIFF", exif=exif(8)),
        "TIFF-lzw": encode(rgb, "TIFF", compression="tiff_lzw"),
        "TIFF-16": encode(rgb[..., 0].astype(np.uint16), "TIFF"),
        "WEBP": encode(rgb, "WEBP", exif=exif(7)),
        "WEBP-lossless": encode(rgb, "WEBP", lossless=True),
        "BMP": encode(rgb, "BMP"),
        "BMP-palette": encode(palette, "BMP"),
    }
