"""Errors for image files that cannot be decoded: what is wrong with the file, in one line.

Codes: I01 empty file; I02 bad header; I03 another kind of file; I04 cut off (I05 JPEG without its last bytes, I06
progressive JPEG, I09 PNG); I07 damaged (I08 PNG by its checksums); I16 to I18 too large; I19 compressed text; I20 no
pixels; I27 unreadable; I32 unsupported image format.
"""

from __future__ import annotations

import errno
import os
import re
import warnings
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError

from regard.data.report import Issue, IssueWarning
from regard.errors import IS, ImageError, counted

SUPPORTED = "JPEG, PNG, WEBP, BMP, TIFF or GIF"
COPY_AGAIN = "copy or download it again"

_NAME_OR_COPY = f"name an image ({SUPPORTED}); if this should be one, {COPY_AGAIN}"
_CONVERT = f"convert it to {SUPPORTED}: magick INPUT OUTPUT.png"
_SIGNATURE = re.compile(
    rb"(?P<JPEG>\xff\xd8\xff)|(?P<PNG>\x89PNG\r\n\x1a\n)|(?P<WEBP>RIFF....WEBP)|(?P<BMP>BM)"
    rb"|(?P<TIFF>II[*+]\0|MM\0[*+])|(?P<GIF>GIF8[79]a)",
    re.DOTALL,
)
_OTHER_FILES = (
    (rb"version https://git-lfs", "a git-lfs pointer instead of its image", "run: git lfs pull", "I03"),
    (rb"....ftyp(avif|avis)", "an AVIF image, which is not supported", _CONVERT, "I32"),
    (rb"....ftyp(hei.|hev.|mif1|msf1)", "a HEIC image, which is not supported", _CONVERT, "I32"),
    (rb"\xff\x0a|\0\0\0\x0cJXL ", "a JPEG XL image, which is not supported", _CONVERT, "I32"),
    (rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  ", "a JPEG 2000 image, which is not supported", _CONVERT, "I32"),
    (rb"%PDF", "a PDF document instead of an image", _CONVERT, "I03"),
    (rb"%!PS|\xc5\xd0\xd3\xc6", "a PostScript document instead of an image", _CONVERT, "I03"),
    (rb"\s*(<!doctype html|<html)", "an HTML page instead of an image", "download the image itself", "I03"),
    (rb"(\xef\xbb\xbf)?\s*(<\?xml.*)?<svg", "an SVG drawing instead of an image", _CONVERT, "I03"),
    (rb"[\t\n\r -~\x80-\xff]+\Z", "text instead of an image", _NAME_OR_COPY, "I03"),
)
_UNSUPPORTED = frozenset((".heic", ".heif", ".avif", ".jxl", ".jp2"))
# Bytes of width and height in the headers of three formats. Other formats cannot say 0, or say it deeper in the file.
_SIZE_FIELDS = {"PNG": (16, 20, 24), "GIF": (6, 8, 10), "BMP": (18, 22, 26)}


def sniff(head: bytes, where: str | Path) -> str:
    """Return Pillow's name of the image format of a file.

    Args:
        head: the first 512 bytes of the file.
        where: the path, for errors.

    Raises:
        ImageError: not a supported image format; the message says what the file seems to be.
    """
    known = _SIGNATURE.match(head)
    if known and known.lastgroup:
        return known.lastgroup
    if not head:
        raise ImageError("empty file", where=where, remedy=COPY_AGAIN, code="I01")
    for pattern, what, remedy, code in _OTHER_FILES:
        if re.match(pattern, head, re.DOTALL | re.IGNORECASE):
            raise ImageError(what, where=where, remedy=remedy, code=code)
    what = f"not an image of a known format (starts with {head[:8].hex(' ')})"
    raise ImageError(what, where=where, remedy=_CONVERT, code="I03")


def as_image_error(error: Exception, file: BinaryIO, where: str | Path) -> ImageError:
    """Translate an exception of Pillow or its codecs, raised while they read `file`."""
    text = str(error)
    # EINVAL comes from damaged files with offsets far outside the file.
    if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
        return unreadable(error, where)
    if isinstance(error, MemoryError):
        return ImageError(
            "not enough memory to decode the image", where=where, remedy="make the image smaller", code="I18"
        )
    if "MAX_TEXT" in text:
        return ImageError("PNG with megabytes of text", where=where, remedy="save the image without text", code="I19")
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(32)
    known = _SIGNATURE.match(head)
    kind = known.lastgroup if known and known.lastgroup else "image"
    if isinstance(error, Image.DecompressionBombError):
        pixels, limit = (int(number) for number in re.findall(r"\d+", text)[:2])
        return too_large(f"{pixels:,}", limit, "I16" if kind == "GIF" else "I17", where)
    if isinstance(error, UnidentifiedImageError):
        what, code = f"{kind} whose header is cut off, damaged or not supported", "I02"
        start, middle, end = _SIZE_FIELDS.get(kind, (0, 4, 8))
        if len(head) >= end and not (any(head[start:middle]) and any(head[middle:end])):
            what, code = f"{kind} with a width or height of 0", "I20"
    elif isinstance(error, EOFError) or "truncated" in text.lower() or (kind == "WEBP" and _riff_size(head) > size):
        what, code = f"{kind} is cut off before its end", _code_of_cut(kind, text, file)
    else:
        what, code = f"{kind} is damaged ({text.rstrip('.') or type(error).__name__})", "I07"
    return ImageError(what, where=where, remedy=COPY_AGAIN, code=code)


def too_large(size: str, limit: int, code: str, where: str | Path) -> ImageError:
    """Return the error for an image of `size` pixels, as text, above the limit."""
    what = f"image of {size} pixels, more than the maximum of {limit:,}"
    return ImageError(what, where=where, remedy="make the image smaller", code=code)


def warn_of_unsupported(names: Iterable[str], where: Path) -> None:
    """Warn once about the files of a folder whose suffix names an unsupported image format. names: with `/`."""
    files = sorted(Path(name) for name in names if name[name.rfind(".") :].lower() in _UNSUPPORTED)
    if files:
        what = f"{counted(len(files), 'image', verb=IS)} of an unsupported format and skipped, first: {files[0].name}"
        issue = Issue("I32", "warn", what, str(where), len(files), remedy=_CONVERT)
        warnings.warn(IssueWarning(issue), stacklevel=4)


def unreadable(error: Exception, where: str | Path) -> ImageError:
    """Return the error for a file that the operating system does not let us read."""
    reason = getattr(error, "strerror", None) or str(error)
    return ImageError(f"cannot be read: {reason}", where=where, remedy="check its permissions", code="I27")


def check_jpeg_end(file: BinaryIO, scan: int, where: str | Path) -> None:
    """Check that the end marker follows the header, which ends at `scan`. Pillow checks the pixels alone.

    Raises:
        ImageError: no end marker (I05).
    """
    file.seek(-2, os.SEEK_END)
    if file.read(2) == b"\xff\xd9":
        return
    file.seek(scan)
    if b"\xff\xd9" not in file.read():  # other bytes may follow the marker
        raise ImageError("JPEG is cut off before its end", where=where, remedy=COPY_AGAIN, code="I05")


def check_png(file: BinaryIO, where: str | Path) -> None:
    """Check all checksums of a PNG and its end, which Pillow does not check when it decodes.

    Raises:
        ImageError: a wrong checksum (I08), or no end (I09).
    """
    try:
        for name, length in _png_chunks(file):
            checksum = zlib.crc32(file.read(length), zlib.crc32(name))
            stored = file.read(4)
            if len(stored) < 4:
                raise EOFError
            if checksum != int.from_bytes(stored):
                what = f"PNG is damaged: wrong checksum of chunk {name.decode('latin-1')}"
                raise ImageError(what, where=where, remedy=COPY_AGAIN, code="I08")
    except EOFError as end:
        raise ImageError("PNG is cut off before its end", where=where, remedy=COPY_AGAIN, code="I09") from end


def png_holds_orientation(file: BinaryIO) -> bool:
    """Return whether a PNG has EXIF or XMP data, also after the pixels. Keeps the position in `file`."""
    position = file.tell()
    texts = (b"XML:com.adobe.xmp\0", b"Raw profile type exif\0")
    found = any(name == b"eXIf" or file.read(24).startswith(texts) for name, _ in _png_chunks(file))
    file.seek(position)
    return found


def _png_chunks(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Yield name and length of each chunk up to IEND, with `file` at the chunk's data. EOFError if the file is cut."""
    file.seek(8)
    name = b""
    while name != b"IEND":
        header = file.read(8)
        if len(header) < 8:
            raise EOFError
        length, name = int.from_bytes(header[:4]), header[4:]
        data = file.tell()
        yield name, length
        file.seek(data + length + 4)


def _riff_size(head: bytes) -> int:
    return int.from_bytes(head[4:8], "little") + 8


def _code_of_cut(kind: str, text: str, file: BinaryIO) -> str:
    if kind != "JPEG":
        return "I09" if kind == "PNG" else "I04"
    if "not processed" not in text:
        return "I02"  # cut before its pixels
    file.seek(0)
    if "progressive" in Image.open(file, formats=("JPEG",)).info:
        return "I06"
    return "I05" if "(0 bytes" in text else "I04"
