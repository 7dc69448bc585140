"""The benchmark of DETR compares equal outputs and prints what it measured."""

import io
import sys

import pytest
from rich.console import Console

from command_line import run as command
from peers import copied_transformers_detr
from refusals import refused
from regard.benchmarks import detr
from regard.benchmarks.detr import run, table
from regard.errors import MachineError
from regard.models.detr import DETR


@pytest.fixture
def peer(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    monkeypatch.setattr(detr, "transformers_detr", copied_transformers_detr)


def test_run_and_table(peer: None) -> None:
    rows = run(1, size=(64, 96), compiled=False)
    theirs, plain, exact, half, floor = rows
    assert theirs.ratio == 1 and all(row.ratio == theirs.seconds / row.seconds > 0 for row in rows)
    assert plain.box_error < 1e-4 and exact.box_error < 1e-4 < half.box_error < 0.05 and plain.classes == 1
    assert floor.box_error is None and "the arithmetic" in floor.what
    text = io.StringIO()
    Console(file=text, width=120).print(table(rows))
    assert f"{exact.ratio:.2f}x" in text.getvalue()


def test_other_outputs_are_not_timed(peer: None, monkeypatch: pytest.MonkeyPatch) -> None:
    detect = DETR._detect

    def moved(self, images, targets, trace):
        output = detect(self, images, targets, trace)
        return output._replace(boxes=output.boxes + 0.01)

    monkeypatch.setattr(DETR, "_detect", moved)
    monkeypatch.setattr(detr, "optimize", lambda net, **_: net)  # the first form that differs is refused
    with pytest.raises(AssertionError, match="differ"):
        run(1, size=(64, 64), compiled=False)


def test_without_transformers(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with refused(MachineError, "pip install transformers"):
        run(1)
    command(capsys, "benchmark", "detr", "--data", "x").refused(2, "C09", "detr is measured without data")
