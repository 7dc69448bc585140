"""Images that are almost the same, found by small grey pictures of them.

The differences of neighbouring cells give 64 bits (dHash: N. Krawetz, "Kind of Like That", 2013). Pairs with almost the
same bits are compared cell by cell in colour, relative to their contrast: plain backgrounds have alike bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

_ROWS, _COLUMNS, _SAMPLES = 8, 9, 8  # cells, and pixels that a cell takes along each side
_MIN_SIDE = 32  # of an image in pixels; smaller ones are alike by nature
_MIN_CONTRAST = 4.0  # standard deviation of the grey cells, of 255
_MAX_BITS = 6  # of 64 that may differ
_MAX_DIFFERENCE = 0.1  # mean difference of the cells, as a part of their standard deviation


@dataclass(frozen=True)
class Sketch:
    """An image in a few bytes. cells: (3, 8, 9) uint8. bits: (64,) int8, 1 or -1."""

    cells: NDArray[np.uint8]
    bits: NDArray[np.int8]


def sketch(image: Tensor) -> Sketch | None:
    """Return the sketch of an image (3, H, W) uint8; None if it is too small or too plain to tell it from others."""
    height, width = image.shape[-2:]
    if min(height, width) < _MIN_SIDE:
        return None
    # Rows, then columns, of the memory order (H, W, 3) that decoding gives.
    pixels = image.permute(1, 2, 0).numpy()
    rows, columns = (
        np.linspace(0, side - 1, cells * _SAMPLES).round().astype(np.int64)
        for side, cells in ((height, _ROWS), (width, _COLUMNS))
    )
    taken = pixels[rows[:, None], columns].reshape(_ROWS, _SAMPLES, _COLUMNS, _SAMPLES * 3)
    sums = taken.sum(axis=1, dtype=np.uint16).reshape(_ROWS, _COLUMNS, _SAMPLES, 3).sum(axis=2, dtype=np.uint16)
    means = sums.transpose(2, 0, 1).astype(np.float32) / _SAMPLES**2
    grey = means.mean(axis=0)
    if grey.std() < _MIN_CONTRAST:
        return None
    bits = np.where(grey[:, 1:] > grey[:, :-1], 1, -1).astype(np.int8)
    return Sketch(means.round().astype(np.uint8), bits.ravel())


def near_pairs(known: Sequence[Sketch | None], others: Sequence[Sketch | None]) -> list[tuple[int, int]]:
    """Return (index in `known`, index in `others`) of each of `others` that has almost the same image in `known`."""
    places = [np.array([k for k, found in enumerate(side) if found], dtype=np.int64) for side in (known, others)]
    if not len(places[0]) or not len(places[1]):
        return []
    bits, cells = zip(*(_stacked(side) for side in (known, others)), strict=True)
    pairs = []
    for start in range(0, len(bits[1]), 256):
        alike = bits[1][start : start + 256] @ bits[0].T >= 64 - 2 * _MAX_BITS
        for row in np.flatnonzero(alike.any(axis=1)).tolist():
            candidates = np.flatnonzero(alike[row])
            own = _without_brightness(cells[1][start + row])
            apart = np.abs(_without_brightness(cells[0][candidates]) - own).mean(axis=(1, 2, 3))
            best = int(apart.argmin())
            if apart[best] <= _MAX_DIFFERENCE * own.mean(axis=0).std():
                pairs.append((int(places[0][candidates[best]]), int(places[1][start + row])))
    return pairs


def _without_brightness(cells: NDArray[np.uint8]) -> NDArray[np.float32]:
    values = cells.astype(np.float32)
    return values - values.mean(axis=(-3, -2, -1), keepdims=True)


def _stacked(sketches: Sequence[Sketch | None]) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    found = [each for each in sketches if each]
    return np.stack([each.bits for each in found]).astype(np.float32), np.stack([each.cells for each in found])
