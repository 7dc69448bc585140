"""Read large COCO documents of objects: values as arrays, and each row as text until it is asked for.

A document in which everything has its usual type is parsed by msgspec, piece by piece, without a dictionary for each
row. Any other one, and one that may have a key twice, is read by `read_json`, which knows the place of a fault.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, overload

import msgspec
import numpy as np
from msgspec import Raw
from numpy.typing import NDArray

from regard.data.coco.columns import OUTLINE, OutlineColumns, TypedRows
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
        OUTLINE: TypedRows.OUTLINES,
    },
}
_PIECE = 2**16  # bytes parsed at a time: their values stay in the processor's cache
_MAX_ROW = 2**22  # bytes in which a row has to end
_MAX_TRIES = 30  # ends of rows, until one is not that of an object inside a row


class Table(Sequence[dict[str, Any]]):
    """The rows of a table, parsed when asked for.

    Args:
        text: of the whole document.
        pieces: first row, start and stop in the text of each piece that is parsed at once.

    Attributes:
        columns: values of all rows by key, int64 or float64 (N,), (N, 4) of boxes, or a list of texts. Keys that a row
            lacks are left out.
        outlines: the `segmentation` of all rows; None in a table without objects.
    """

    def __init__(self, text: memoryview, pieces: Sequence[tuple[int, int, int]], count: int, columns: dict[str, Any]):
        self.outlines: OutlineColumns | None = columns.pop(OUTLINE, None)
        self.columns = columns
        self._text, self._pieces, self._count = text, pieces, count
        self._parsed: tuple[int, list[dict[str, Any]]] = (-1, [])  # the last piece asked for

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, row: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, row: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, row: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(row, slice):
            return [self[k] for k in range(self._count)[row]]
        row = range(self._count)[row]
        piece = bisect_right(self._pieces, row, key=lambda found: found[0]) - 1
        first, start, stop = self._pieces[piece]
        if self._parsed[0] != piece:
            self._parsed = piece, json.loads(_as_table(self._text[start:stop]))
        return self._parsed[1][row - first]


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


def outline_columns(rows: Rows) -> OutlineColumns | None:
    """Return the outlines of all rows; None if they have to be looked at one by one."""
    return rows.outlines if isinstance(rows, Table) else None


def outlines(rows: Rows) -> Iterator[Any]:
    """Iterate over the outlines of all rows, None for rows without one."""
    return (row.get(OUTLINE) for row in rows)


def _tables(data: bytes) -> dict[str, Any] | None:
    """Parse a document; None if it is not an ordinary one or may have a key twice."""
    try:
        tables = {name: _large(data, start, known) for name, known in _KNOWN.items() if (start := _start(data, name))}
        # The rest is small. In it, a text takes the place of each table, which shows that the table was one of it.
        rest, end = [], 0
        for name, (_, start, stop) in sorted(tables.items(), key=lambda item: item[1][1]):
            rest += [data[end:start], _placeholder(name)]
            if start < end:
                return None  # a table inside another one
            end = stop
        text = b"".join((*rest, data[end:]))
        document = msgspec.json.decode(text, type=dict[str, Any])
        _check_keys(text, _keys_in(document))
        values = msgspec.json.decode(text, type=dict[str, Raw]) if tables else {}
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    for name, (table, _, _) in tables.items():
        # Elsewhere the text is that of a table inside something else, such as `info`.
        if name not in values or bytes(values[name]) != _placeholder(name) or text.count(_placeholder(name)) > 1:
            return None
        document[name] = table
    return document


def _placeholder(name: str) -> bytes:
    return f'"<table {name}>"'.encode()


def _start(data: bytes, name: str) -> int | None:
    """Return where a table with rows seems to start, None if nowhere."""
    key, at = f'"{name}"'.encode(), 0
    while (at := data.find(key, at)) >= 0:
        at += len(key)
        if found := re.compile(rb"[ \t\r\n]*:[ \t\r\n]*\[(?=[ \t\r\n]*\{)").match(data, at):
            return found.end() - 1
    return None


def _large(data: bytes, begin: int, known: dict[str, Any]) -> tuple[Table, int, int]:
    """Parse the table that begins somewhere in a document. Returns it, and where it starts and stops.

    Raises:
        ValueError, MsgspecError: a value is not of the type that `known` has for its key, or a row has a key that is
            neither known nor in the first row, or may have one twice.
    """
    text = memoryview(data)
    start = data.index(b"{", begin)
    first = json.loads(data[start : start + _length(data[start : start + _MAX_ROW])])
    # A comma or the end of the table follows each number, or the list or row that it ends.
    max_numbers = _count(text[start:], ",") + 1 if OUTLINE in known else 0
    typed = TypedRows(known, [key for key in first if key not in known], max_numbers)
    # Rows mostly begin with the same key, and objects inside them with another one.
    separators = [_separator(json.dumps(next(iter(first), ""))), _separator("")]
    pieces = []
    count, following = 0, start
    while data[following] != ord("]"):
        start = following
        rows, stop, following = _parsed(text, start, separators, typed.decoder)
        keys, nested = typed.add(rows)
        if keys != _count(text[start:stop], ":"):  # there are texts with colons, or keys inside values
            _check_keys(data[start:stop], keys + _keys_in(nested))
        pieces.append((count, start, stop))
        count += len(rows)
    return Table(text, pieces, count, typed.columns()), begin, following + 1


def _parsed(
    text: memoryview, start: int, separators: Sequence[re.Pattern[bytes]], decoder: msgspec.json.Decoder[list[Any]]
) -> tuple[list[Any], int, int]:
    """Parse the rows of a table from `start` to the first end of a row after a piece, or to the end of the table.

    What looks like the end of a row may be that of an object inside it. Then the text up to there is not JSON.

    Returns:
        the rows, where they stop, and where the next row starts or the table ends.
    """
    at = start + _PIECE
    for _ in range(_MAX_TRIES):
        last = at + _MAX_ROW
        found = separators[0].search(text, at, at + _PIECE) or separators[1].search(text, at, last)
        at = last if found is None else found.start() + 1
        try:
            if found is not None:
                return decoder.decode(_as_table(text[start:at])), at, found.end()
        except msgspec.ValidationError:
            raise
        except msgspec.DecodeError:
            pass
        with suppress(json.JSONDecodeError):
            end = start - 1 + _length(b"[" + text[start:at]) - 1
            return decoder.decode(_as_table(text[start:end])), end, end
    raise ValueError("no end of a row found")


def _length(text: bytes) -> int:
    """Return the length of the JSON value that a text begins with.

    Raises:
        JSONDecodeError: it is not complete.
    """
    return json.JSONDecoder().raw_decode(text.decode("latin-1"))[1]  # one letter a byte


def _separator(key: str) -> re.Pattern[bytes]:
    """Return a pattern of what is between two rows. key: that the second one begins with, in quotes; empty for any."""
    return re.compile(rb"\}[ \t\r\n]*,[ \t\r\n]*(?=\{[ \t\r\n]*" + re.escape(key.encode()) + rb")")


def _count(text: memoryview, letter: str) -> int:
    """Return how often an ASCII letter is in a text: `bytes.count` is slow where that is often."""
    codes = np.frombuffer(text, np.uint8)
    return sum(int(np.count_nonzero(codes[k : k + _PIECE] == ord(letter))) for k in range(0, len(codes), _PIECE))


def _as_table(rows: memoryview) -> bytes:
    return b"".join((b"[", rows, b"]"))


def _check_keys(text: bytes, keys: int) -> None:
    """Check that a JSON text has no key twice. keys: the number of those that parsing gave.

    A key is a text before a colon. Fewer keys than such texts: one of them is there twice.

    Raises:
        ValueError: one may be there twice.
    """
    codes = np.frombuffer(text, np.uint8)
    before = codes[np.flatnonzero(codes == ord(":")) - 1]
    count = int(np.count_nonzero(before == ord('"')))
    if (before <= ord(" ")).any():
        count += text.count(b'" :')
        if any(spaced in text for spaced in (b"  :", b"\t:", b"\n:", b"\r:")):  # keys that the count does not see
            raise ValueError("a key may be there twice")
    if keys != count:
        raise ValueError("a key may be there twice")


def _keys_in(value: Any) -> int:
    if isinstance(value, dict):
        return len(value) + sum(map(_keys_in, value.values()))
    return sum(map(_keys_in, value)) if isinstance(value, list) else 0
