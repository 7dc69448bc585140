"""Drawing of segments with their names, and of masks, which may overlap."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from regard.drawing.boxes import MAX_HIDDEN, MIN_TEXT, Color, Tag, canvas, draw_tag, fitted, overlap, rgb_copy
from regard.errors import MachineError, install_command

SHARE = 0.55  # of the colour in a segment's pixels
COARSE = 256  # cells of the longer side in which the middle of a segment is looked for
CROWD = 5  # segments from which on some go without a name
# Segments of one class differ in lightness: towards white (above 0) or black.
SHADES = (0.0, 0.35, -0.3, 0.55, -0.15, 0.2)


def draw_segments(
    image: Tensor | Image.Image,
    ids: Tensor,
    labels: Sequence[str],
    colors: Sequence[Color],
    scores: Sequence[float] | None = None,
) -> Image.Image:
    """Draw segments on a copy of `image`. Small images are enlarged as in `draw_boxes`.

    Names of the largest segments are placed first; a name that would hide a quarter of another name, or a segment much
    smaller than itself, is not drawn. Where names would hide more than `MAX_HIDDEN` of many segments they are smaller,
    and those that are larger than their segment are left out.

    Args:
        image: (3, H, W) uint8 RGB, or a PIL image.
        ids: (H, W) int64, 0 for no segment, else 1..S.
        labels: S names.
        colors: S colours, see `class_color`; equal colours get different lightness.
        scores: S numbers 0..1, written after the names.
    """
    picture, factor = canvas(image)
    whole = ids.cpu().numpy().astype(np.min_scalar_type(len(labels)))  # passes over 8 times fewer bytes than of int64
    if factor > 1:
        whole = np.repeat(np.repeat(whole, factor, axis=0), factor, axis=1)
    shaded = _shaded(colors)
    paint = Image.fromarray(np.array([(0, 0, 0), *shaded], dtype=np.uint8)[whole])
    painted = Image.blend(picture, paint, SHARE)
    painted.paste(picture, mask=_as_mask(whole == 0))
    painted.paste((255, 255, 255), mask=_as_mask(_borders(whole, max(1, round(min(picture.size) / 400)))))
    picture = painted
    endings = [""] * len(labels) if scores is None else [f" {score:.2f}" for score in scores]
    _name(picture, whole, [(name, ending) for name, ending in zip(labels, endings, strict=True)], shaded)
    return picture


def draw_masks(image: Tensor | Image.Image, masks: Tensor, colors: Sequence[Color]) -> Image.Image:
    """Draw masks (N, H, W) bool on a copy of `image`, of the same size; the first is on top."""
    picture = rgb_copy(image)
    whole = masks.cpu().numpy()
    line = max(1, round(min(picture.size) / 400))
    for mask, color in reversed(list(zip(whole, colors, strict=True))):
        rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
        if not len(rows):
            continue
        # The part with the mask and its border: most masks are much smaller than their picture.
        top, left = max(0, rows[0] - line), max(0, columns[0] - line)
        part = mask[top : rows[-1] + 1 + line, left : columns[-1] + 1 + line]
        place = (int(left), int(top), int(left) + part.shape[1], int(top) + part.shape[0])
        below = picture.crop(place)
        painted = Image.blend(below, Image.new("RGB", below.size, color), SHARE)
        picture.paste(painted, place, _as_mask(part))
        picture.paste(color, place, _as_mask(_borders(part, line)))
    return picture


def _as_mask(inside: np.ndarray) -> Image.Image:
    """Return a bool array (H, W) as a mask for Pillow."""
    return Image.fromarray(inside.astype(np.uint8) * np.uint8(255))


def _shaded(colors: Sequence[Color]) -> list[Color]:
    """Return the colours, with repeated ones lighter or darker."""
    seen: dict[Color, int] = {}
    shaded = []
    for color in colors:
        shade = SHADES[seen.get(color, 0) % len(SHADES)]
        seen[color] = seen.get(color, 0) + 1
        target = 255 if shade > 0 else 0
        red, green, blue = (round(value + (target - value) * abs(shade)) for value in color)
        shaded.append((red, green, blue))
    return shaded


def _borders(ids: np.ndarray, line: int) -> np.ndarray:
    """(H, W) bool: within `line` pixels left of or above the pixels of another segment."""
    edge = np.zeros(ids.shape, dtype=bool)
    for step in range(1, line + 1):
        edge[:, :-step] |= ids[:, :-step] != ids[:, step:]
        edge[:-step] |= ids[:-step] != ids[step:]
    return edge


def _name(picture: Image.Image, ids: np.ndarray, texts: Sequence[tuple[str, str]], colors: Sequence[Color]) -> None:
    size = min(max(12, round(min(picture.size) / 36)), max(12, picture.width // 12))
    areas = np.bincount(ids.ravel(), minlength=len(texts) + 1)[1:]
    found = ((number, _middle(ids, number + 1)) for number in np.argsort(-areas, kind="stable").tolist())
    middles = {number: middle for number, middle in found if middle is not None}
    tags = _tags(middles, areas, texts, colors, size, picture.size)
    while size > MIN_TEXT and _hides_much(tags.values(), ids, areas):
        size = max(MIN_TEXT, round(0.75 * size))
        tags = _tags(middles, areas, texts, colors, size, picture.size)
    if _hides_much(tags.values(), ids, areas):
        tags = {number: tag for number, tag in tags.items() if overlap(tag.place, tag.place) <= areas[number]}
    pen = ImageDraw.Draw(picture, "RGBA")
    for tag in reversed(tags.values()):
        draw_tag(pen, tag, size)


def _tags(
    middles: Mapping[int, tuple[int, int]],
    areas: np.ndarray,
    texts: Sequence[tuple[str, str]],
    colors: Sequence[Color],
    size: int,
    picture: tuple[int, int],
) -> dict[int, Tag]:
    """Return the names by the number of their segment, placed in the order of `middles`."""
    tags: dict[int, Tag] = {}
    height = round(1.4 * size)
    for number, (x, y) in middles.items():
        name, ending = texts[number]
        text, font = fitted(name, ending, size, picture[0] // 2)
        width = math.ceil(font.getlength(text)) + size * 2 // 3
        left = max(0, min(x - width // 2, picture[0] - width))
        top = max(0, min(y - height // 2, picture[1] - height))
        tag = Tag((left, top, left + width, top + height), text, font, colors[number])
        hidden = sum(overlap(tag.place, other.place) for other in tags.values())
        if 4 * hidden < width * height and areas[number] > width * height / 6:
            tags[number] = tag
    return tags


def _hides_much(tags: Collection[Tag], ids: np.ndarray, areas: np.ndarray) -> bool:
    """Return whether names hide more than `MAX_HIDDEN` of the segments, each counted as much as any other."""
    hidden = np.zeros(len(areas) + 1)
    for tag in tags:
        x0, y0, x1, y1 = tag.place
        hidden += np.bincount(ids[y0:y1, x0:x1].ravel(), minlength=len(hidden))
    known = areas > 0
    shares = np.minimum(1.0, hidden[1:][known] / areas[known])
    return len(shares) >= CROWD and float(shares.mean()) > MAX_HIDDEN


def _middle(ids: np.ndarray, segment: int) -> tuple[int, int] | None:
    """Return (x, y) of the pixel farthest from the border of a segment; None for a segment without pixels."""
    try:
        from scipy.ndimage import distance_transform_edt
    except ImportError as error:
        remedy = install_command("scipy")
        raise MachineError("drawing segments needs scipy", remedy=remedy) from error

    step = max(1, max(ids.shape) // COARSE)
    coarse = ids[::step, ::step] == segment
    if not coarse.any():
        rows, columns = np.nonzero(ids == segment)
        return (int(columns[0]), int(rows[0])) if len(rows) else None
    rows, columns = coarse.any(1).nonzero()[0], coarse.any(0).nonzero()[0]
    part = coarse[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]  # most segments are small
    depth = distance_transform_edt(np.pad(part, 1))[1:-1, 1:-1]
    y, x = np.unravel_index(int(depth.argmax()), depth.shape)
    return int(x + columns[0]) * step + step // 2, int(y + rows[0]) * step + step // 2
