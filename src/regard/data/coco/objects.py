"""The objects of COCO annotations as columns: boxes, crowds, areas and outlines, checked and repaired."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regard.data.coco.columns import OutlineColumns
from regard.data.coco.document import Rows, array_of, column
from regard.data.coco.json_file import float_array
from regard.data.coco.outlines import Segmentations, check_segmentations
from regard.data.coco.tables import in_table, read_crowds
from regard.data.report import Report
from regard.errors import HAS, counted

MAX_COORDINATE = 10**7  # pixels; larger values are mistakes
_TOLERANCE = 1.0  # pixels by which boxes may exceed the image, by rounding or by counting pixels from 1


@dataclass(frozen=True)
class ObjectTable:
    """N objects, one row each.

    Args:
        boxes_xyxy: (N, 4) float32, pixels, clamped to the image.
        boxes_xywh: (N, 4) float64, pixels, as in the file, but clamped where the box exceeds the image by more than a
            pixel.
        labels: (N,) int64, index into the categories.
        is_crowd: (N,) bool, a region of many objects: not learned, matches any number of predictions.
        is_target: (N,) bool, what a detector learns: not a crowd, and the box has area inside the image.
        areas: (N,) float64, pixels covered by the object; only sorts objects into small, medium and large.
    """

    boxes_xyxy: NDArray[np.float32]
    boxes_xywh: NDArray[np.float64]
    labels: NDArray[np.int64]
    is_crowd: NDArray[np.bool_]
    is_target: NDArray[np.bool_]
    areas: NDArray[np.float64]
    _rows: NDArray[np.int64]  # (N,) row of the object in the file and in _segmentations
    _segmentations: Segmentations

    def segmentation(self, row: int) -> list[list[float]] | dict | None:
        """Return the outline of an object in COCO's form, None if it has none."""
        return self._segmentations[int(self._rows[row])]

    def row_in_file(self, row: int) -> int:
        """Return the number of an object in the list of annotations that it was read from."""
        return int(self._rows[row])

    @property
    def has_outline(self) -> NDArray[np.bool_]:
        """Whether each object has an outline, (N,) bool."""
        return ~np.isnan(self._segmentations.areas[self._rows])

    def take(self, order: NDArray[np.int64]) -> ObjectTable:
        """Return the rows in another order."""
        names = ("boxes_xyxy", "boxes_xywh", "labels", "is_crowd", "is_target", "areas", "_rows")
        return replace(self, **{name: getattr(self, name).take(order, axis=0) for name in names})


def check_objects(
    rows: Rows,
    forms: OutlineColumns | Iterable[Any],
    labels: NDArray[np.int64],
    heights: NDArray[np.int64],
    widths: NDArray[np.int64],
    report: Report,
) -> ObjectTable:
    """Check N annotations.

    Args:
        rows: the annotations of the file.
        forms: the outline of each, in one of COCO's forms or None; or all as columns.
        labels: (N,) index into the categories.
        heights, widths: (N,) of the image of each annotation, in pixels.

    Raises:
        DataError: anything that would give wrong labels or scores; see the functions below.
    """
    bounds = np.stack((widths, heights, widths, heights), axis=1).astype(np.float64)
    whole = np.concatenate((np.zeros_like(bounds[:, 2:]), bounds[:, 2:]), axis=1)
    stated = _boxes(rows, whole, report)
    _check_values(stated, whole, report)
    _check_convention(stated, whole, bounds, report)
    corners = _corners(stated)
    is_inside = bool((corners >= 0).all() and (corners <= bounds).all())
    clamped = corners if is_inside else np.clip(corners, 0, bounds)
    boxes = clamped.astype(np.float32)
    has_area: NDArray[np.bool_] = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    if is_inside and has_area.all():
        cut = np.zeros(len(boxes), dtype=np.bool_)
    else:
        cut = _note_outside(corners, clamped, bounds, has_area, report)
    boxes_xywh = stated.copy()
    boxes_xywh[cut] = np.concatenate((clamped[:, :2], clamped[:, 2:] - clamped[:, :2]), axis=1)[cut]
    is_crowd = _crowds(rows, report)
    outlines = check_segmentations(forms, heights, widths, report)
    if report.gathers:
        corners[(stated == whole).all(axis=1)] = np.nan  # among them the wrong boxes
    _note_disagreement(corners, outlines, report)
    areas = _areas(rows, stated, boxes_xywh, cut, outlines, report)
    place = np.arange(len(rows))
    return ObjectTable(boxes, boxes_xywh, labels, is_crowd, has_area & ~is_crowd, areas, place, outlines)


# Where faults are gathered, the functions below put `whole`, the box around the image, in place of a wrong box: what
# they check afterwards says nothing more about it.


