"""Trainings with compile=true: equal results, clean names, resumable, with a moving average."""

import copy
import shutil

import pytest
import torch

import regard
from refusals import refused
from regard.data.generated.shapes import ShapesConfig, write_shapes
from regard.errors import MachineError
from regard.models.build import create
from regard.models.engine.engines import check_compiler, compile_parts
from regard.training.checkpoints import newest_checkpoint, read_checkpoint

pytestmark = pytest.mark.usefixtures("blank_charts")


def test_names_and_copies_stay() -> None:
    for name in ("detr_tiny", "deit_nano_patch4_32"):
        net = create(name)
        keys = list(net.state_dict())
        compile_parts(net)
        assert list(net.state_dict()) == keys
        assert all(part._compiled_call_impl is None for part in copy.deepcopy(net).modules())  # a moving average
        assert any(part._compiled_call_impl is not None for part in net.modules())


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    check_compiler(torch.device("cuda"))
    with refused(MachineError, "compile=false"):
        check_compiler(torch.device("cpu"))


@pytest.mark.slow
def test_a_compiled_training_equals_a_plain_one(tmp_path) -> None:
    """With checkpointed activations in the second half, which a resumed run may ask for."""
    write_shapes(ShapesConfig(train=8, val=4, size=32), tmp_path / "data")
    settings = {
        "workers": 0, "batch_size": 4, "model.embed_dim": 16, "model.num_heads": 2, "model.feedforward_dim": 16,
        "model.dropout": 0.0, "device": "cpu", "ema": 0.9,
    }  # fmt: skip
    weights = []
    for name in ("plain", "compiled"):
        output, more = tmp_path / name, {"compile": name == "compiled"}
        regard.train(
            "detr_tiny", tmp_path / "data", recipe="small", epochs=1, output=output, quiet=True,
            overrides={**settings, **more},
        )  # fmt: skip
        more["checkpoint_activations"] = name == "compiled"
        run = regard.train(output=output, resume=True, quiet=True, epochs=2, overrides=more)
        weights.append(read_checkpoint(newest_checkpoint(run.folder / "checkpoints")).tensors)
        assert run.load().state_dict().keys() == weights[-1]["ema"].keys()
    for part in ("model", "ema"):
        assert weights[0][part].keys() == weights[1][part].keys()
        for key, value in weights[0][part].items():
            torch.testing.assert_close(weights[1][part][key], value, rtol=1e-2, atol=1e-3)
