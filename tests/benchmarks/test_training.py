"""The benchmark of training steps compares equal losses, of equally many weights, and prints what it measured."""

import io
import sys

import pytest
from rich.console import Console

from command_line import run as command
from peers import copied_transformers_detr
from refusals import refused
from regard.benchmarks import training
from regard.benchmarks.training import _DeitSteps, _DetrSteps, run, table
from regard.errors import MachineError
from regard.losses import SetCriterion


@pytest.fixture
def peer(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    monkeypatch.setattr(training, "transformers_detr", copied_transformers_detr)


def test_run_and_table(peer: None) -> None:
    pytest.importorskip("timm")
    rows = run(1, images=1, size=(64, 96), deit="deit_tiny_patch16_224")
    assert [row.peer for row in rows] == ["transformers", "timm"]
    for row in rows:
        assert row.ratio == row.theirs.median / row.ours.median > 0
        # The state of the optimizer alone: two numbers of each weight.
        assert min(row.our_memory, row.their_memory) > 2 * 4 * 5_700_000
    text = io.StringIO()
    Console(file=text, width=80).print(table(rows))
    assert f"{rows[0].ratio:.2f}x" in text.getvalue() and "…" not in text.getvalue()


def test_both_sides_train_the_same_weights_with_the_same_dropout(peer: None) -> None:
    steps = _DetrSteps(1, (64, 96))
    theirs, ours = steps._net("theirs", 0.1), steps._net("ours", 0.1)
    counts = [sum(p.numel() for p in net.parameters() if p.requires_grad) for net in (theirs, ours)]
    assert counts[0] == counts[1]
    layer = theirs.model.encoder.layers[0]
    found = {layer.dropout, layer.mlp.activation_dropout, ours.transformer.encoder.layers[0].dropout.p}
    found |= {ours.transformer.encoder.layers[0].self_attn.dropout}
    found |= {
        getattr(layer.self_attn, name) for name in ("dropout", "attention_dropout") if hasattr(layer.self_attn, name)
    }
    assert found == {0.1}


def test_other_losses_are_not_timed(peer: None, monkeypatch: pytest.MonkeyPatch) -> None:
    total = SetCriterion.total
    monkeypatch.setattr(SetCriterion, "total", lambda self, losses: 1.01 * total(self, losses))
    with pytest.raises(AssertionError, match="differ"):
        run(1, images=1, size=(64, 64))


def test_without_peers(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with refused(MachineError, "pip install timm"):
        _DeitSteps("deit_tiny_patch16_224", 1).loss("theirs")
    command(capsys, "benchmark", "vit", "--threads", "2").refused(2, "C09", "vit is measured with one thread")
    command(capsys, "benchmark", "training", "--threads", "0").refused(2, "C03", "threads=0")
