"""The benchmark of exports times files that agree with their model."""

import pytest

from regard.benchmarks.export import MODELS, run
from regard.models.catalog import list_models


def test_files_and_their_model():
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    rows = run("deit_nano_patch4_32", 1)
    assert [row.what for row in rows][:4] == ["model", "engine", "ONNX Runtime", "torch.export"]
    assert all(row.difference < 1e-4 for row in rows[1:]) and all(row.model == "deit_nano_patch4_32" for row in rows)
    assert set(MODELS) <= set(list_models())
