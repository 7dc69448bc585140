"""What is wrong with an image file that does not decode: the one line for the user.

Codes: I01 empty; I02 header; I03 another kind of file; I04 cut (I05 JPEG without its last bytes, I06
progressive JPEG, I09 PNG); I07 damaged (I08 PNG by its checksums); I16 to I18 too large; I19 packed text; I20
no pixels; I27 unreadable; I32 an image format that is not supported.
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

from regard.errors import DataError, escape

SUPPORTED = "JPEG, PNG, WEBP, BMP, TIFF or GIF"
COPY_AGAIN = "copy or download it again"

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
    (rb"[\t\n\r -~\x80-\xff]+\Z", "text instead of an image", COPY_AGAIN, "I03"),
)
_UNSUPPORTED = frozenset((".heic", ".heif", ".avif", ".jxl", ".jp2"))
# Where the headers of three formats keep width and height; the others cannot say 0 or hide it deeper.
_SIZE_FIELDS = {"PNG": (16, 20, 24), "GIF": (6, 8, 10), "BMP": (18, 22, 26)}


def sniff(head: bytes, where: str | Path) -> str:
    """Pillow's name of the format of a file that starts with `head` (its first 512 bytes).

    Raises:
        DataError: if it is none that is decoded here, with what it seems to be.
    """
    known = _SIGNATURE.match(head)
    if known and known.lastgroup:
        return known.lastgroup
    if not head:
        raise DataError("empty file", where=where, remedy=COPY_AGAIN, code="I01")
    for pattern, what, remedy, code in _OTHER_FILES:
        if re.match(pattern, head, re.DOTALL | re.IGNORECASE):
            raise DataError(what, where=where, remedy=remedy, code=code)
    what = f"not an image of a known format (starts with {head[:8].hex(' ')})"
    raise DataError(what, where=where, remedy=_CONVERT, code="I03")


def explained(error: Exception, file: BinaryIO, where: str | Path) -> DataError:
    """The exception for the user, for any that Pillow and its codecs raise while they read `file`."""
    text = str(error)
    # EINVAL comes from a damaged file that points far outside itself.
    if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
        return unreadable(error, where)
    if isinstance(error, MemoryError):
        return DataError("too little memory for it", where=where, remedy="make it smaller", code="I18")
    if "MAX_TEXT" in text:
        return DataError("PNG with megabytes of text", where=where, remedy="save it without", code="I19")
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(32)
    known = _SIGNATURE.match(head)
    kind = known.lastgroup if known and known.lastgroup else "image"
    if isinstance(error, Image.DecompressionBombError):
        pixels, limit = (int(number) for number in re.findall(r"\d+", text)[:2])
        return too_large(f"{pixels:,}", limit, "I16" if kind == "GIF" else "I17", where)
    if isinstance(error, UnidentifiedImageError):
        what, code = f"{kind} with a header that is cut, damaged or not supported", "I02"
        start, middle, end = _SIZE_FIELDS.get(kind, (0, 4, 8))
        if len(head) >= end and not (any(head[start:middle]) and any(head[middle:end])):
            what, code = f"{kind} of width or height 0", "I20"
    elif isinstance(error, EOFError) or "truncated" in text.lower() or (kind == "WEBP" and _riff_size(head) > size):
        what, code = f"{kind} is cut off before its end", _code_of_cut(kind, text, file)
    else:
        what, code = f"{kind} is damaged ({text.rstrip('.') or type(error).__name__})", "I07"
    return DataError(what, where=where, remedy=COPY_AGAIN, code=code)


def too_large(size: str, limit: int, code: str, where: str | Path) -> DataError:
    """The error for an image of `size`, in words, where `limit` pixels are allowed."""
    what = f"image of {size} pixels where at most {limit:,} are allowed"
    return DataError(what, where=where, remedy="make it smaller", code=code)


def warn_of_unsupported(files: Iterable[Path], where: Path) -> None:
    """Say once how many of the files of a folder are images by their suffixes, but of formats that are not decoded."""
    names = [file.name for file in sorted(files) if file.suffix.lower() in _UNSUPPORTED]
    if names:
        what = f"{len(names)} images of formats that are not supported are left out, the first: {names[0]}"
        warnings.warn(escape(f"{what} — {where} — {_CONVERT}"), stacklevel=3)


def unreadable(error: Exception, where: str | Path) -> DataError:
    """The error for a file that the system does not let us read."""
    reason = getattr(error, "strerror", None) or str(error)
    return DataError(f"cannot be read: {reason}", where=where, remedy="check its permissions", code="I27")


def check_jpeg_end(file: BinaryIO, scan: int, where: str | Path) -> None:
    """Look for the end marker behind the header, which ends at `scan`: Pillow asks for pixels alone."""
    file.seek(-2, os.SEEK_END)
    if file.read(2) == b"\xff\xd9":
        return
    file.seek(scan)
    if b"\xff\xd9" not in file.read():  # something else may follow it
        raise DataError("JPEG is cut off before its end", where=where, remedy=COPY_AGAIN, code="I05")


def check_png(file: BinaryIO, where: str | Path) -> None:
    """Compare all checksums and look for the end, neither of which Pillow does when it decodes."""
    try:
        for name, length in _png_chunks(file):
            checksum = zlib.crc32(file.read(length), zlib.crc32(name))
            stored = file.read(4)
            if len(stored) < 4:
                raise EOFError
            if checksum != int.from_bytes(stored):
                what = f"PNG is damaged: wrong checksum of its part {name.decode('latin-1')}"
                raise DataError(what, where=where, remedy=COPY_AGAIN, code="I08")
    except EOFError as end:
        raise DataError("PNG is cut off before its end", where=where, remedy=COPY_AGAIN, code="I09") from end


def png_holds_orientation(file: BinaryIO) -> bool:
    """Whether a PNG has an EXIF or XMP part, maybe behind its pixels. Keeps the place in `file`."""
    place = file.tell()
    texts = (b"XML:com.adobe.xmp\0", b"Raw profile type exif\0")
    found = any(name == b"eXIf" or file.read(24).startswith(texts) for name, _ in _png_chunks(file))
    file.seek(place)
    return found


def _png_chunks(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Name and length of each part up to IEND, `file` standing at its data. EOFError where it is cut."""
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
