"""The benchmark of DETR compares equal outputs and prints what it measured."""

import io
import sys

import pytest
from rich.console import Console

from command_line import run as command
from refusals import refused
from regard.benchmarks.detr import run, table
from regard.errors import MachineError
from regard.models.detr import DETR


def test_run_and_table() -> None:
    pytest.importorskip("transformers")
    rows = run(1, size=(64, 96), compiled=False)
    peer, plain, exact, half, floor = rows
    assert peer.ratio == 1 and all(row.ratio == peer.seconds / row.seconds > 0 for row in rows)
    assert plain.box_error < 1e-4 and exact.box_error < 1e-4 < half.box_error < 0.05 and plain.classes == 1
    assert floor.box_error is None and "the arithmetic" in floor.what
    text = io.StringIO()
    Console(file=text, width=120).print(table(rows))
    assert f"{exact.ratio:.2f}x" in text.getvalue()


def test_other_outputs_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    detect = DETR._detect

    def moved(self, images, targets, trace):
        output = detect(self, images, targets, trace)
        return output._replace(boxes=output.boxes + 0.01)

    monkeypatch.setattr(DETR, "_detect", moved)
    with pytest.raises(AssertionError, match="differ"):
        run(1, size=(64, 64), compiled=False)


def test_without_transformers(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with refused(MachineError, "pip install transformers"):
        run(1)
    command(capsys, "benchmark", "detr", "--data", "x").refused(2, "C09", "detr is measured without data")
