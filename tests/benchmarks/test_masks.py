"""The benchmark of the mask head compares equal masks, and says how many queries they are of."""

import io

import pytest
import torch
from rich.console import Console

from regard.benchmarks import masks
from regard.benchmarks.masks import run, table


def test_run_and_table() -> None:
    pytest.importorskip("transformers")
    rows = run(1, queries=3, kept=(2, 3), size=(64, 90))
    assert [row.what for row in rows] == ["3 queries, 64 x 90, 2 kept", "3 queries, 64 x 90, 3 kept"]
    assert all(row.ratio == row.transformers / row.regard > 0 for row in rows)
    text = io.StringIO()
    Console(file=text, width=120).print(table(rows))
    assert f"{rows[1].ratio:.1f}x" in text.getvalue()


def test_different_masks_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    monkeypatch.setattr(masks, "_ours", lambda *args: lambda number: torch.zeros(2, 16, 23))
    with pytest.raises(AssertionError, match="masks"):
        run(1, queries=3, kept=(2,), size=(64, 90))