def _boxes(rows: Rows, whole: NDArray[np.float64], report: Report) -> NDArray[np.float64]:
    """Return the boxes (N, 4) as in the file. Each must be four numbers (A17)."""
    boxes = array_of(rows, "bbox")
    if boxes is not None:
        return boxes.copy()  # wrong ones are replaced
    values: list[Any] = column(rows, "bbox")
    if set(map(type, values)) <= {list, tuple} and set(map(len, values)) <= {4}:
        flat = list(chain.from_iterable(values))
        if set(map(type, flat)) <= {int, float}:
            return float_array(flat).reshape(-1, 4)
    wrong = [k for k, value in enumerate(values) if not _is_box(value)]
    what = f"bbox is {values[wrong[0]]!r:.60}, expected four numbers" if "bbox" in rows[wrong[0]] else "no bbox"
    report.fail_at("A17", what, _places(wrong), remedy="write [x, y, width, height] in pixels")
    boxes = whole.copy()
    right = [k for k, value in enumerate(values) if _is_box(value)]
    boxes[right] = float_array(list(chain.from_iterable(values[k] for k in right))).reshape(-1, 4)
    return boxes


def _places(rows: Iterable[int]) -> list[tuple[str | int, ...]]:
    return [("annotations", int(row), "bbox") for row in rows]


