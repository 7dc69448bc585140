"""Rows of a COCO table as columns: typed rows are parsed piece by piece, and their values packed into arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from types import GenericAlias
from typing import Any

import msgspec
import numpy as np
from msgspec import UNSET, UnsetType
from msgspec.structs import astuple
from numpy.typing import NDArray

OUTLINE = "segmentation"
_NUMBER = np.dtype([("kind", "u1"), ("value", ">f8")])  # a float in MessagePack
_NESTED = {dict, list}
_ENCODER = msgspec.msgpack.Encoder()


@dataclass(frozen=True)
class OutlineColumns:
    """The outlines of N rows as they are in the file, all numbers and each in one of COCO's forms, but not checked.

    Args:
        numbers: x, y, x, y, ... of all polygons, one after the other.
        lengths: (M,) int64, count of the numbers of each polygon.
        per_row: (N,) int64, count of the polygons of each row.
        run_lengths: the value of each row that has run lengths, in the order of the rows.
    """

    numbers: NDArray[np.float64]
    lengths: NDArray[np.int64]
    per_row: NDArray[np.int64]
    run_lengths: dict[int, dict[str, Any]]


class _RunLengths(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    size: list[int]
    counts: list[int] | str


class TypedRows:
    """The columns of a table, which grow with each piece of its rows.

    Args:
        known: type of the value of each key that becomes a column: int, str, `float | None`, a tuple of four floats, or
            `OUTLINES` for outlines.
        others: keys that are only counted. A row with any further key cannot be parsed.
        max_numbers: of all outlines together. Their memory is set aside, and used as far as there are numbers.

    Attributes:
        decoder: parses a JSON text of rows for `add`. Its errors are of msgspec.
    """

    OUTLINES: Any = list[list[float]] | _RunLengths | None

    def __init__(self, known: dict[str, Any], others: Sequence[str], max_numbers: int) -> None:
        self._known = known
        self._others = {f"_{number}": key for number, key in enumerate(others)}
        fields = [*known.items(), *((name, Any) for name in self._others)]
        kind = msgspec.defstruct(
            "ParsedRow", [(name, of if of is Any else of | UnsetType, UNSET) for name, of in fields],
            gc=False, rename=self._others, forbid_unknown_fields=True,
        )  # fmt: skip
        self.decoder: msgspec.json.Decoder[list[Any]] = msgspec.json.Decoder(GenericAlias(list, kind))
        self._parts: dict[str, list[Any]] = {key: [] for key in known}
        self._count = 0
        self._numbers, self._used = np.empty(max_numbers), 0
        self._run_lengths: dict[int, dict[str, Any]] = {}

    def add(self, rows: Sequence[Any]) -> tuple[int, list[Any]]:
        """Add rows. Returns how many keys they have outside the values of other keys, and those that may have keys."""
        keys, nested = 0, list[Any]()
        columns = zip(*map(astuple, rows), strict=True)
        for (key, of), values in zip(self._known.items(), columns, strict=False):  # the others follow
            if of is self.OUTLINES:
                part, inside = self._outlines(values)
                keys += inside
            else:
                part = _packed(values, of)
            self._parts[key].append(part)
            keys += len(_present(values)) if part is None or of is self.OUTLINES else len(rows)
        for column in columns:
            present = _present(column)
            keys += len(present)
            if not _NESTED.isdisjoint(map(type, present)):
                nested += present
        self._count += len(rows)
        return keys, nested

    def columns(self) -> dict[str, Any]:
        """Return the values of all rows by key, see `Table.columns`."""
        columns: dict[str, Any] = {}
        for key, of in self._known.items():
            parts = self._parts.pop(key)
            if of is self.OUTLINES:
                lengths, per_row = map(np.concatenate, zip(*parts, strict=True))
                columns[key] = OutlineColumns(self._numbers[: self._used], lengths, per_row, self._run_lengths)
            elif all(part is not None for part in parts):
                columns[key] = list(chain.from_iterable(parts)) if of is str else np.concatenate(parts)
        return columns

    def _outlines(self, values: Sequence[Any]) -> tuple[tuple[NDArray[Any], ...], int]:
        """Return lengths and counts of polygons, see `OutlineColumns`, and how many keys run lengths have."""
        found: dict[int, dict[str, Any]] = {}
        polygons: list[list[float]] = []
        counts = np.zeros(len(values), np.int64)
        kinds = set(map(type, values))
        if list in kinds:
            outlines = [value if type(value) is list else () for value in values]
            counts = np.fromiter(map(len, outlines), np.int64, len(values))
            polygons = list(chain.from_iterable(outlines))
        if _RunLengths in kinds:
            rows = enumerate(values, start=self._count)
            found = {k: {"size": v.size, "counts": v.counts} for k, v in rows if type(v) is _RunLengths}
            self._run_lengths |= found
        numbers: list[float] = []
        for polygon in polygons:
            numbers += polygon
        self._numbers[self._used : self._used + len(numbers)] = _floats(numbers)
        self._used += len(numbers)
        lengths = np.fromiter(map(len, polygons), np.int64, len(polygons))
        return (lengths, counts), 2 * len(found)


def _packed(values: Sequence[Any], of: Any) -> Any:
    """Return values as an array, texts as they are; None if one is missing or has more than 64 bits."""
    try:
        if of is str:
            return None if UnsetType in set(map(type, values)) else values
        if of is int:
            return np.fromiter(values, np.int64, len(values))
        if of == float | None:
            return _floats(values)
        return _floats(list(chain.from_iterable(values))).reshape(-1, 4)
    except (TypeError, OverflowError):  # TypeError: UNSET is no number
        return None


def _floats(numbers: Sequence[Any]) -> NDArray[np.float64]:
    """Return floats as an array, NaN for None. MessagePack has nine bytes for each: a third of the time of `np.array`.

    Raises:
        TypeError: one is UNSET.
    """
    text = _ENCODER.encode(numbers)
    start = len(text) - 9 * len(numbers)
    if start < 0:  # None takes a single byte
        return np.array(numbers, np.float64)
    return np.frombuffer(text, _NUMBER, offset=start)["value"].astype(np.float64)


def _present(values: Sequence[Any]) -> Sequence[Any]:
    return [value for value in values if value is not UNSET] if UnsetType in set(map(type, values)) else values
