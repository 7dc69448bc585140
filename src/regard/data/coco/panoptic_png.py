"""Panoptic PNG files: the segment of every pixel, as id = R + 256 G + 65536 B; 0 is void.

Kirillov et al. 2019, and https://cocodataset.org/#format-data.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from regard.data.coco.panoptic_annotations import PanopticAnnotations
from regard.data.images import read_image
from regard.data.paths import open_file
from regard.errors import DataError
from regard.structures.segments import PanopticSegments


def segments_of(annotations: PanopticAnnotations, index: int) -> PanopticSegments:
    """Read the segments of image `index`, ground truth or predictions, in the order of the JSON file.

    Scores are 1: the format has none.

    Raises:
        DataError: the PNG file does not match the JSON file (A42).
    """
    table, rows = annotations.segments, annotations.rows_of(index)
    labels = torch.from_numpy(table.labels[rows])
    return PanopticSegments(
        ids=torch.from_numpy(read_segments(annotations, index)),
        labels=labels,
        scores=torch.ones(len(labels)),
        categories=annotations.categories,
        is_crowd=torch.from_numpy(table.is_crowd[rows]),
    )


def read_segments(annotations: PanopticAnnotations, index: int) -> NDArray[np.int32]:
    """Read the PNG file of image `index`.

    Returns:
        (H, W): 0 for void, else 1 + the number of the pixel's segment in the JSON file.

    Raises:
        DataError: the PNG file is not RGB, has another size than the image, or has an id that the JSON file lacks; or
            the JSON file has an id that no pixel has (A42).
    """
    record = annotations.images[index]
    ids = _read_ids(annotations, index)
    if ids.shape != (record.height, record.width):
        what = f"the PNG is {ids.shape[1]}x{ids.shape[0]}, expected {record.width}x{record.height} as its image"
        raise _mismatch(annotations, index, what, "write the PNG at the size of its image")
    known = np.concatenate(([0], annotations.segments.ids[annotations.rows_of(index)]))
    order = np.argsort(known)
    # Most neighbours belong to the same segment: looking up runs instead of pixels is a hundredth of the work.
    flat = ids.ravel()
    starts = np.concatenate(([0], np.flatnonzero(flat[1:] != flat[:-1]) + 1))
    values = flat[starts]
    places = np.minimum(np.searchsorted(known[order], values), len(known) - 1)
    strays = values[known[order[places]] != values]
    if strays.size:
        what = f"pixels have the id {strays[0]}, which segments_info lacks"
        raise _mismatch(annotations, index, what, "add the segment, or set its pixels to void (0)")
    segments = order[places].astype(np.int32)
    absent = np.bincount(segments, minlength=len(known))[1:] == 0
    if absent.any():
        segment = int(absent.argmax())
        remedy = "remove the segment from the JSON file, or add its pixels"
        raise _mismatch(annotations, index, f"no pixel has the id {known[segment + 1]}", remedy, segment)
    return np.repeat(segments, np.diff(np.concatenate((starts, [flat.size])))).reshape(ids.shape)


def boxes_of(ids: NDArray[Any], count: int) -> NDArray[np.float32]:
    """Return boxes (count, 4) xyxy in pixels around the segments 1..count of `ids` (H, W); zeros without pixels.

    Boxes span the outer edges of the first and last pixel, as COCO's own. The authors' `masks_to_boxes`
    (util/box_ops.py) ends one pixel earlier, which leaves a segment of one pixel in width without area.
    """
    width = ids.shape[1]
    starts = np.flatnonzero(np.diff(ids, axis=1, prepend=-1))  # of runs; every row starts one
    stops = np.append(starts[1:], ids.size)
    segments = ids.ravel()[starts]
    low = np.full((count + 1, 2), max(ids.shape))
    high = np.zeros((count + 1, 2), dtype=low.dtype)
    for axis, first, last in ((0, starts % width, (stops - 1) % width), (1, starts // width, starts // width)):
        np.minimum.at(low[:, axis], segments, first)
        np.maximum.at(high[:, axis], segments, last + 1)
    low[high[:, 0] == 0] = 0
    return np.concatenate((low, high), axis=1)[1:].astype(np.float32)


def rgb_of(ids: NDArray[Any]) -> NDArray[np.uint8]:
    """Convert ids (H, W) 0..2**24 - 1 to pixels (H, W, 3)."""
    return ids.astype("<u4").view(np.uint8).reshape(*ids.shape, 4)[..., :3]  # the bytes of the numbers


def ids_of(rgb: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Convert pixels (H, W, 3) to ids (H, W)."""
    red, green, blue = rgb.astype(np.int32).transpose(2, 0, 1)
    return red + 256 * green + 65536 * blue


def _read_ids(annotations: PanopticAnnotations, index: int) -> NDArray[np.int32]:
    """Return the ids (H, W) in the pixels of a PNG file."""
    path = annotations.segment_folder / annotations.files[index]
    with open_file(path) as file:
        head = file.read(26)
    # Decoding would convert other pixel formats to RGB, and change the ids.
    bits, colour = (head[24], head[25]) if head[:8] == b"\x89PNG\r\n\x1a\n" and len(head) == 26 else (0, 0)
    if (bits, colour) != (8, 2):
        kinds = {0: "grey", 2: "RGB", 3: "palette", 4: "grey and alpha", 6: "RGBA"}
        what = f"a PNG with {bits}-bit {kinds.get(colour, 'other')} pixels" if bits else "not a PNG file"
        raise _mismatch(annotations, index, f"{what}, expected 8-bit RGB", "write id = R + 256 G + 65536 B")
    return ids_of(read_image(path).permute(1, 2, 0).numpy())


def _mismatch(
    annotations: PanopticAnnotations, index: int, what: str, remedy: str, segment: int | None = None
) -> DataError:
    """Return the error for image `index` whose PNG does not match the JSON file. segment: its number in the file."""
    place: tuple[str | int, ...] = ("annotations", int(annotations.rows[index]))
    if segment is not None:
        place += ("segments_info", segment, "id")
    png = annotations.segment_folder / annotations.files[index]
    return annotations.report.error("A42", f"{what}: {png}", *place, remedy=remedy)
