"""Image files of every kind that users and accidents make, from a seed, with what each must give.

The names begin with the codes of the errors; several formats share a code.
"""

from __future__ import annotations

import functools
import io
import struct
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image

from image_files import (
    HEIGHT,
    WIDTH,
    chunk,
    encode,
    exif,
    grey_tiff,
    jpeg_size_changed,
    on_white,
    png,
    png_rows,
    rgb_of_cmyk,
    scene,
    three,
    turned,
    with_jpeg_segment,
)


@dataclass(frozen=True)
class Good:
    """A file that decodes to `pixels` (H, W, 3), each value within `tolerance`."""

    id: str
    data: bytes
    pixels: np.ndarray
    tolerance: int = 0
    warns: bool = False


@dataclass(frozen=True)
class Bad:
    """A file that is refused with `code` and a message that holds `words`, both patterns."""

    id: str
    data: bytes
    code: str
    words: str
    max_pixels: int = 178_956_970


@functools.cache
def good_images() -> list[Good]:
    return [*_formats(), *_modes(), *_transparent(), *_deep(), *_frames(), *_turned(), *_odd()]


def _formats() -> list[Good]:
    rgb = scene()
    plain = [Good(f"I10-{kind}", encode(rgb, kind), rgb) for kind in ("PNG", "BMP", "TIFF")]
    plain += [
        Good(f"I10-TIFF-{packing}", encode(rgb, "TIFF", compression=packing), rgb)
        for packing in ("tiff_lzw", "tiff_adobe_deflate", "packbits")
    ]
    palette = Image.fromarray(rgb).quantize(64)
    return [
        *plain,
        Good("I10-WEBP-lossless", encode(rgb, "WEBP", lossless=True), rgb),
        Good("I10-WEBP", encode(rgb, "WEBP", quality=95), rgb, tolerance=24),
        Good("I10-JPEG", encode(rgb, "JPEG", quality=95), rgb, tolerance=12),
        Good("I10-JPEG-progressive", encode(rgb, "JPEG", quality=95, progressive=True), rgb, tolerance=12),
        Good("I10-GIF", encode(palette, "GIF"), np.array(palette.convert("RGB"))),
    ]


