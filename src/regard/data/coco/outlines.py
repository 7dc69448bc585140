"""Outlines of objects in COCO's forms, polygons and run lengths, checked before anything else reads them.

The reference decoder is C code that trusts its input: a far polygon point ends the process, and short run lengths give
uninitialised memory. The checks are therefore plain Python and NumPy. Outlines are decoded only when their pixels are
needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import chain, pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from regard.data.coco.columns import OutlineColumns
from regard.data.coco.json_file import float_array
from regard.data.report import Report
from regard.errors import HAS, MachineError, counted, install_command

# Points may be outside their image, up to this multiple of its side.
_MAX_REACH = 4
_CHUNK = 20_000  # polygons turned into one array at a time
_POINTS = 2**14  # points of polygons measured at a time


@dataclass(frozen=True)
class Segmentations:
    """Checked outlines of N objects in a few arrays: data-loader workers would copy millions of lists over and over.

    `segmentations[row]` is in COCO's form: a list of polygons [x, y, x, y, ...], `{"size": [height, width],
    "counts": ...}`, or None for an object without an outline.

    Args:
        boxes_xyxy: (N, 4) float64, around the outline in pixels; NaN without an outline.
        areas: (N,) float64, of the outline in pixels (of polygons the sum, at most the area of the box); NaN without an
            outline.
    """

    boxes_xyxy: NDArray[np.float64]
    areas: NDArray[np.float64]
    _points: NDArray[np.float64]  # (P, 2) x, y of all polygons
    _first_point: NDArray[np.int64]  # (M + 1,) first row of each polygon in _points
    _first_polygon: NDArray[np.int64]  # (N + 1,) first polygon of each object
    _run_lengths: dict[int, dict[str, Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.areas)

    def __getitem__(self, row: int) -> list[list[float]] | dict[str, Any] | None:
        if row in self._run_lengths:
            return self._run_lengths[row]
        first, last = self._first_polygon[row], self._first_polygon[row + 1]
        bounds = self._first_point[first : last + 1]
        polygons = [self._points[a:b].ravel().tolist() for a, b in pairwise(bounds)]
        return polygons or None


def check_segmentations(
    values: OutlineColumns | Iterable[Any], heights: NDArray[np.int64], widths: NDArray[np.int64], report: Report
) -> Segmentations:
    """Check the `segmentation` of N annotations. Polygons of fewer than three points are left out and reported (A37).

    Args:
        values: the segmentation of each annotation, as in the file.
        heights, widths: (N,) of the image of each annotation, in pixels.

    Raises:
        DataError: points far outside the image (A38), run lengths that do not add up (A39) or have another size (A40),
            or neither polygons nor run lengths (A37).
    """
    boxes, areas = np.full((len(heights), 4), np.nan), np.full(len(heights), np.nan)
    run_lengths: dict[int, dict[str, Any]] = {}

    def add_run_lengths(row: int, value: dict[str, Any]) -> None:
        height = int(heights[row])
        checked = _checked_run_lengths(value, height, int(widths[row]), row, report)
        if checked is not None:
            run_lengths[row], counts = checked
            boxes[row], areas[row] = _box_of_runs(counts, height), counts[1::2].sum()

    if isinstance(values, OutlineColumns):
        for row, value in values.run_lengths.items():
            add_run_lengths(row, value)
        polygons, empty = _polygons_of(values)
    else:
        polygons, empty = _checked_polygons(values, add_run_lengths, report)
    rows = polygons.rows
    _measure_polygons(polygons, heights[rows], widths[rows], boxes, areas, report)
    _note_missing(polygons.broken, empty, areas, report)
    first_polygon = np.searchsorted(rows, np.arange(len(heights) + 1))
    return Segmentations(boxes, areas, polygons.points, polygons.first_point, first_polygon, run_lengths)


class _Polygons(NamedTuple):
    """M polygons of three points or more.

    Args:
        points: (P, 2) x, y of all polygons.
        first_point: (M + 1,) first row of each polygon in `points`.
        rows: (M,) object of each polygon, ascending.
        indices: (M,) index of each polygon in the list of its object.
        broken: object, and index in its list, of each polygon that was left out.
    """

    points: NDArray[np.float64]
    first_point: NDArray[np.int64]
    rows: NDArray[np.int64]
    indices: NDArray[np.int64]
    broken: list[tuple[int, int]]


def _polygons_of(columns: OutlineColumns) -> tuple[_Polygons, list[int]]:
    """Return the polygons of all rows, and the rows without an outline."""
    per_row, numbers, lengths = columns.per_row, columns.numbers, columns.lengths
    rows = np.repeat(np.arange(len(per_row)), per_row)
    indices = np.arange(len(rows)) - np.repeat(np.cumsum(per_row) - per_row, per_row)
    is_empty = per_row == 0
    is_empty[list(columns.run_lengths)] = False
    is_broken = (lengths < 6) | (lengths % 2 == 1)
    broken = list(zip(rows[is_broken].tolist(), indices[is_broken].tolist(), strict=True))
    if broken:
        numbers = numbers[np.repeat(~is_broken, lengths)]
        lengths, rows, indices = lengths[~is_broken], rows[~is_broken], indices[~is_broken]
    polygons = _Polygons(numbers.reshape(-1, 2), _starts(lengths // 2), rows, indices, broken)
    return polygons, np.flatnonzero(is_empty).tolist()


def _checked_polygons(
    values: Iterable[Any], add_run_lengths: Callable[[int, dict[str, Any]], None], report: Report
) -> tuple[_Polygons, list[int]]:
    """Return the polygons of all rows, and the rows without an outline. Values may have any type (A37)."""
    polygons = _PolygonLists(report)
    empty: list[int] = []
    for row, value in enumerate(values):
        if not value and (value is None or isinstance(value, list)):
            empty.append(row)
        elif isinstance(value, dict):
            add_run_lengths(row, value)
        elif isinstance(value, list):
            for k, polygon in enumerate(value):
                polygons.add(polygon, row, k)
        else:
            _malformed(f"segmentation is {value!r:.40}, expected a list of polygons", row, None, report)
    return polygons.joined(), empty


def _starts(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate(([0], np.cumsum(lengths)))


class _PolygonLists:
    """Polygons on their way into one array: as lists of numbers, all of a large file would fill the memory."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self.broken: list[tuple[int, int]] = []
        self._places: list[tuple[int, int]] = []
        self._waiting: list[list] = []
        self._chunks: list[NDArray[np.float64]] = []
        self._lengths: list[int] = []

    def add(self, polygon: Any, row: int, k: int) -> None:
        """Add polygon `k` of the object in a row."""
        if not isinstance(polygon, list):
            _malformed(f"a polygon is {polygon!r:.40}, expected a list of numbers", row, k, self.report)
            return
        if self.report.gathers and not set(map(type, polygon)) <= {int, float}:
            _check_numbers(polygon, row, k, self.report)
            return
        if len(polygon) < 6 or len(polygon) % 2:
            self.broken.append((row, k))
            return
        self._places.append((row, k))
        self._lengths.append(len(polygon) // 2)
        self._waiting.append(polygon)
        if len(self._waiting) == _CHUNK:
            self._convert()

    def joined(self) -> _Polygons:
        """Return all polygons."""
        self._convert()
        points = np.concatenate(self._chunks)
        self._chunks.clear()
        rows, indices = np.array(self._places, dtype=np.int64).reshape(-1, 2).T
        lengths = np.array(self._lengths, dtype=np.int64)
        return _Polygons(points.reshape(-1, 2), _starts(lengths), rows, indices, self.broken)

    def _convert(self) -> None:
        flat = list(chain.from_iterable(self._waiting))
        if not set(map(type, flat)) <= {int, float}:
            for polygon, (row, k) in zip(self._waiting, self._places[-len(self._waiting) :], strict=True):
                _check_numbers(polygon, row, k, self.report)
        self._chunks.append(float_array(flat))
        self._waiting.clear()


def decode_counts(text: str) -> NDArray[np.int64]:
    """Decode COCO's compressed run lengths: numbers in base 32, five bits a character, low bits first.

    From the fourth number on, each is the difference to the number two places before.

    Raises:
        ValueError: the text is not in this form.
    """
    digits = np.frombuffer(text.encode("utf-8", "surrogatepass"), dtype=np.uint8).astype(np.int64) - 48
    if digits.size == 0 or digits.min() < 0 or digits.max() > 63:
        raise ValueError("run lengths with invalid characters")
    ends = np.flatnonzero(digits < 32)
    if ends.size == 0 or ends[-1] != digits.size - 1:
        raise ValueError("run lengths are cut off")
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts + 1
    if lengths.max() > 7:  # 35 bits: more than any image has pixels
        raise ValueError("a run length of more than 35 bits")
    shifts = 5 * (np.arange(digits.size) - np.repeat(starts, lengths))
    numbers = np.add.reduceat((digits & 31) << shifts, starts)
    numbers -= np.where(digits[ends] & 16, 1 << (5 * lengths), 0)  # the sign is the top bit of the last digit
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers


def draw_outline(outline: list[list[float]] | dict[str, Any] | None, height: int, width: int) -> NDArray[np.bool_]:
    """Return the mask (height, width) bool of a checked outline, equal to that of pycocotools.

    Raises:
        MachineError: the outline has polygons and hotcoco is not installed.
    """
    if outline is None:
        raise ValueError("an object without an outline has no mask")
    if isinstance(outline, dict):
        counts = outline["counts"]
        runs = decode_counts(counts) if isinstance(counts, str) else np.array(counts, dtype=np.int64)
        return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T
    try:
        from hotcoco import mask
    except ImportError as error:
        remedy = f"install it with: {install_command('hotcoco')}"
        raise MachineError("masks from polygons need the package hotcoco", remedy=remedy) from error
    drawn = mask.decode(mask.merge([mask.fr_poly(polygon, height, width) for polygon in outline]))
    return drawn.astype(np.bool_)


def run_lengths(mask: NDArray[np.bool_]) -> list[int]:
    """Return COCO's uncompressed run lengths of a mask (H, W): column by column, zeros first."""
    flat = mask.flatten(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs = np.diff(np.concatenate(([0], changes, [flat.size]))).tolist()
    return [0, *runs] if flat[0] else runs


def _checked_run_lengths(
    value: dict[str, Any], height: int, width: int, row: int, report: Report
) -> tuple[dict[str, Any], NDArray[np.int64]] | None:
    """Return the checked value, and its run lengths as numbers; None if it is wrong and faults are gathered."""
    place = ("annotations", row, "segmentation")
    size, counts = value.get("size"), value.get("counts")
    if size != [height, width]:
        what = f"run lengths of size {size!r:.40}, expected the image's [{height}, {width}] (height, width)"
        report.fail("A40", what, *place, "size", remedy="encode the mask at the size of its image")
        return None
    runs = np.zeros(0, dtype=np.int64)
    fault = ""
    if isinstance(counts, str):
        try:
            runs = decode_counts(counts)
        except ValueError as error:
            fault = str(error)
    elif isinstance(counts, list) and set(map(type, counts)) == {int} and max(counts) <= height * width:
        runs = np.array(counts if min(counts) >= 0 else [max(count, -1) for count in counts], dtype=np.int64)
    else:
        fault = "run lengths must be whole numbers within the image"
    if not fault and runs.min() < 0:
        fault = "a negative run length"
    if not fault and runs.sum() != height * width:
        fault = f"run lengths add up to {runs.sum():,} pixels, the image has {height * width:,}"
    if fault:
        report.fail("A39", fault, *place, "counts", remedy="encode the mask again")
        return None
    return {"size": [height, width], "counts": counts}, runs


def _box_of_runs(counts: NDArray[np.int64], height: int) -> tuple[float, float, float, float]:
    """Return the box xyxy around the pixels of runs, which go down the columns; zeros for an empty mask."""
    edges = np.cumsum(counts)
    starts, stops = edges[0::2][: len(counts) // 2], edges[1::2]
    filled = stops > starts
    starts, last = starts[filled], stops[filled] - 1
    if starts.size == 0:
        return 0.0, 0.0, 0.0, 0.0
    columns, last_columns = starts // height, last // height
    wraps = columns != last_columns
    top = 0 if wraps.any() else (starts % height).min()
    bottom = height - 1 if wraps.any() else (last % height).max()
    return float(columns.min()), float(top), float(last_columns.max() + 1), float(bottom + 1)


def _check_numbers(polygon: list, row: int, k: int, report: Report) -> None:
    value = next((value for value in polygon if type(value) not in (int, float)), 0)
    if type(value) not in (int, float):
        _malformed(f"a polygon has the value {value!r:.40}, expected a number", row, k, report)


def _check_reach(polygons: _Polygons, heights: NDArray[np.int64], widths: NDArray[np.int64], report: Report) -> None:
    """Check that no point is far outside its image (A38). heights, widths: (M,) of the image of each polygon."""
    points, first_point, rows, indices, _ = polygons
    limits = np.repeat(np.stack((widths, heights), axis=1), np.diff(first_point), axis=0)
    far = np.argwhere(~(np.abs(points) <= _MAX_REACH * limits))  # also true for infinity
    point, axis = map(int, far[0])
    all_far = np.unique(np.searchsorted(first_point, far[:, 0], side="right") - 1).tolist()
    polygon = all_far[0]
    value, size = f"{'xy'[axis]}={points[point, axis]:.6g}", f"{widths[polygon]}x{heights[polygon]}"
    what = f"polygon point {value} is far outside the image of {size}"
    first, *others = [("annotations", int(rows[p]), "segmentation", int(indices[p])) for p in all_far]
    place = (*first, 2 * (point - int(first_point[polygon])) + axis)
    report.fail_at("A38", what, [place, *others], remedy="clip or remove the polygon")
    points[far[:, 0], far[:, 1]] = 0


def _measure_polygons(
    polygons: _Polygons,
    heights: NDArray[np.int64],
    widths: NDArray[np.int64],
    boxes: NDArray[np.float64],
    areas: NDArray[np.float64],
    report: Report,
) -> None:
    """Write the boxes and areas of objects with polygons. heights, widths: (M,) of the image of each polygon.

    Raises:
        DataError: a point is far outside its image (A38).
    """
    if polygons.rows.size == 0:
        return
    around, covered = _sizes(polygons)
    limits = _MAX_REACH * np.stack((widths, heights, widths, heights), axis=1)
    if not (np.abs(around) <= limits).all():
        _check_reach(polygons, heights, widths, report)
        around, covered = _sizes(polygons)
    objects, first = np.unique(polygons.rows, return_index=True)
    boxes[objects, :2] = np.minimum.reduceat(around[:, :2], first)
    boxes[objects, 2:] = np.maximum.reduceat(around[:, 2:], first)
    total = np.add.reduceat(covered, first)
    areas[objects] = np.minimum(total, np.prod(boxes[objects, 2:] - boxes[objects, :2], axis=1))


def _sizes(polygons: _Polygons) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the boxes (M, 4) xyxy around polygons, and their areas (M,)."""
    points, first_point = polygons.points, polygons.first_point
    boxes, areas = np.empty((len(polygons.rows), 4)), np.empty(len(polygons.rows))
    # A part at a time, so that its points stay in the processor's cache.
    cuts = np.searchsorted(first_point, [*range(0, len(points), _POINTS), len(points)])
    for start, stop in pairwise(np.unique(cuts).tolist()):
        first = first_point[start:stop] - first_point[start]
        x, y = np.ascontiguousarray(points[first_point[start] : first_point[stop]].T)
        for axis, values in enumerate((x, y)):
            boxes[start:stop, axis] = np.minimum.reduceat(values, first)
            boxes[start:stop, axis + 2] = np.maximum.reduceat(values, first)
        last = np.append(first[1:], len(x)) - 1
        doubled = np.empty_like(x)
        with np.errstate(invalid="ignore", over="ignore"):  # of points at infinity
            doubled[:-1] = x[:-1] * y[1:] - x[1:] * y[:-1]
            doubled[last] = x[last] * y[first] - x[first] * y[last]  # the last point is joined to the first
            areas[start:stop] = np.abs(np.add.reduceat(doubled, first)) / 2
    return boxes, areas


def _note_missing(broken: list[tuple[int, int]], empty: list[int], areas: NDArray[np.float64], report: Report) -> None:
    """Report polygons that were left out, and objects without an outline (A37)."""
    if broken:
        row, k = broken[0]
        count = counted(len(broken), "polygon")
        what = f"{count} of fewer than 3 points or an odd count of numbers; left out, boxes kept"
        report.add("A37", "skip", what, "annotations", row, "segmentation", k, count=len(broken))
    if empty and not np.isnan(areas).all():  # else a data set of boxes only
        what = f"{counted(len(empty), 'object', of=len(areas), verb=HAS)} no segmentation; only the box is used"
        report.add("A37", "skip", what, "annotations", empty[0], "segmentation", count=len(empty))


def _malformed(what: str, row: int, k: int | None, report: Report) -> None:
    place = ("annotations", row, "segmentation", *(() if k is None else (k,)))
    remedy = "write [[x, y, x, y, ...], ...] or {size, counts}"
    report.fail("A37", what, *place, remedy=remedy)
