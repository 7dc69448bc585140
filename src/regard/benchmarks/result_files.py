"""The rows of a benchmark as JSON and as a picture: `regard benchmark NAME --output FOLDER`."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import torch

import regard
from regard.errors import ConfigError


class RatioRow(Protocol):
    """A dataclass with what was measured; ratio: how many times as fast as the peer."""

    @property
    def ratio(self) -> float: ...


def check_output(name: str, folder: Path) -> None:
    """Check that `write_results` would replace nothing but earlier results.

    Raises:
        ConfigError: a file that is no result of this benchmark has the name of one (C11).
    """
    file, picture = folder / f"{name}.json", folder / f"{name}.png"
    if _is_result(file, name):
        return
    for target in (file, picture):
        if target.exists():
            what = "this file is no earlier result and would be replaced"
            raise ConfigError(what, where=target, remedy="name another folder: --output FOLDER", code="C11")


def _is_result(file: Path, name: str) -> bool:
    try:
        content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and content.get("benchmark") == name and "rows" in content


def write_results(name: str, rows: Sequence[Any], command: str, folder: Path) -> None:
    """Write `NAME.json` and, of rows that have a ratio, `NAME.png` to a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    about = {"benchmark": name, "command": command, "date": datetime.now(UTC).date().isoformat(), **machine()}
    values = [{**asdict(row), **({"ratio": row.ratio} if hasattr(row, "ratio") else {})} for row in rows]
    (folder / f"{name}.json").write_text(json.dumps({**about, "rows": values}, indent=2), encoding="utf-8")
    if rows and hasattr(rows[0], "ratio"):
        draw(name, rows, folder / f"{name}.png")


def machine() -> dict[str, str]:
    """Return the processor, the system and the versions that the numbers depend on."""
    versions = {"regard": regard.__version__, "torch": str(torch.__version__), "python": platform.python_version()}
    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {"processor": _processor(), **gpu, "system": platform.platform(), **versions}


def draw(name: str, rows: Sequence[RatioRow], path: Path) -> None:
    """Draw the ratio of each row as a bar; the peer is at 1."""
    from regard.metrics.charts.style import BLUE, GREY, apply, figure, save

    picture = figure(7.0, 0.8 + 0.28 * len(rows))
    axes = picture.add_subplot()
    places = range(len(rows) - 1, -1, -1)
    axes.barh(places, [row.ratio for row in rows], color=BLUE, height=0.7)
    axes.axvline(1.0, color=GREY, linewidth=1)
    axes.set_yticks(places, [_label(row) for row in rows])
    for place, row in zip(places, rows, strict=True):
        axes.annotate(f"{row.ratio:.2f}x", (row.ratio, place), (3, 0), textcoords="offset points", va="center", size=8)
    axes.margins(x=0.1)
    axes.set(xlabel="times as fast as the peer (higher is better)", title=f"regard benchmark {name}")
    apply(axes)
    axes.grid(visible=False, axis="y")
    save(picture, path)


def _label(row: Any) -> str:
    """Return what a row is about: its words, and its number of images."""
    values = asdict(row)
    words = [value for value in values.values() if isinstance(value, str) and value]
    return ", ".join([*words, *([f"batch {values['batch_size']}"] if "batch_size" in values else [])])


def _processor() -> str:
    """Return the name of the processor; Linux tells it in a file alone."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