def _modes() -> list[Good]:
    rgb = scene(1)
    grey = rgb[..., 0]
    bilevel = grey > 127
    cmyk = np.dstack([scene(2), grey // 3])
    ink = Image.frombytes("CMYK", (WIDTH, HEIGHT), cmyk.tobytes())
    cmyk_jpeg = encode(ink, "JPEG", quality=100, subsampling=0)
    ycck_jpeg = _as_ycck(cmyk_jpeg)
    planes = np.array(Image.open(io.BytesIO(ycck_jpeg)))
    return [
        Good("I11-CMYK-TIFF", encode(ink, "TIFF"), rgb_of_cmyk(cmyk), tolerance=2),
        Good("I11-CMYK-JPEG", cmyk_jpeg, rgb_of_cmyk(cmyk), tolerance=8),
        Good("I11-YCCK-JPEG", ycck_jpeg, rgb_of_cmyk(planes), tolerance=2),
        Good("I12-L-PNG", encode(grey, "PNG"), three(grey)),
        Good("I12-L-JPEG", encode(grey, "JPEG", quality=95), three(grey), tolerance=8),
        Good("I12-1-PNG", encode(Image.fromarray(bilevel), "PNG"), three(bilevel * np.uint8(255))),
        Good(
            "I12-1-TIFF-group4",
            encode(Image.fromarray(bilevel), "TIFF", compression="group4"),
            three(bilevel * np.uint8(255)),
        ),
    ]


def _as_ycck(cmyk_jpeg: bytes) -> bytes:
    place = cmyk_jpeg.index(b"Adobe") + 11  # the transform: 0 CMYK, 2 YCCK
    return cmyk_jpeg[:place] + b"\x02" + cmyk_jpeg[place + 1 :]


def _transparent() -> list[Good]:
    rgb = scene(3)
    grey = rgb[..., 1]
    alpha = scene(4)[..., 2].copy()
    alpha[:8] = 0  # red that nobody is to see
    rgb[:8] = (255, 0, 0)
    palette = Image.fromarray(rgb).quantize(16)
    colors, indices = np.array(palette.convert("RGB")), np.array(palette)
    alphas = np.linspace(0, 255, 16).astype(np.uint8)
    hidden = indices == 3
    white_red = np.where((rgb == (255, 0, 0)).all(-1, keepdims=True), np.uint8(255), rgb)
    info = {"transparency": int(grey[0, 0])}
    white_grey = np.where(grey == grey[0, 0], np.uint8(255), grey)
    return [
        Good("I12-LA-PNG", encode(np.dstack([grey, alpha]), "PNG"), on_white(three(grey), alpha), tolerance=1),
        Good("I15-RGBA-PNG", encode(np.dstack([rgb, alpha]), "PNG"), on_white(rgb, alpha), tolerance=1),
        Good("I15-RGBA-TIFF", encode(np.dstack([rgb, alpha]), "TIFF"), on_white(rgb, alpha), tolerance=1),
        Good(
            "I15-RGBA-WEBP",
            encode(np.dstack([rgb, alpha]), "WEBP", lossless=True, exact=True),
            on_white(rgb, alpha),
            tolerance=1,
        ),
        Good("I15-P-PNG", encode(palette, "PNG"), colors),
        Good("I15-P-BMP", encode(palette, "BMP"), colors),
        Good(
            "I15-P-tRNS-PNG",
            encode(palette, "PNG", transparency=alphas.tobytes()),
            on_white(colors, alphas[indices]),
            tolerance=1,
        ),
        Good(
            "I15-P-one-hidden-PNG",
            encode(palette, "PNG", transparency=3),
            on_white(colors, ~hidden * np.uint8(255)),
        ),
        Good(
            "I15-P-one-hidden-GIF",
            encode(palette, "GIF", transparency=3),
            on_white(colors, ~hidden * np.uint8(255)),
        ),
        Good("I15-RGB-tRNS-PNG", encode(rgb, "PNG", transparency=(255, 0, 0)), white_red),
        Good("I15-L-tRNS-PNG", encode(grey, "PNG", **info), three(white_grey)),
    ]


def _deep() -> list[Good]:
    ramp = np.linspace(0, 65535, HEIGHT * WIDTH).round().astype(np.uint16).reshape(HEIGHT, WIDTH)
    grey = (ramp / 257).round().astype(np.uint8)
    deep_rgb = scene(5).astype(np.uint16) * 257
    twelve = ramp >> 4
    pairs = twelve.reshape(-1, 2).astype(np.uint32)
    packed = (pairs[:, 0] << 12 | pairs[:, 1]).astype(">u4").view(np.uint8).reshape(-1, 4)[:, 1:].tobytes()
    hidden = np.where(ramp == ramp[5, 5], np.uint8(255), grey)
    trns = chunk(b"tRNS", struct.pack(">H", ramp[5, 5]))
    unit = scene(6)[..., 0].astype(np.float32) / 255
    return [
        Good("I13-16-PNG", encode(ramp, "PNG"), three(grey)),
        Good("I13-16-TIFF", encode(ramp, "TIFF"), three(grey)),
        Good(
            "I13-16-TIFF-big-endian",
            encode(Image.frombytes("I;16B", (WIDTH, HEIGHT), ramp.astype(">u2").tobytes()), "TIFF"),
            three(grey),
        ),
        Good(
            "I13-16-TIFF-white-is-0",
            grey_tiff(WIDTH, HEIGHT, 16, 0, ramp.astype("<u2").tobytes()),
            three(255 - grey),
        ),
        Good(
            "I13-12-TIFF",
            grey_tiff(WIDTH, HEIGHT, 12, 1, packed),
            three((twelve * (255 / 4095)).round().astype(np.uint8)),
        ),
        Good("I13-16-PNG-tRNS", png(WIDTH, HEIGHT, 16, 0, png_rows(ramp), before=trns), three(hidden)),
        Good("I13-48-PNG", png(WIDTH, HEIGHT, 16, 2, png_rows(deep_rgb)), scene(5)),
        Good("I14-float-TIFF", encode(unit, "TIFF"), three(scene(6)[..., 0])),
    ]


def _frames() -> list[Good]:
    first = scene(7)
    palette = Image.fromarray(first).quantize(32)
    others = [Image.fromarray(scene(8)), Image.fromarray(scene(9))]
    more = {"save_all": True, "append_images": others}
    return [
        Good("I21-GIF", encode(palette, "GIF", **more), np.array(palette.convert("RGB")), warns=True),
        Good("I21-APNG", encode(first, "PNG", **more), first, warns=True),
        Good("I21-WEBP", encode(first, "WEBP", lossless=True, **more), first, warns=True),
        Good("I21-TIFF", encode(first, "TIFF", **more), first, warns=True),
        Good("I21-MPO", encode(first, "MPO", quality=95, **more), first, tolerance=12, warns=True),
    ]


def _turned() -> list[Good]:
    cases = []
    for orientation in range(1, 9):
        stored = scene(orientation)
        shown = turned(stored, orientation)
        tag = exif(orientation)
        late = chunk(b"eXIf", tag.removeprefix(b"Exif\0\0"))
        cases += [
            Good(f"I22-{orientation}-JPEG", encode(stored, "JPEG", quality=95, exif=tag), shown, tolerance=12),
            Good(f"I22-{orientation}-PNG", encode(stored, "PNG", exif=tag), shown),
            Good(f"I22-{orientation}-PNG-late", png(WIDTH, HEIGHT, 8, 2, png_rows(stored), after=late), shown),
            Good(f"I22-{orientation}-TIFF", encode(stored, "TIFF", exif=tag), shown),
            Good(f"I22-{orientation}-WEBP", encode(stored, "WEBP", lossless=True, exif=tag), shown),
        ]
    return cases


def _odd() -> list[Good]:
    rgb = scene(10)
    jpeg = encode(rgb, "JPEG", quality=95)
    dot, line = rgb[:1, :1], np.tile(rgb[:1], (1, 10, 1))[:, :500]
    long = np.tile(rgb[:10], (1, 600, 1))[:, :30000]
    garbage = np.random.default_rng(0).bytes(40)
    return [
        Good(
            "I22-16-bits",
            png(
                WIDTH,
                HEIGHT,
                16,
                0,
                png_rows(rgb[..., 0].astype(np.uint16) * 257),
                before=chunk(b"eXIf", exif(6)[6:]),
            ),
            turned(three(rgb[..., 0]), 6),
        ),
        Good("I23-EXIF-99", encode(rgb, "JPEG", quality=95, exif=exif(99)), rgb, tolerance=12),
        Good("I23-EXIF-garbage", with_jpeg_segment(jpeg, b"\xff\xe1", b"Exif\0\0" + garbage), rgb, tolerance=12),
        Good("I23-EXIF-cut", encode(rgb, "JPEG", quality=95, exif=exif(6)[:17]), rgb, tolerance=12),
        Good(
            "I23-EXIF-garbage-PNG",
            png(WIDTH, HEIGHT, 8, 2, png_rows(rgb), before=chunk(b"eXIf", garbage)),
            rgb,
        ),
        Good("I23-ICC-garbage", encode(rgb, "JPEG", quality=95, icc_profile=garbage), rgb, tolerance=12),
        Good("I23-ICC-garbage-PNG", encode(rgb, "PNG", icc_profile=garbage), rgb),
        Good("I24-1x1", encode(dot, "PNG"), dot),
        Good("I24-1x500", encode(line, "PNG"), line),
        Good("I25-30000x10", encode(long, "PNG"), long),
        Good("I25-10x30000", encode(long.transpose(1, 0, 2), "PNG"), long.transpose(1, 0, 2)),
        Good("I26-JPEG-and-more", jpeg + b"PK\x03\x04" + garbage, rgb, tolerance=12),
        Good("I26-PNG-and-more", encode(rgb, "PNG") + b"<script>" + garbage, rgb),
    ]


@functools.cache
def bad_images() -> list[Bad]:
    return [*_not_images(), *_cut(), *_damaged(), *_too_large(), *_not_pixels()]


def _not_images() -> list[Bad]:
    lfs = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935\nsize 12345\n"
    box = b"\0\0\0\x1cftyp%s\0\0\0\0" + bytes(40)
    return [
        Bad("I01", b"", "I01", "empty"),
        Bad("I02-JPEG", encode(scene(), "JPEG")[:20], "I02", "header"),
        Bad("I02-GIF", encode(Image.fromarray(scene()).quantize(), "GIF")[:12], "I02", "header"),
        Bad("I03-git-lfs", lfs, "I03", "git lfs pull"),
        Bad("I03-text", b"Not Found\n", "I03", "text"),
        Bad("I03-text-utf8", "nicht gefunden: Größe, 图像".encode(), "I03", "text"),
        Bad("I03-HTML", b"<!DOCTYPE html>\n<html><body>404</body></html>", "I03", "HTML"),
        Bad("I03-PDF", b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n" + bytes(50), "I03", "PDF"),
        Bad("I03-SVG", b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "I03", "SVG"),
        Bad("I03-EPS", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "I03", "PostScript"),
        Bad("I03-zip", b"PK\x03\x04" + bytes(80), "I03", "50 4b 03 04"),
        Bad("I03-PPM", encode(scene(), "PPM"), "I03", "known format"),
        Bad("I32-HEIC", box.replace(b"%s", b"heic"), "I32", "HEIC.*JPEG, PNG, WEBP, BMP, TIFF or GIF"),
        Bad("I32-AVIF", box.replace(b"%s", b"avif"), "I32", "AVIF.*magick"),
        Bad("I32-JXL", b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(40), "I32", "JPEG XL"),
        Bad("I32-JXL-bare", b"\xff\x0a" + bytes(40), "I32", "JPEG XL"),
        Bad("I32-JPEG-2000", b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(40), "I32", "JPEG 2000"),
    ]


def _cut() -> list[Bad]:
    rgb = np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)  # long files
    palette = Image.fromarray(rgb).quantize()
    files = {
        "I04-BMP": encode(rgb, "BMP"),
        "I04-GIF": encode(palette, "GIF"),
        "I04-WEBP": encode(rgb, "WEBP"),
        "I04-WEBP-lossless": encode(rgb, "WEBP", lossless=True),
        "I04-JPEG": encode(rgb, "JPEG"),
        "I06-JPEG-progressive": encode(rgb, "JPEG", progressive=True),
        "I09-PNG": encode(rgb, "PNG"),
    }
    jpeg, progressive, whole = files["I04-JPEG"], files["I06-JPEG-progressive"], files["I09-PNG"]
    tiff = grey_tiff(WIDTH, HEIGHT, 8, 1, rgb[..., 0].tobytes())
    short = tiff
    for tag in (257, 278):
        short = short.replace(struct.pack("<HHII", tag, 4, 1, HEIGHT), struct.pack("<HHII", tag, 4, 1, HEIGHT + 90))
    return [
        *(Bad(name, data[: len(data) // 2], name[:3], "cut off") for name, data in files.items()),
        Bad("I04-TIFF", tiff[: len(tiff) // 2], "I02", "header"),  # its directory stands at the end
        Bad("I04-TIFF-pixels", short, "I04", "cut off"),
        Bad("I05-JPEG", jpeg[:-2], "I05", "cut off"),
        Bad("I06-JPEG-progressive-end", progressive[:-2], "I06", "cut off"),
        Bad("I09-PNG-header", whole[:20], "I09", "cut off"),
        Bad("I09-PNG-end", whole[:-12], "I09", "cut off"),
    ]


def _damaged() -> list[Bad]:
    rgb = scene()
    jpeg = bytearray(encode(rgb, "JPEG"))
    table = jpeg.index(b"\xff\xc4") + 5
    jpeg[table : table + 16] = b"\xff" * 16
    whole = encode(rgb, "PNG")
    flipped = {
        part: whole[: (place := whole.index(part) + shift)] + bytes([whole[place] ^ 4]) + whole[place + 1 :]
        for part, shift in ((b"IHDR", 6), (b"IDAT", 40), (b"IEND", 4))
    }
    text = chunk(b"tEXt", b"Comment\0hello")
    far = grey_tiff(WIDTH, HEIGHT, 8, 1, rgb[..., 0].tobytes())
    far = far.replace(struct.pack("<HHII", 273, 4, 1, 8), struct.pack("<HHIi", 273, 9, 1, -1))
    return [
        Bad("I07-JPEG-tables", bytes(jpeg), "I07", "damaged"),
        *(Bad(f"I08-PNG-{part.decode()}", data, "I08", part.decode()) for part, data in flipped.items()),
        Bad("I08-PNG-tEXt", png(WIDTH, HEIGHT, 8, 2, png_rows(rgb), before=text[:-1] + b"\0"), "I08", "tEXt"),
        Bad("I09-PNG-no-pixels", png(WIDTH, HEIGHT, 8, 2, b"")[:-12] + chunk(b"IEND", b""), "I09", "cut off"),
        Bad("I07-PNG-packing", _png_with_garbage(), "I07", "damaged"),
        Bad("I07-TIFF-far", far, "I07", "damaged"),
    ]


def _png_with_garbage() -> bytes:
    """A PNG whose checksums are right and whose packed pixels are not."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0))
    garbage = chunk(b"IDAT", b"\x78\x9c" + b"\xff" * 60)
    return b"\x89PNG\r\n\x1a\n" + header + garbage + chunk(b"IEND", b"")


def _too_large() -> list[Bad]:
    gif = b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0)
    gif += b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00;"
    jpeg = encode(scene(), "JPEG")
    webp = b"VP8X" + struct.pack("<I", 10) + b"\0\0\0\0" + b"\xff\xff\0" * 2
    webp = b"RIFF" + struct.pack("<I", len(webp) + 4) + b"WEBP" + webp
    return [
        Bad("I16-GIF", gif, "I16", "pixels, more than"),
        Bad("I17-PNG-400M", png(20000, 20000, 8, 2, b"\0"), "I17", "pixels, more than"),
        Bad("I17-PNG-2^31", png(2**31 - 1, 2**31 - 1, 8, 2, b"\0"), "I17", "pixels, more than"),
        Bad("I17-JPEG", jpeg_size_changed(jpeg, 65000, 65000), "I17", "pixels, more than"),
        Bad("I17-TIFF", grey_tiff(60000, 60000, 8, 1, bytes(60)), "I17", "pixels, more than"),
        Bad("I17-WEBP", webp, "I17|I07", "pixels|damaged"),  # told from other damage since Pillow 13
        Bad("I18-PNG", png(10000, 9500, 8, 2, b"\0"), "I18", "10000x9500", max_pixels=50_000_000),
        Bad("I18-JPEG", jpeg_size_changed(jpeg, 8000, 8000), "I18", "8000x8000", max_pixels=50_000_000),
    ]


def _not_pixels() -> list[Bad]:
    rgb = scene()
    bomb = zlib.compress(bytes(50_000_000), 9)
    packed = chunk(b"zTXt", b"Comment\0\0" + bomb)
    international = chunk(b"iTXt", b"Comment\0\x01\0\0\0" + bomb)
    megabyte = zlib.compress(bytes(2**20 - 64), 9)
    many = b"".join(chunk(b"zTXt", b"c%d\0\0" % i + megabyte) for i in range(70))
    rows = png_rows(rgb)
    far = scene().astype(np.float32)
    holed = np.where(far > 250, np.nan, far / 255).astype(np.float32)
    signed = Image.fromarray(np.arange(-60, 60, dtype=np.int32).reshape(10, 12))
    bmp = encode(rgb, "BMP")
    return [
        Bad("I19-zTXt", png(WIDTH, HEIGHT, 8, 2, rows, before=packed), "I19", "text"),
        Bad("I19-iTXt", png(WIDTH, HEIGHT, 8, 2, rows, before=international), "I19", "text"),
        Bad("I19-zTXt-late", png(WIDTH, HEIGHT, 8, 2, rows, after=packed), "I19", "text"),
        Bad("I19-zTXt-many", png(WIDTH, HEIGHT, 8, 2, rows, before=many), "I19", "text"),
        Bad("I20-PNG", png(0, HEIGHT, 8, 2, b""), "I20", "width or height of 0"),
        Bad("I20-GIF", b"GIF89a" + bytes(20) + b";", "I20", "width or height of 0"),
        Bad("I20-BMP", bmp[:22] + bytes(4) + bmp[26:], "I20", "width or height of 0"),
        Bad("I20-JPEG", jpeg_size_changed(encode(rgb, "JPEG"), WIDTH, 0), "I02", "header"),
        Bad("I13-signed-TIFF", encode(signed, "TIFF"), "I13", "32-bit or signed"),
        Bad("I14-float-TIFF-255", encode(far[..., 0], "TIFF"), "I14", r"0\.\.255"),
        Bad("I14-float-TIFF-NaN", encode(holed[..., 0], "TIFF"), "I14", "nan"),
    ]
