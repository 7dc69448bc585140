"""The benchmark of exports times files that agree with their model."""

import pytest

from regard.benchmarks import export
from regard.benchmarks.export import MODELS, run
from regard.models.build import build
from regard.models.catalog import list_models
from regard.models.configs.vit import ViTConfig

NANO = ViTConfig(num_classes=5, image_size=16, patch_size=4, embed_dim=16, num_heads=2, depth=1)


def test_files_and_their_model(monkeypatch):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    monkeypatch.setattr(export, "create", lambda name: build(NANO, name))
    rows = run("nano", 1)
    assert [row.what for row in rows][:4] == ["model", "engine", "ONNX Runtime", "torch.export"]
    assert all(row.difference < 1e-4 for row in rows[1:]) and all(row.model == "nano" for row in rows)
    assert set(MODELS) <= set(list_models())
