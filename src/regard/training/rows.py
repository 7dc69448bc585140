"""The rows of a run's numbers in `metrics.jsonl`, and as a table in `metrics.csv`. No torch."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from regard.safe_files import replace_text


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a `metrics.jsonl`; a last line that was cut off is left out."""
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def write_csv(source: Path, path: Path) -> None:
    """The rows of a `metrics.jsonl` as a table with a column for every name."""
    rows = read_rows(source) if source.exists() else []
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    replace_text(path, text.getvalue())
