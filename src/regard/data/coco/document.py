"""Read large COCO documents of objects: numbers as arrays, and each row as text until it is asked for.

A document in which everything has its usual type is parsed by msgspec, without a dictionary for each row. Any other
one, and one that may have a key twice, is read by `read_json`, which knows the place of a fault.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import chain, repeat
from operator import attrgetter
from pathlib import Path
from typing import Any, overload

import msgspec
import numpy as np
from msgspec import UNSET, Raw, UnsetType
from numpy.typing import NDArray

from regard.data.coco.json_file import parse_json, read_text
from regard.data.report import Report

_KNOWN: dict[str, dict[str, Any]] = {
    "images": {"id": int, "file_name": str, "height": int, "width": int},
    "annotations": {
        "id": int,
        "image_id": int,
        "category_id": int,
        "bbox": tuple[float, float, float, float],
        "area": float | None,
        "iscrowd": int,
    },
}
_CHUNK = 4096  # rows parsed at a time: their values stay in the processor's cache


class Table(Sequence[dict[str, Any]]):
    """The rows of a table, parsed one by one when asked for.

    Attributes:
        columns: values of all rows by key, int64 or float64 (N,), (N, 4) of boxes, or a list of texts. Keys that a row
            lacks are left out.
        outlined: whether a row has a `segmentation`.
    """

    def __init__(self, texts: Sequence[Raw], columns: dict[str, Any], outlined: bool) -> None:
        self.columns, self.outlined = columns, outlined
        self._texts = texts

    def __len__(self) -> int:
        return len(self._texts)

    @overload
    def __getitem__(self, row: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, row: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, row: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        return [*map(_decode, self._texts[row])] if isinstance(row, slice) else _decode(self._texts[row])

    def outlines(self) -> Iterator[Any]:
        """Iterate over the `segmentation` of all rows; as lists, all of them take ten times their text."""
        if not self.outlined:
            yield from repeat(None, len(self))
            return
        for texts in _chunks(self._texts):
            try:
                yield from (None if row.segmentation is UNSET else row.segmentation for row in _OUTLINES.decode(texts))
            except msgspec.MsgspecError:  # a number beyond those of msgspec
                yield from (row.get("segmentation") for row in json.loads(texts))


class _Outlined(msgspec.Struct, gc=False):
    segmentation: Any = UNSET


_OUTLINES = msgspec.json.Decoder(list[_Outlined])
Rows = Table | list[dict[str, Any]]


def read_document(path: Path, report: Report) -> Any:
    """Return the document in a file as `read_json` does, with `Table`s of images and objects where nothing is wrong."""
    data = read_text(path, report)
    tables = _tables(data)
    return parse_json(data, path, report) if tables is None else tables


def column(rows: Rows, key: str, default: Any = None) -> list[Any]:
    """Return the values of a key of all rows; `default` for rows without it."""
    if isinstance(rows, Table) and key in rows.columns:
        values = rows.columns[key]
        return values if isinstance(values, list) else values.tolist()
    return [row.get(key, default) for row in rows]


def array_of(rows: Rows, key: str) -> NDArray[Any] | None:
    """Return the array of a key, see `Table.columns`; None if its values have to be looked at one by one."""
    return rows.columns.get(key) if isinstance(rows, Table) else None


def outlines(rows: Rows) -> Iterator[Any]:
    """Iterate over the `segmentation` of all rows, None for rows without it."""
    return rows.outlines() if isinstance(rows, Table) else (row.get("segmentation") for row in rows)


def _tables(data: bytes) -> dict[str, Any] | None:
    """Parse a document; None if it is not an ordinary one or may have a key twice."""
    try:
        texts = msgspec.json.decode(data, type=dict[str, Raw])
        if not data.isascii():
            data.decode()  # msgspec skips over the text of keys that are not asked for
        tables: dict[str, Any] = {}
        keys = len(texts)
        for name, text in texts.items():
            tables[name], count = _large(text, _KNOWN[name]) if name in _KNOWN else _small(text)
            keys += count
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    if any(odd in data for odd in (b"  :", b"\t:", b"\n:", b"\r:")):  # keys that the count below does not see
        return None
    # A key is a text before a colon. Fewer keys than such texts: one of them is there twice.
    return tables if keys == data.count(b'":') + data.count(b'" :') else None


def _small(text: Raw) -> tuple[Any, int]:
    """Parse a value. Returns it, and how many keys it has."""
    value = msgspec.json.decode(text)
    return value, _keys_in(value)


def _large(text: Raw, known: dict[str, Any]) -> tuple[Table, int]:
    """Parse a table. Returns it, and how many keys its rows have.

    Raises:
        ValueError, MsgspecError: it is none, a value is not of the type that `known` has for its key, or a row has a
            key that is neither known nor in the first row.
    """
    texts = msgspec.json.decode(text, type=list[Raw])
    if not texts:
        return Table([], {}, outlined=False), 0
    first = json.loads(bytes(texts[0]))
    if not isinstance(first, dict):
        raise ValueError("not a table of objects")
    others = {"segmentation": "segmentation"}
    others |= {
        f"_{number}": key for number, key in enumerate(key for key in first if key not in (*known, "segmentation"))
    }
    fields = [*known.items(), *((name, Raw) for name in others)]
    kind = msgspec.defstruct(
        "ParsedRow", [(name, of | UnsetType, UNSET) for name, of in fields], gc=False, rename=others,
        forbid_unknown_fields=True,
    )  # fmt: skip
    decoder = msgspec.json.Decoder(list[kind])  # type: ignore[valid-type]
    parts: dict[str, list[Any]] = {key: [] for key in known}
    keys, outlined = 0, False
    for chunk in _chunks(texts):
        rows = decoder.decode(chunk)
        for key, of in known.items():
            packed = _packed(rows, key, of)
            parts[key].append(packed)
            keys += len(rows) if packed is not None else len(_present(rows, key))
        for key in others:
            values = _present(rows, key)
            keys += len(values) + _keys_inside(values)
            outlined |= key == "segmentation" and bool(values)
    columns = {
        key: list(chain.from_iterable(found)) if known[key] is str else np.concatenate(found)
        for key, found in parts.items()
        if all(part is not None for part in found)
    }
    return Table(texts, columns, outlined), keys


def _chunks(texts: Sequence[Raw]) -> Iterator[bytes]:
    """Return the text of `_CHUNK` rows at a time, as a table."""
    for start in range(0, len(texts), _CHUNK):
        yield b"[" + b",".join(texts[start : start + _CHUNK]) + b"]"


def _present(rows: Sequence[msgspec.Struct], key: str) -> list[Any]:
    """Return the values of the rows that have a key."""
    values = list(map(attrgetter(key), rows))
    return [value for value in values if value is not UNSET] if UnsetType in set(map(type, values)) else values


def _packed(rows: Sequence[msgspec.Struct], key: str, of: Any) -> Any:
    """Return the values of a key as an array, texts as they are; None if one is missing or has more than 64 bits."""
    values = map(attrgetter(key), rows)
    try:
        if of is str:
            texts = list(values)
            return None if UnsetType in set(map(type, texts)) else texts
        if of is int:
            return np.fromiter(values, np.int64, len(rows))
        if of == float | None:
            return np.array(list(values), dtype=np.float64)
        return np.fromiter(chain.from_iterable(values), np.float64, 4 * len(rows)).reshape(-1, 4)
    except (TypeError, OverflowError):
        return None


def _keys_inside(values: list[Raw]) -> int:
    """Return how many keys are inside values. Most are lists of numbers, without any."""
    text = b",".join(values)
    return sum(_keys_in(_decode(value)) for value in values) if b'":' in text or b'" :' in text else 0


def _keys_in(value: Any) -> int:
    if isinstance(value, dict):
        return len(value) + sum(map(_keys_in, value.values()))
    return sum(map(_keys_in, value)) if isinstance(value, list) else 0


def _decode(text: Raw) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.MsgspecError:  # a number beyond those of msgspec
        return json.loads(bytes(text))
