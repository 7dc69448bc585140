"""Drawing on images: boxes with names, bars of classes, grids of pictures, comparisons of truth and prediction.

Boxes are xyxy in pixels of the given image. Inputs are not changed.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from regard.errors import ConfigError, DataError, MachineError, escape

Color = tuple[int, int, int]
ShowLabels = Literal["auto", "on", "off"]
Rectangle = tuple[int, int, int, int]  # left, top, right, bottom in whole pixels, right and bottom exclusive
NamedBox = tuple[Rectangle, str, str, Color]  # outline, name, what follows the name

# Picked one after the other, each as far as possible from those before it in OKLab, for normal sight and as
# simulated for protanopia, deuteranopia and tritanopia (Machado et al. 2009). Dark and greyish tones are left out:
# lines in them drown in photographs.
PALETTE: tuple[Color, ...] = (
    (0, 158, 255), (255, 140, 0), (32, 255, 232), (200, 40, 120), (248, 224, 0),
    (136, 88, 192), (248, 0, 0), (0, 216, 144), (200, 112, 184), (72, 104, 255),
    (240, 168, 255), (240, 88, 120), (160, 240, 152), (72, 136, 40), (255, 184, 8),
    (240, 136, 200), (255, 88, 232), (128, 184, 88), (176, 88, 160), (0, 160, 96),
)  # fmt: skip

# Images with a shorter side below this are enlarged before drawing, so that names fit.
MIN_SIDE = 320
# Enlarging stops here, whatever the shorter side: a 4 x 4000 strip must not become 320 x 320000.
MAX_ENLARGED_SIDE = 1280
# Part of a box that names may hide, as a mean over boxes: beyond it they get smaller, and are then left out.
MAX_HIDDEN = 0.2
MIN_TEXT = 10  # pixels; smaller letters cannot be read
SOFTWARE = 0x0131  # EXIF's tag for the program that made a picture
_INK, _PAPER = (17, 17, 17), (255, 255, 255)
_HALO = (0, 0, 0, 110)
_BAR = (158, 206, 255)


class Tag(NamedTuple):
    place: Rectangle
    text: str
    font: ImageFont.FreeTypeFont
    color: Color


def class_color(label: int) -> Color:
    """Return the colour of a class by its index, the same in every picture; colours repeat after `len(PALETTE)`."""
    return PALETTE[label % len(PALETTE)]


def draw_boxes(
    image: Tensor | Image.Image,
    boxes_xyxy: Tensor,
    labels: Sequence[str],
    colors: Sequence[Color],
    scores: Sequence[float] | None = None,
    show_labels: ShowLabels = "auto",
) -> Image.Image:
    """Draw boxes and their names on a copy of `image`.

    Small images are enlarged by a whole factor until the shorter side has `MIN_SIDE` pixels. Boxes are clipped to
    the image; those outside it or with NaN are not drawn. Earlier boxes are drawn on top and place their names first:
    pass the best first. A name without a free place is not drawn. Lines get thinner where boxes are small.

    Args:
        image: (3, H, W) uint8 RGB, or a PIL image.
        boxes_xyxy: (N, 4) in pixels of `image`.
        labels: N names.
        colors: N colours, see `class_color`.
        scores: N numbers 0..1, written after the names.
        show_labels: `on` writes names in one size, `off` none; `auto` writes them smaller, or none, where names would
            hide more than `MAX_HIDDEN` of the boxes.
    """
    picture, factor = canvas(image)
    endings = [""] * len(labels) if scores is None else [f" {score:.2f}" for score in scores]
    boxes = boxes_xyxy.tolist()
    line = _line_width(picture.size, boxes, factor)
    outlines: list[NamedBox] = []
    for box, label, ending, color in zip(boxes, labels, endings, colors, strict=True):
        outline = _outline(box, factor, line, picture.size)
        if outline is not None:
            outlines.append((outline, label, ending, color))
    size = min(max(13, round(min(picture.size) / 30)), max(13, picture.width // 12))
    tags: list[Tag] = []
    if show_labels == "on":
        tags = _tags(outlines, size, line, picture.size)
    elif show_labels == "auto":
        size, tags = _fitting_tags(outlines, size, line, picture.size)
    pen = ImageDraw.Draw(picture, "RGBA")
    for outline, _, _, color in reversed(outlines):
        _draw_outline(pen, outline, color, line)
    for tag in reversed(tags):
        draw_tag(pen, tag, size)
    return picture


def _line_width(picture: tuple[int, int], boxes: Sequence[list[float]], factor: int) -> int:
    """Return the width of lines in pixels: by the size of the picture, thinner if half of the boxes are small."""
    line = max(2, round(min(picture) / 180))
    sides = sorted(min(abs(x1 - x0), abs(y1 - y0)) * factor for x0, y0, x1, y1 in boxes)
    middle = sides[len(sides) // 2] if sides else 0.0
    return line if len(sides) < 10 or middle > 16 * line else max(1, min(line, round(middle / 16)))


def _fitting_tags(
    outlines: Sequence[NamedBox], size: int, line: int, picture: tuple[int, int]
) -> tuple[int, list[Tag]]:
    """Return the size of letters, `size` or smaller, with which names hide little of the boxes, and the names."""
    while True:
        tags = _tags(outlines, size, line, picture)
        hidden = 0.0
        for x0, y0, x1, y1 in (outline for outline, *_ in outlines):
            covered = sum(overlap((x0, y0, x1, y1), tag.place) for tag in tags)
            hidden += min(1.0, covered / max(1, (x1 - x0) * (y1 - y0)))
        if len(outlines) < 2 or hidden <= MAX_HIDDEN * len(outlines):
            return size, tags
        if size <= MIN_TEXT:
            return size, []
        size = max(MIN_TEXT, round(0.75 * size))


def _tags(outlines: Sequence[NamedBox], size: int, line: int, picture: tuple[int, int]) -> list[Tag]:
    """Place the names of boxes, those of the first ones first."""
    tags: list[Tag] = []
    for outline, label, ending, color in outlines:
        room = min(picture[0], max(outline[2] - outline[0], picture[0] // 2))
        text, font = fitted(label, ending, size, room - size)
        place = _place(outline, math.ceil(font.getlength(text)) + size * 2 // 3, size, line, tags, picture)
        if place is not None and text:
            tags.append(Tag(place, text, font, color))
    return tags


def draw_probabilities(
    image: Tensor | Image.Image, names: Sequence[str], probabilities: Sequence[float]
) -> Image.Image:
    """Draw `image` with a bar for each class below it: name and probability.

    Small images are enlarged as in `draw_boxes`.

    Args:
        image: (3, H, W) uint8 RGB, or a PIL image.
        names: of N classes, best first. probabilities: N numbers 0..1.
    """
    picture, _ = canvas(image)
    size = min(max(13, round(min(picture.size) / 30)), max(13, picture.width // 12))
    row, gap = round(1.8 * size), size // 3
    sheet = Image.new("RGB", (picture.width, picture.height + row * len(names) + gap), _PAPER)
    sheet.paste(picture)
    pen = ImageDraw.Draw(sheet)
    top = picture.height + gap
    for name, probability in zip(names, probabilities, strict=True):
        number = f"{probability:.3f}"
        number_width = math.ceil(_font(size, True).getlength("0.000")) + gap
        room = max(1, picture.width - number_width - 3 * gap)
        end = gap + round(room * probability)
        pen.rectangle((gap, top, max(gap, end), top + row - gap), fill=_BAR)
        text, font = fitted(name, "", size, room - gap)
        baseline = top + round(1.05 * size) + gap // 3
        pen.text((2 * gap, baseline), text, fill=_INK, font=font, anchor="ls")
        pen.text((picture.width - gap, baseline), number, fill=_INK, font=_font(size, True), anchor="rs")
        top += row
    return sheet


def save_picture(picture: Image.Image, path: str | Path, *, software: str | None = None) -> None:
    """Write a picture file in the format of its suffix. Missing folders are created.

    Args:
        software: what drew the picture, kept in its EXIF data.

    Raises:
        ConfigError: no picture format has this suffix.
        MachineError: the file cannot be written.
    """
    write_picture(encode_picture(picture, path, software=software), path)


def encode_picture(picture: Image.Image, path: str | Path, *, software: str | None = None) -> bytes:
    """Return the content of a picture file; arguments and errors as for `save_picture`, which writes it to `path`."""
    kind = Image.registered_extensions().get(Path(path).suffix.lower())
    content = io.BytesIO()
    try:
        if kind is None:
            raise ValueError
        picture.save(content, kind, quality=90, exif=_exif(software))
    except ValueError as error:
        raise ConfigError("no picture format has this suffix", where=path, remedy="use .png or .jpg") from error
    except OSError as error:
        raise MachineError(f"the picture cannot be written: {error.strerror or error}", where=path) from error
    return content.getvalue()


def write_picture(content: bytes, path: str | Path) -> None:
    """Write what `encode_picture` returned. A new file that cannot be written to its end is removed.

    Raises:
        MachineError: the file cannot be written.
    """
    target = Path(path)
    is_new = not target.exists()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    except BaseException as error:
        if is_new:
            with contextlib.suppress(OSError):
                target.unlink()
        if isinstance(error, OSError):
            raise MachineError(f"the picture cannot be written: {error.strerror or error}", where=path) from error
        raise


def _exif(software: str | None) -> Image.Exif | bytes:
    if software is None:
        return b""
    exif = Image.Exif()
    exif[SOFTWARE] = software
    return exif


def grid(
    images: Sequence[Image.Image],
    columns: int,
    captions: Sequence[str] | None = None,
    padding: int = 12,
    longest: int = 640,
) -> Image.Image:
    """Arrange pictures in rows on white, each below its caption.

    Args:
        images: pictures of any sizes.
        columns: pictures per row; fewer pictures make a narrower sheet.
        captions: one text for each picture; one that is wider than its column is cut.
        padding: white space around the pictures in pixels.
        longest: pictures with a longer side than this many pixels are shrunk to it.

    Raises:
        ConfigError: no picture, fewer than one column, or not one caption for each picture.
    """
    if not images or columns < 1:
        raise ConfigError(f"{len(images)} pictures in {columns} columns make no sheet")
    if captions is not None and len(captions) != len(images):
        raise ConfigError(f"{len(captions)} captions for {len(images)} pictures")
    cells = [_shrunk(image, longest) for image in images]
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    widths = [max(row[i].width for row in rows if i < len(row)) for i in range(len(rows[0]))]
    heights = [max(cell.height for cell in row) for row in rows]
    size = max(13, round(max(widths) / 32))
    header = 0 if captions is None else round(1.6 * size)
    sheet = Image.new(
        "RGB",
        (sum(widths) + padding * (len(widths) + 1), sum(heights) + (padding + header) * len(rows) + padding),
        _PAPER,
    )
    texts = iter([""] * len(cells) if captions is None else captions)
    pen = ImageDraw.Draw(sheet)
    top = padding
    for row, height in zip(rows, heights, strict=True):
        left = padding
        for cell, width in zip(row, widths, strict=False):  # the last row may be shorter
            text, font = fitted(next(texts), "", size, width)
            pen.text((left, top + size), text, fill=_INK, font=font, anchor="ls")
            sheet.paste(cell, (left, top + header))
            left += width + padding
        top += header + height + padding
    return sheet


def compare(truth: Image.Image, predictions: Image.Image) -> Image.Image:
    """Arrange two pictures of one image below captions, side by side, or one above the other if they are wide."""
    columns = 1 if truth.width > 2 * truth.height else 2
    return grid([truth, predictions], columns, captions=("truth", "prediction"), longest=960)


def rgb_copy(image: Tensor | Image.Image) -> Image.Image:
    """Return an RGB copy of a PIL image or a (3, H, W) uint8 tensor.

    Raises:
        DataError: a tensor of another shape or type (I31).
    """
    if isinstance(image, Tensor):
        if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
            found = f"{tuple(image.shape)} {image.dtype}"
            raise DataError(f"a picture is drawn on a (3, H, W) uint8 tensor, not on {found}", code="I31")
        return Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy())  # RGB is copied
    return image.convert("RGB") if image.mode != "RGB" else image.copy()


def canvas(image: Tensor | Image.Image) -> tuple[Image.Image, int]:
    """Return an RGB copy of the image, enlarged if it is small, and the factor."""
    picture = rgb_copy(image)
    short, long = sorted(picture.size)
    factor = max(1, min(-(-MIN_SIDE // short), MAX_ENLARGED_SIDE // long))
    if factor > 1:
        # From a factor of 3 on, smoothing would only blur: sharp pixels show what the network sees.
        kernel = Image.Resampling.NEAREST if factor > 2 else Image.Resampling.LANCZOS
        picture = picture.resize((picture.width * factor, picture.height * factor), kernel)
    return picture, factor


def _shrunk(image: Image.Image, longest: int) -> Image.Image:
    scale = longest / max(image.size)
    if scale >= 1:
        return image.convert("RGB")
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.convert("RGB").resize(size, Image.Resampling.LANCZOS)


def _outline(box: list[float], factor: int, line: int, size: tuple[int, int]) -> Rectangle | None:
    """Return the outer border of a line on the edges of a box, inside the picture; None if it is not visible."""
    if any(math.isnan(value) for value in box):
        return None
    width, height = size
    x0, x1 = sorted((box[0] * factor, box[2] * factor))
    y0, y1 = sorted((box[1] * factor, box[3] * factor))
    if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
        return None
    x0, x1 = (min(max(x, 0), width) for x in (x0, x1))
    y0, y1 = (min(max(y, 0), height) for y in (y0, y1))
    return (
        max(0, round(x0) - line // 2),
        max(0, round(y0) - line // 2),
        min(width, round(x1) + line // 2),
        min(height, round(y1) + line // 2),
    )


def _draw_outline(pen: ImageDraw.ImageDraw, rectangle: Rectangle, color: Color, line: int) -> None:
    """Draw the line of a box between two thin dark lines, which separate it from a background of its colour."""
    x0, y0, x1, y1 = rectangle
    pen.rectangle((x0 - 1, y0 - 1, x1, y1), outline=_HALO, width=1)
    if x1 - x0 > 2 * line + 2 and y1 - y0 > 2 * line + 2:
        pen.rectangle((x0 + line, y0 + line, x1 - 1 - line, y1 - 1 - line), outline=_HALO, width=1)
    pen.rectangle((x0, y0, x1 - 1, y1 - 1), outline=color, width=line)


def _place(
    outline: Rectangle, width: int, size: int, line: int, taken: Sequence[Tag], picture: tuple[int, int]
) -> Rectangle | None:
    """Return the place of a name: the first along the outline that hides no other name, or hides the least.

    None if less than half of it would be visible.
    """
    x0, y0, x1, y1 = outline
    height = round(1.4 * size)
    # The name joins the line and seems to be one with it; boxes that are hardly more than their line stay visible.
    joint = line if min(x1 - x0, y1 - y0) > 4 * line else -1
    ends = (x0, x1 - width, *range(x0 + width, x1 - 2 * width, width)[:6])
    above = [(x, y0 - height + joint) for x in ends if y0 - height + joint >= 0]
    below = [(x, y1 - joint) for x in ends if y1 - joint + height <= picture[1]]
    beside = [(x, y) for x in (x1, x0 - width) for y in (y0, y1 - height) if 0 <= x <= picture[0] - width]
    inside = [(x, y) for y in range(y0, max(y1 - height, y0) + 1, height)[:8] for x in ends[:2]]
    # The name should not hide the object: inside comes last for boxes that are hardly larger than the name.
    is_small = y1 - y0 < 3 * height
    places = above + below + beside + inside if is_small else above + inside[:2] + below + inside[2:] + beside
    best, least = None, width * height // 2
    for left, top in places:
        left = max(0, min(left, picture[0] - width))
        top = max(0, min(top, picture[1] - height))
        tag = (left, top, left + width, top + height)
        hidden = sum(overlap(tag, other.place) for other in taken)
        if hidden < least:
            best, least = tag, hidden
        if not hidden:
            break
    return best


def overlap(a: Rectangle, b: Rectangle) -> int:
    if a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]:
        return 0
    return (min(a[2], b[2]) - max(a[0], b[0])) * (min(a[3], b[3]) - max(a[1], b[1]))


def draw_tag(pen: ImageDraw.ImageDraw, tag: Tag, size: int) -> None:
    x0, y0, x1, y1 = tag.place
    pen.rectangle((x0 - 1, y0 - 1, x1, y1), outline=_HALO, width=1)
    pen.rectangle((x0, y0, x1 - 1, y1 - 1), fill=tag.color)
    baseline = (x0 + size // 3, y0 + round(1.05 * size))
    pen.text(baseline, tag.text, fill=_text_color(tag.color), font=tag.font, anchor="ls")


def _text_color(background: Color) -> Color:
    """Return black or white, whichever is easier to read, by relative luminance (WCAG 2.2)."""
    linear = [v / 3294.6 if v <= 10 else ((v / 255 + 0.055) / 1.055) ** 2.4 for v in background]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    # WCAG's contrast is equal at 0.179, but people read white better than black on pure red and blue.
    return _INK if luminance > 0.22 else _PAPER


def fitted(name: str, ending: str, size: int, width: int) -> tuple[str, ImageFont.FreeTypeFont]:
    """Return the text on one line, with its name shortened to at most `width` pixels, and its font."""
    name = escape(name)
    font = _font(size, name.isascii())
    if font.getlength(name + ending) <= width:
        return name + ending, font
    low, high = 0, min(len(name), max(width, 0))
    while low < high:
        middle = (low + high + 1) // 2
        fits = font.getlength(name[:middle].rstrip() + "…" + ending) <= width
        low, high = (middle, high) if fits else (low, middle - 1)
    return name[:low].rstrip() + "…" + ending, font


@lru_cache
def _font(size: int, ascii_only: bool) -> ImageFont.FreeTypeFont:
    """Return Pillow's font, or for text beyond ASCII the DejaVu of the machine if there is one."""
    if not ascii_only:
        for path in ("DejaVuSans.ttf", _matplotlib_font(), "Arial Unicode.ttf", "arial.ttf"):
            try:
                return ImageFont.truetype(path, round(0.92 * size))  # as large as the other
            except OSError:
                continue
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


def _matplotlib_font() -> str:
    """Return the path of matplotlib's copy of DejaVu without importing matplotlib."""
    spec = importlib.util.find_spec("matplotlib")
    origin = "" if spec is None or spec.origin is None else spec.origin
    return str(Path(origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf")