def _corners(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Convert (N, 4) x, y, width, height to x, y, x, y."""
    return np.concatenate((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), axis=1)


def _is_box(value: object) -> bool:
    return type(value) is list and len(value) == 4 and all(type(v) in (int, float) for v in value)


def _check_values(boxes: NDArray[np.float64], whole: NDArray[np.float64], report: Report) -> None:
    """Check that boxes are finite (A16) and have no negative size (A14)."""
    if (
        len(boxes)
        and boxes.max() <= MAX_COORDINATE
        and boxes[:, :2].min() >= -MAX_COORDINATE
        and boxes[:, 2:].min() >= 0
    ):
        return
    far = np.flatnonzero(~(np.abs(boxes) <= MAX_COORDINATE).all(axis=1))
    if far.size:
        what = f"box {_box_text(boxes[far[0]])} is not in pixels of an image"
        remedy = f"correct or remove such boxes ({far.size} of {len(boxes)})"
        report.fail_at("A16", what, _places(far), remedy=remedy)
        boxes[far] = whole[far]
    negative = np.flatnonzero((boxes[:, 2:] < 0).any(axis=1))
    if negative.size:
        what = f"box {_box_text(boxes[negative[0]])} has a negative width or height"
        remedy = f"write [x, y, width, height] from the top left ({negative.size} of {len(boxes)} boxes)"
        report.fail_at("A14", what, _places(negative), remedy=remedy)
        boxes[negative] = whole[negative]


def _check_convention(
    boxes: NDArray[np.float64], whole: NDArray[np.float64], bounds: NDArray[np.float64], report: Report
) -> None:
    """Check that boxes look like [x, y, width, height] in pixels, not like fractions (A19) or corners (A18)."""
    if len(boxes) and boxes.max() <= 1.5 and bounds.min() > 8:
        what = f"all boxes are within 0..1.5, such as {_box_text(boxes[0])}: fractions of the image, not pixels"
        remedy = "multiply x and width by the image's width, y and height by its height"
        report.fail("A19", what, "annotations", 0, "bbox", remedy=remedy)
        return
    outside = np.flatnonzero(_exceeds(_corners(boxes), bounds, _TOLERANCE))
    if outside.size <= max(2, 0.2 * len(boxes)):
        return
    as_corners = (boxes[:, 2:] >= boxes[:, :2]).all() and not _exceeds(boxes, bounds, _TOLERANCE).any()
    what = f"{outside.size} of {len(boxes)} boxes exceed the image, such as {_box_text(boxes[outside[0]])}"
    remedy = (
        "they look like [left, top, right, bottom]; write [x, y, width, height]"
        if as_corners
        else "check that boxes and image sizes match (images resized? height and width swapped?)"
    )
    report.fail("A18", what, "annotations", int(outside[0]), "bbox", remedy=remedy)
    boxes[outside] = whole[outside]


def _exceeds(corners: NDArray[np.float64], bounds: NDArray[np.float64], tolerance: float) -> NDArray[np.bool_]:
    """Return whether boxes xyxy exceed the image by more than `tolerance` pixels, (N,)."""
    return np.any((corners < -tolerance) | (corners > bounds + tolerance), axis=1)


def _note_outside(
    corners: NDArray[np.float64],
    clamped: NDArray[np.float64],
    bounds: NDArray[np.float64],
    has_area: NDArray[np.bool_],
    report: Report,
) -> NDArray[np.bool_]:
    """Report boxes that are clamped (A11, A13) or cannot be learned (A12, A15). Returns which are clamped, (N,)."""
    cut = has_area & _exceeds(corners, bounds, _TOLERANCE)
    has_size = (corners[:, 2:] > corners[:, :2]).all(axis=1)
    outside = ~has_area & has_size & ((corners[:, 2:] <= 0) | (corners[:, :2] >= bounds[:, 2:])).any(axis=1)
    empty = ~has_area & ~outside
    notes = (
        ("A11", "fix", cut, "over the edge of the image by more than a pixel; clamped to it"),
        ("A12", "skip", outside, "outside the image; not trained on"),
        ("A15", "skip", empty, "without area; not trained on"),
    )
    for code, severity, found, what in notes:
        count = int(found.sum())
        if count:
            place = ("annotations", int(np.flatnonzero(found)[0]), "bbox")
            text = f"{counted(count, 'box', 'boxes', of=len(found))} {what}"
            report.add(code, severity, text, *place, count=count)  # type: ignore[arg-type]
    return cut


def _crowds(rows: Rows, report: Report) -> NDArray[np.bool_]:
    """Return the crowd flags (N,), and report missing ones (A34)."""
    flags = array_of(rows, "iscrowd")
    if flags is not None and ((flags == 0) | (flags == 1)).all():
        return flags.astype(np.bool_)
    is_crowd = read_crowds(rows, in_table("annotations"), report)
    absent = object()
    missing = [k for k, value in enumerate(column(rows, "iscrowd", absent)) if value is absent]
    if missing:
        what = f"{counted(len(missing), 'object', of=len(rows), verb=HAS)} no iscrowd; 0 is used"
        report.add("A34", "fix", what, "annotations", missing[0], count=len(missing))
    return is_crowd


def _note_disagreement(corners: NDArray[np.float64], outlines: Segmentations, report: Report) -> None:
    """Report boxes with an IoU below 0.5 with the box around their outline (A41)."""
    if np.isnan(outlines.areas).all():
        return
    around = outlines.boxes_xyxy
    left_top = np.maximum(corners[:, :2], around[:, :2])
    right_bottom = np.minimum(corners[:, 2:], around[:, 2:])
    overlap = (right_bottom - left_top).clip(min=0).prod(axis=1)
    sizes = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (corners, around)]
    apart = np.flatnonzero(overlap < 0.5 * (sizes[0] + sizes[1] - overlap))  # False for NaN: no outline
    if apart.size:
        count = counted(apart.size, "box", "boxes", of=len(corners), verb=("does", "do"))
        what = f"{count} not match the segmentation (IoU below 0.5)"
        report.add("A41", "warn", what, "annotations", int(apart[0]), "bbox", count=apart.size)


def _areas(
    rows: Rows,
    stated: NDArray[np.float64],
    boxes_xywh: NDArray[np.float64],
    cut: NDArray[np.bool_],
    outlines: Segmentations,
    report: Report,
) -> NDArray[np.float64]:
    """Return the areas (N,): the stated one if it is possible, else that of the outline or of the box (A36)."""
    numbers = array_of(rows, "area")
    areas = _stated_areas(rows, report) if numbers is None else numbers
    infinite = np.flatnonzero(np.isinf(areas))
    if infinite.size:
        report.fail_at("A04", "area is not finite", [("annotations", int(k), "area") for k in infinite])
    computed = np.where(np.isnan(outlines.areas), boxes_xywh[:, 2:].prod(axis=1), outlines.areas)
    # An outline fits into the box around it. Some tools count pixels from edge to edge, hence + 1.
    around = outlines.boxes_xyxy[:, 2:] - outlines.boxes_xyxy[:, :2]
    limit = 1.05 * (np.where(np.isnan(around), stated[:, 2:], around) + 1).prod(axis=1)
    wrong = (areas > limit) | ((areas <= 0) & (computed > 0)) | (areas < 0)
    missing = np.isnan(areas)
    for found, what in ((missing, "no area"), (wrong, "an area that does not match the box")):
        if found.any():
            row, count = int(np.flatnonzero(found)[0]), int(found.sum())
            what = f"{counted(count, 'object', of=len(rows), verb=HAS)} {what}; computed"
            report.add("A36", "fix", what, "annotations", row, "area", count=count)
    return np.where(missing | wrong | (cut & np.isnan(outlines.areas)), computed, areas)


def _stated_areas(rows: Rows, report: Report) -> NDArray[np.float64]:
    """Return the areas (N,) as in the file, NaN where there is none."""
    values = column(rows, "area")
    wrong_type = [k for k, value in enumerate(values) if type(value) not in (int, float, type(None))]
    if wrong_type:
        what = f"area is {values[wrong_type[0]]!r:.40}, expected a number"
        report.fail_at("A36", what, [("annotations", k, "area") for k in wrong_type])
        for k in wrong_type:
            values[k] = 0
    return float_array([np.nan if value is None else value for value in values])


def _box_text(box: NDArray[np.float64]) -> str:
    return "[" + ", ".join(f"{value:.6g}" for value in box) + "]"
