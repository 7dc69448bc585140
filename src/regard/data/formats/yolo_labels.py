"""The text files of YOLO: one line an object, `class x y width height` or `class x y x y x y ...`, as fractions.

Source: the documentation of Ultralytics' detection, segmentation, oriented-box and pose formats.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from regard.data.formats.text_lines import read_text
from regard.data.report import listed
from regard.errors import DataError

_MARGIN = 0.01  # by which values may leave 0..1, by rounding; boxes are clamped to their image later
_DECIMALS = 6  # of a pixel: a box written with enough digits comes back as it was


@dataclass(frozen=True)
class YoloObject:
    """One line of a label file, in pixels.

    Args:
        box_xywh: x, y, width, height.
        polygon: x, y, x, y, ... of the outline; empty for a line with a box.
    """

    line: int
    label: int
    box_xywh: tuple[float, float, float, float]
    polygons: tuple[tuple[float, ...], ...] = ()

    @property
    def area(self) -> float:
        """The area in pixels: that of the outline, at most that of the box."""
        box = self.box_xywh[2] * self.box_xywh[3]
        return min(box, sum(map(_polygon_area, self.polygons))) if self.polygons else box


def read_labels(
    path: Path,
    size: tuple[int, int],
    names: Sequence[str],
    *,
    keypoint_values: int | None = None,
    faults: list[DataError] | None = None,
) -> list[YoloObject]:
    """Read a label file. An empty one is an image without objects.

    Args:
        size: (height, width) of the image in pixels.
        names: of the classes.
        keypoint_values: numbers that follow each box in a data set of poses; they are left out.
        faults: gets the errors of the lines, which are left out. None to raise the first.

    Raises:
        DataError: a wrong number of columns or something else than numbers (A62), NaN (A16), fractions outside 0 to 1
            (A19), a negative size (A14), a class that does not exist (A20); the place is `FILE:LINE`.
    """
    found = []
    for number, line in enumerate(read_text(path, "A62").splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        try:
            found.append(_object(words, f"{path}:{number}", number, size, names, keypoint_values))
        except DataError as error:
            if faults is None:
                raise
            faults.append(error)
    return found


def _object(
    words: list[str], where: str, line: int, size: tuple[int, int], names: Sequence[str], keypoint_values: int | None
) -> YoloObject:
    try:
        values = [float(word) for word in words]
    except ValueError as error:
        what = f"{next(word for word in words if not _is_number(word))!r:.40} is not a number"
        raise DataError(what, where=where, remedy="write: class x y width height", code="A62") from error
    _check_columns(len(values), where, keypoint_values)
    if keypoint_values is not None:
        values = values[:5]
    bad = next((value for value in values if not math.isfinite(value)), None)
    if bad is not None:
        raise DataError(f"the value {bad}", where=where, remedy="correct or remove the line", code="A16")
    label = _label(values[0], where, names)
    outside = next((value for value in values[1:] if not -_MARGIN <= value <= 1 + _MARGIN), None)
    if outside is not None:
        what = f"the value {outside:g}, expected fractions of the image, 0 to 1"
        raise DataError(what, where=where, remedy="divide x by the width and y by the height", code="A19")
    height, width = size
    if len(values) == 5:
        x, y, w, h = values[1:]
        if w < 0 or h < 0:
            remedy = "write: class x y width height"
            raise DataError(f"a box with the size {w:g} x {h:g}", where=where, remedy=remedy, code="A14")
        left, top = round((x - w / 2) * width, _DECIMALS), round((y - h / 2) * height, _DECIMALS)
        return YoloObject(line, label, (left, top, round(w * width, _DECIMALS), round(h * height, _DECIMALS)))
    scale = (width, height)
    points = [round(value * scale[k % 2], _DECIMALS) for k, value in enumerate(values[1:])]
    left, top, right, bottom = min(points[::2]), min(points[1::2]), max(points[::2]), max(points[1::2])
    return YoloObject(line, label, (left, top, right - left, bottom - top), split_loops(points))


def _check_columns(count: int, where: str, keypoint_values: int | None) -> None:
    if keypoint_values is not None:
        if count != 5 + keypoint_values:
            what = f"{count} columns, expected {5 + keypoint_values}: class, box and key points"
            raise DataError(what, where=where, remedy="correct the line, or kpt_shape", code="A62")
        return
    if count == 5 or (count >= 7 and count % 2 == 1):
        return
    what = f"{count} columns, expected 5 (class x y width height) or a class with 3 or more points"
    remedy = "remove the score, the sixth column" if count == 6 else "correct the line"
    raise DataError(what, where=where, remedy=remedy, code="A62")


def _label(value: float, where: str, names: Sequence[str]) -> int:
    if value.is_integer() and 0 <= value < len(names):
        return int(value)
    what = f"class {value:g}, expected a whole number from 0 to {len(names) - 1} ({listed(names)})"
    raise DataError(what, where=where, remedy="correct the class, or add its name to the list", code="A20")


def split_loops(points: Sequence[float]) -> tuple[tuple[float, ...], ...]:
    """Split an outline that `join_loops` made of several polygons; another one stays whole.

    Args:
        points: x, y, x, y, ... of one line.
    """
    pairs = list(zip(points[::2], points[1::2], strict=True))
    loops: list[list[tuple[float, float]]] = []
    at = 0
    while (end := _end_of_loop(pairs, at)) is not None:
        loops.append(pairs[at:end])
        at = end + 2
    back = [loop[0] for loop in loops[-2::-1]]
    if len(loops) > 1 and pairs[at:] == back:
        return tuple(tuple(value for pair in loop for value in pair) for loop in loops)
    return (tuple(points),)


def _end_of_loop(pairs: Sequence[tuple[float, float]], at: int) -> int | None:
    """Return where the point at `at` comes twice in a row; it may come once before, in a closed polygon."""
    for place in range(at + 1, len(pairs) - 1):
        if pairs[place] == pairs[at] == pairs[place + 1] and pairs[place + 2 : place + 3] != [pairs[at]]:
            return place
    return None


def join_loops(polygons: Sequence[Sequence[float]]) -> list[float]:
    """Join the polygons of one object into one outline with the same area: a line of YOLO holds one.

    Each polygon ends with its first point, twice; lines without area lead from one to the next, and back at the end.
    """
    if len(polygons) == 1:
        return list(polygons[0])
    joined = [value for polygon in polygons for value in (*polygon, *polygon[:2], *polygon[:2])]
    return joined + [value for polygon in polygons[-2::-1] for value in polygon[:2]]


def _polygon_area(points: Sequence[float]) -> float:
    xs, ys = points[::2], points[1::2]
    following = [*range(1, len(xs)), 0]
    return abs(sum(xs[k] * ys[n] - xs[n] * ys[k] for k, n in enumerate(following))) / 2


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
