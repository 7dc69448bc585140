"""The benchmark of the losses compares equal numbers, and measures what it says."""

import io
import math
import sys

import pytest
from rich.console import Console

from refusals import refused
from regard.benchmarks import losses
from regard.benchmarks.losses import _ours, _tensors, _transformers, run, table
from regard.errors import MachineError


def test_both_sides_give_the_same_loss_and_gradients() -> None:
    targets, predictions = _tensors(layers=2, images=3, queries=9, objects=4, classes=5)
    found = []
    for side in (_ours, _transformers):
        total = side(predictions, targets, 5)[1](0)
        found.append((total, [x.grad.clone() for layer in predictions for x in layer]))
    (ours, our_gradients), (theirs, their_gradients) = found
    assert math.isclose(ours, theirs, rel_tol=1e-5)
    for a, b in zip(our_gradients, their_gradients, strict=True):
        assert a.abs().max() > 0 and (a - b).abs().max() < 1e-5


def test_run_and_table() -> None:
    rows = run(1, layers=2, images=2, queries=5, objects=2, classes=3)
    assert len(rows) == 2 and "2 layers x 2 images x 5 queries x 2 objects" in rows[0].what
    assert all(row.ratio == row.transformers / row.regard > 0 for row in rows)
    text = io.StringIO()
    Console(file=text, width=120).print(table(rows))
    assert f"{rows[1].ratio:.1f}x" in text.getvalue()


def test_different_losses_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "_ours", lambda *args: (None, lambda number: 1.0))
    with pytest.raises(AssertionError, match="losses"):
        run(1, layers=1, images=1, queries=3, objects=1, classes=2)


def test_without_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers.loss.loss_for_object_detection", None)
    with refused(MachineError, "pip install transformers"):
        run(1)
