"""Times of a model of the user's: forms that agree, in a run, in a file of weights and as ONNX."""

import io
import json

import pytest
import torch
from PIL import Image
from rich.console import Console

import regard
from command_line import run as command
from exported_files import randomized, write
from refusals import refused
from regard.benchmarks import networks
from regard.benchmarks.networks import measure, one_thread, run, table
from regard.benchmarks.result_files import write_results
from regard.errors import MachineError
from regard.models.build import build, create
from regard.models.configs.vit import ViTConfig
from run_files import small_detector, write_run


@pytest.fixture
def own_run(tmp_path):
    """A run with a checkpoint of a small detector."""
    write_run(tmp_path / "mine", small_detector(), {1: 0.5})
    return tmp_path / "mine"


def test_forms_of_a_run(own_run, tmp_path):
    rows = run(regard.load(own_run), 1, batches=(1, 2))
    assert [(row.what, row.batch_size) for row in rows[:3]] == [("model", 1), ("engine", 1), ("engine, bfloat16", 1)]
    assert len(rows) == 6 and all((row.height, row.width) == (32, 42) for row in rows)
    model, engine, half = rows[:3]
    assert model.ratio == 1 and model.difference is None and engine.ratio == model.milliseconds / engine.milliseconds
    assert engine.difference < 1e-4 < half.difference and model.memory > 0
    text = io.StringIO()
    Console(file=text, width=80).print(table(rows, "mine"))
    assert "mine: images of 32 x 42 pixels" in text.getvalue() and f"{engine.ratio:.2f}x" in text.getvalue()
    write_results("mine", rows, "regard benchmark mine", tmp_path / "results")
    kept = json.loads((tmp_path / "results/mine.json").read_text())
    assert kept["command"] == "regard benchmark mine" and kept["torch"] == torch.__version__ and kept["processor"]
    assert [row["ratio"] for row in kept["rows"]] == [row.ratio for row in rows]
    assert Image.open(tmp_path / "results/mine.png").size[0] > 500


def test_a_detector_gets_photographs_of_four_by_three():
    torch.manual_seed(0)
    rows = measure({"model": create("detr_tiny").eval()}, 1, batches=(2,), memory=False)
    assert [(row.height, row.width, row.memory) for row in rows] == [(64, 85, None)]


def test_forms_that_disagree_are_not_timed():
    first, other = (create("deit_nano_patch4_32").eval() for _ in range(2))
    torch.nn.init.normal_(other.head.weight)
    with refused(MachineError, "the outputs of the engine differ"):
        measure({"model": first, "engine": other}, 1, batches=(1,), memory=False)


def test_an_onnx_file(tmp_path):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    net = build(ViTConfig(num_classes=5, image_size=16, patch_size=4, embed_dim=16, num_heads=2, depth=1), "mine")
    file = write(randomized(net), tmp_path / "mine.onnx")
    threads = torch.get_num_threads()
    with one_thread():
        model = regard.load(file)
    rows = run(model, 1, batches=(1,))
    assert [row.what for row in rows] == ["ONNX Runtime"] and rows[0].milliseconds > 0 and rows[0].memory > 0
    assert torch.get_num_threads() == threads


def test_words(capsys, tmp_path, monkeypatch, own_run):
    command(capsys, "benchmark", "atention").refused(2, "C01", "did you mean 'attention'?")
    command(capsys, "benchmark", "runs/none").refused(2, "K01", "no such run or file")
    command(capsys, "benchmark", "none.onnx").refused(4, "K01", "no such file")
    command(capsys, "benchmark", "losses", "--device", "cuda").refused(2, "C09", "python -m regard.benchmarks.gpu")
    command(capsys, "benchmark", str(own_run), "--data", "x").refused(2, "C09", "regard evaluate")
    monkeypatch.setattr(networks, "BATCHES", (1,))
    monkeypatch.chdir(tmp_path)
    ran = command(capsys, "benchmark", "mine", "--rounds", "1", "--output", "results")
    assert ran.code == 0 and (tmp_path / "results/mine.json").is_file()
