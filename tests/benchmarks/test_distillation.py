"""The benchmark of stored logits trains on the same logits in both ways, and measures what it says."""

import io
import sys

import pytest
import torch
from rich.console import Console

from command_line import run as command
from regard.benchmarks import distillation
from regard.benchmarks.distillation import run, table
from regard.distillation.stored_logits import StoredLogits

NANO = "deit_nano_distilled_patch4_32"


def test_run_and_table(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    call = distillation.Teacher.__call__
    monkeypatch.setattr(distillation.Teacher, "__call__", lambda self, x: asked.append(len(x)) or call(self, x))
    row = run(3, student=NANO, teacher="resnet20", batch_size=2)
    # Two views are stored; then only the live way asks, in three rounds and the one before.
    assert asked == [2] * (2 + 4)
    assert (row.student, row.teacher, row.batch_size) == (NANO, "resnet20", 2)
    assert row.ratio == row.stored / row.live > 0
    text = io.StringIO()
    Console(file=text, width=120).print(table(row))
    assert f"{row.ratio:.2f}x" in text.getvalue() and "resnet20" in text.getvalue()


def test_other_logits_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = StoredLogits.__getitem__
    monkeypatch.setattr(StoredLogits, "__getitem__", lambda self, place: torch.flip(stored(self, place), (0,)))
    with pytest.raises(AssertionError, match="losses"):
        run(1, student=NANO, teacher="resnet20", batch_size=2)


@pytest.mark.parametrize("installed", [True, False])
def test_the_papers_teacher_where_timm_is(installed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if installed:
        pytest.importorskip("timm")
    else:
        monkeypatch.setitem(sys.modules, "timm", None)
    asked = []
    small = distillation.create("resnet20")
    monkeypatch.setattr(distillation, "_network", lambda name, classes: asked.append(name) or small)
    assert run(1, student=NANO, batch_size=2).teacher == asked[0] == ("regnety_160" if installed else "resnet50")


def test_words(capsys: pytest.CaptureFixture[str]) -> None:
    command(capsys, "benchmark", "distilation").refused(2, "C01", "did you mean 'distillation'?")
