"""Which precision a device gets, what it changes, and what is left behind."""

from __future__ import annotations

import pytest
import torch

from refusals import refused
from regard.errors import ConfigError
from regard.structures.precision import autocast, describe, inference_precision, resolve_amp, tf32
from regard.training.config import TrainingConfig

CPU, CUDA, MPS = torch.device("cpu"), torch.device("cuda:0"), torch.device("mps")


@pytest.fixture(params=[True, False], ids=["new GPU", "old GPU"])
def has_bf16(request, monkeypatch):
    def is_supported(including_emulation=True):
        return True if including_emulation else request.param

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_supported)
    return request.param


def flags():
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


def test_the_precision_of_a_training(has_bf16):
    assert TrainingConfig().amp == "auto"
    assert resolve_amp("auto", CUDA) == ("bf16" if has_bf16 else "off")
    assert [resolve_amp("auto", device) for device in (CPU, MPS)] == ["off", "off"]
    assert [resolve_amp("bf16", device) for device in (CPU, MPS)] == ["bf16", "bf16"]
    assert [resolve_amp(amp, CUDA) for amp in ("off", "fp16")] == ["off", "fp16"]
    if has_bf16:
        assert resolve_amp("bf16", CUDA) == "bf16"
    else:  # which would be emulated, slower than float32
        with refused(ConfigError, "cuda:0 has no bf16", "amp=fp16", code="C10"):
            resolve_amp("bf16", CUDA)
    with refused(ConfigError, "amp=fp16 needs a GPU", code="C10"):
        resolve_amp("fp16", CPU)


def test_it_is_said_in_words():
    assert describe("off", CPU, with_tf32=True) == "float32"
    assert describe("bf16", CPU, with_tf32=True) == "bf16 with float32"
    assert describe("off", CUDA, with_tf32=True) == "TF32" and describe("off", CUDA, with_tf32=False) == "float32"
    assert describe("bf16", CUDA, with_tf32=True) == "bf16 with TF32"


def test_autocast():
    for amp, dtype in (("auto", torch.float32), ("off", torch.float32), ("bf16", torch.bfloat16)):
        with autocast(amp, CPU):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


def test_tf32_is_as_before_afterwards():
    for outer in (True, False):
        with tf32(CUDA, outer):
            for allowed in (True, False):
                with pytest.raises(KeyError), tf32(CUDA, allowed):
                    assert flags() == (allowed, allowed)
                    raise KeyError
                assert flags() == (outer, outer)
                with tf32(CPU, allowed):
                    assert flags() == (outer, outer)


@pytest.mark.parametrize(
    ("precision", "allowed", "dtype"),
    [
        ("auto", True, None), ("fp32", False, None), ("tf32", True, None), ("bf16", True, torch.bfloat16),
        ("fp16", True, torch.float16),
    ],
)  # fmt: skip
def test_inference_on_a_gpu(monkeypatch, precision, allowed, dtype):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    before = flags()
    with inference_precision(precision, CUDA):
        assert flags() == (allowed, allowed) and torch.is_autocast_enabled("cuda") == (dtype is not None)
        assert dtype is None or torch.get_autocast_dtype("cuda") == dtype
    assert flags() == before and not torch.is_autocast_enabled("cuda")


def test_inference_on_a_cpu():
    for precision, dtype in (("auto", torch.float32), ("fp32", torch.float32), ("bf16", torch.bfloat16)):
        with inference_precision(precision, CPU):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
    for precision in ("tf32", "fp16"):
        with (
            refused(ConfigError, f"precision={precision}", "cpu", "fp32", code="C10"),
            inference_precision(precision, CPU),
        ):
            pass
    with refused(ConfigError, "tf32", "mps", code="C10"), inference_precision("tf32", MPS):
        pass
    with refused(ConfigError, "'fp8'", "did you mean", code="C02"), inference_precision("fp8", CPU):
        pass
