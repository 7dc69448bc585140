"""The results of a session as a page of tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

TITLES = {
    "machine": "The machine", "gpu_tests": "Tests that need a GPU", "same_as_cpu": "Against float32 on the CPU",
    "training_steps": "Training steps", "memory_orders": "Memory order of convolutions",
    "detr_beside_transformers": "DETR beside transformers", "vit_beside_timm": "Vision transformers beside timm",
    "vit_training": "Training of vision transformers", "compiled_step": "Compiled", "resume": "Stopped and resumed",
}  # fmt: skip
NOTES = {
    "same_as_cpu": "Largest difference of outputs as a share of the largest number / norm of the difference of all "
    "gradients as a share of their norm.",
    "training_steps": "Whole steps of the training loop on images in memory. `waits`: how often the host waits for it.",
    "resume": "Largest difference of a weight from the first run. Kernels of a GPU may add in any order.",
}


def page(rows: Sequence[dict[str, Any]]) -> str:
    """Return Markdown with a table of each part, in the order of `TITLES`."""
    text = ["# One GPU", "", "Made by `python -m regard.benchmarks.gpu`.", ""]
    for part, title in TITLES.items():
        mine = [{k: v for k, v in row.items() if k != "part"} for row in rows if row["part"] == part]
        mine = [row for row in mine if list(row) != ["seconds"]]
        if mine:
            text += [f"## {title}", "", *([NOTES[part], ""] if part in NOTES else []), *_table(mine), ""]
    return "\n".join(text)


def _table(rows: Sequence[dict[str, Any]]) -> list[str]:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    return lines + [f"| {' | '.join(_cell(row.get(column)) for column in columns)} |" for row in rows]


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.2g}" if isinstance(value, float) and abs(value) < 0.01 else str(value).replace("|", "/")
