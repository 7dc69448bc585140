"""The benchmark of vision transformers compares equal numbers, and measures what it says."""

import io
import sys

import pytest
import torch
from rich.console import Console

from command_line import run as command
from refusals import refused
from regard.benchmarks import vit
from regard.benchmarks.vit import _backward, engines, merging, run, table
from regard.errors import MachineError
from regard.models.build import create
from regard.models.configs.vit import VIT_PRESETS
from regard.models.vit import VisionTransformer

NANO = "deit_nano_distilled_patch4_32"


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> None:
    """timm has no models of this size by name."""
    kind = pytest.importorskip("timm.models.deit").VisionTransformerDistilled
    c = VIT_PRESETS[NANO]
    sizes = {"embed_dim": c.embed_dim, "depth": c.depth, "num_heads": c.num_heads, "num_classes": c.num_classes}
    monkeypatch.setattr(vit, "timm_model", lambda name: kind(img_size=32, patch_size=4, **sizes))


def test_run_and_table(timm: None) -> None:
    rows = run(1, models=[NANO], batches=(1, 2))
    assert [row.batch_size for row in rows] == [1, 2, 2] and rows[2].what == "with gradients"
    assert all(row.ratio == row.other / row.regard > 0 for row in rows)
    text = io.StringIO()
    Console(file=text, width=120).print(table(rows, "timm"))
    assert f"{rows[1].ratio:.2f}x" in text.getvalue() and " timm " in text.getvalue()


def test_engines(timm: None) -> None:
    rows = engines(NANO, 1, batches=(2,), compiled=False)
    assert [row.what.partition(",")[0] for row in rows] == ["exact", "bfloat16"]
    assert all(row.ratio > 0 for row in rows) and 0 < float(rows[1].what.split()[2]) < 0.2


def test_both_heads_get_a_gradient(timm: None) -> None:
    ours, theirs = create(NANO).train(), vit.timm_model(NANO).train()
    ours.load_state_dict(theirs.state_dict())
    theirs.set_distilled_training(True)
    images = torch.randn(2, 3, 32, 32)
    for model in (ours, theirs):
        _backward(model, images)(0)
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(dict(ours.named_parameters())[name].grad, parameter.grad, rtol=1e-3, atol=1e-4)
    assert ours.head_dist.bias.grad.abs().sum() > 0


def test_other_logits_are_not_compared(timm: None, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = VisionTransformer.forward
    monkeypatch.setattr(VisionTransformer, "forward", lambda self, images: forward(self, images) + 0.1)
    with pytest.raises(AssertionError, match="logits"):
        run(1, models=[NANO], batches=(1,))


def test_merged_tokens() -> None:
    rows = merging(NANO, 1, batches=(1, 2), merged=(0, 4))
    assert [(row.what, row.batch_size) for row in rows] == [("r = 0", 1), ("r = 4", 1), ("r = 0", 2), ("r = 4", 2)]
    assert rows[0].other == rows[1].other and all(row.ratio > 0 for row in rows)


def test_without_timm(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with refused(MachineError, "pip install timm"):
        run(1)
    command(capsys, "benchmark", "vit", "--data", "x").refused(2, "C09", "vit is measured without data")
