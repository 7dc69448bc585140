"""Read JSON files strictly: find mistakes that Python's parser accepts silently."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regard.config import near_path
from regard.data.report import Report
from regard.errors import HAS, DataError, counted

# COCO's largest file has 0.45 GB. Parsed JSON takes about ten times the memory of its text (measured on polygons).
MAX_BYTES = 2 * 1024**3
_BOM = b"\xef\xbb\xbf"


def read_json(path: Path, report: Report) -> Any:
    """Return the document in a UTF-8 file. A byte order mark (A03) and duplicate keys (A06) are added to `report`.

    Raises:
        DataError: the file is missing, empty (A01), not JSON (A02), has NaN or Infinity (A04), is nested too deeply or
            has numbers of thousands of digits (A05), or is larger than `MAX_BYTES` (A50).
    """
    return parse_json(read_text(path, report), path, report)


def read_text(path: Path, report: Report) -> bytes:
    """Return the text of a JSON file without its byte order mark.

    Raises:
        DataError: as for `read_json`, up to A01 and A50.
    """
    data = _read(path, report)
    if data.startswith(_BOM):
        report.add("A03", "fix", "byte order mark ignored")
        data = data.removeprefix(_BOM)
    if data.startswith(b"version https://git-lfs"):
        raise report.error("A02", "a Git LFS pointer, not the file itself", remedy="run: git lfs pull")
    if not data or data.isspace():
        raise report.error("A01", "the file is empty", remedy="export the annotations again")
    return data


def parse_json(data: bytes, path: Path, report: Report) -> Any:
    """Parse the text that `read_text` returns, see `read_json`."""
    text = _decode(data, report)
    repeated: list[tuple[dict, str]] = []
    literals: list[str] = []

    def build(pairs: list[tuple[str, Any]]) -> dict:
        table = dict(pairs)
        if len(table) != len(pairs):
            keys = [key for key, _ in pairs]
            repeated.append((table, next(key for key in keys if keys.count(key) > 1)))
        return table

    def literal(name: str) -> float:
        literals.append(name)
        return math.nan

    document = _parse(text, path, build, literal)
    if literals:
        place = _place_of(document, lambda value: isinstance(value, float) and math.isnan(value))
        report.fail("A04", f"{literals[0]} is not a JSON number", *place, remedy="write a number")
    if repeated:
        table, key = repeated[0]
        place = _place_of(document, lambda value: value is table)
        what = f"{counted(len(repeated), 'object', verb=HAS)} a duplicate key ({key!r:.40}); the last value is used"
        report.add("A06", "warn", what, *place, key, count=len(repeated))
    return document


def float_array(values: Sequence[int | float]) -> NDArray[np.float64]:
    """Return numbers of a JSON document as an array. Integers too large for a float become 1e300 or -1e300."""
    try:
        return np.array(values, dtype=np.float64)
    except OverflowError:
        return np.array([float(min(max(value, -1e300), 1e300)) for value in values])


def _read(path: Path, report: Report) -> bytes:
    try:
        if not path.is_file():
            if not path.exists():
                raise DataError("no such file", where=path, remedy=near_path(path))
            raise DataError("not a regular file", where=path, remedy="check the path")
        size = path.stat().st_size
        if size > MAX_BYTES:
            what = f"{size:,} bytes of JSON, more than the maximum of {MAX_BYTES:,}"
            raise report.error("A50", what, remedy="split the data set")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", where=path, remedy="check its permissions") from error


def _decode(data: bytes, report: Report) -> str:
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        what = f"not UTF-8 text (byte {error.start:,})"
        raise report.error("A02", what, remedy="save the file as JSON in UTF-8") from error
    if text.isspace():  # of spaces beyond ASCII
        raise report.error("A01", "the file is empty", remedy="export the annotations again")
    return text


def _parse(text: str, path: Path, build: Callable[[list], dict], literal: Callable[[str], float]) -> Any:
    try:
        return json.loads(text, object_pairs_hook=build, parse_constant=literal)
    except json.JSONDecodeError as error:
        raise DataError(
            f"not valid JSON: {error.msg[0].lower()}{error.msg[1:]}",
            where=f"{path}:{error.lineno}:{error.colno}",
            remedy="the file may be cut off: export or download it again",
            code="A02",
        ) from error
    except RecursionError as error:
        raise DataError("JSON nested too deeply", where=path, remedy="export it again", code="A05") from error
    except ValueError as error:  # Python refuses integers of more than 4300 digits: they take quadratic time
        raise DataError("a number of thousands of digits", where=path, remedy="export it again", code="A05") from error


def _place_of(document: Any, is_it: Callable[[Any], bool]) -> tuple[str | int, ...]:
    """Return the keys and indices of the first value for which `is_it` is true. Slow; for messages only."""
    stack: list[tuple[tuple[str | int, ...], Any]] = [((), document)]
    while stack:
        place, value = stack.pop()
        if is_it(value):
            return place
        if isinstance(value, dict | list):
            children = value.items() if isinstance(value, dict) else enumerate(value)
            stack.extend(reversed([((*place, key), child) for key, child in children]))
    return ()
