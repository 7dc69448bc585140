"""Rows of detections or classes as a Parquet file."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from regard.errors import MachineError, install_command
from regard.safe_files import atomic_file

MAGIC = b"PAR1"
_KEY, _OURS = b"regard", b"predict"  # in the metadata of our files


def check_pyarrow() -> None:
    """Raise MachineError if Parquet files cannot be written, because the package pyarrow is missing."""
    if importlib.util.find_spec("pyarrow") is None:
        raise MachineError("Parquet needs the package pyarrow", remedy=install_command("pyarrow"))


def write_table(path: Path, rows: Sequence[dict[str, Any]], *, classes: bool) -> None:
    """Write rows as a table; one without rows has columns too.

    Args:
        rows: those of the JSON file.
        classes: of a classifier.
    """
    import pyarrow as pa
    from pyarrow import parquet

    one = pa.struct({"label": pa.string(), "label_id": pa.int64(), "score": pa.float64()})
    outline = pa.struct({"size": pa.list_(pa.int64()), "counts": pa.string()})
    columns = {
        "image_id": pa.int64(), "file_name": pa.string(), "category_id": pa.int64(), "bbox": pa.list_(pa.float64(), 4),
        "score": pa.float64(),
    }  # fmt: skip
    columns = {"file_name": pa.string(), "classes": pa.list_(one)} if classes else columns
    optional = {"segmentation": outline, "frame": pa.int64(), "seconds": pa.float64()}
    columns |= {name: kind for name, kind in optional.items() if any(name in row for row in rows)}
    schema = pa.schema(columns, metadata={_KEY: _OURS})
    with atomic_file(path) as temporary:
        parquet.write_table(pa.Table.from_pylist(list(rows), schema), temporary)


def is_table(path: Path) -> bool:
    """Return whether a file is a table that `write_table` wrote."""
    if not path.is_file():  # reading a pipe would block
        return False
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            return False
    check_pyarrow()
    import pyarrow as pa
    from pyarrow import parquet

    try:
        metadata = parquet.read_schema(path).metadata
    except (OSError, pa.ArrowException):
        return False
    return (metadata or {}).get(_KEY) == _OURS
