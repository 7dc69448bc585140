"""The number formats of a device: mixed precision, and TF32 for products of float32 numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from regard.errors import ConfigError, unknown_name

Amp = Literal["auto", "off", "bf16", "fp16"]
PRECISIONS = ("auto", "fp32", "tf32", "bf16", "fp16")  # of models that are evaluated or predict
_DTYPES = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor in float32, in which losses are computed; one in float64 stays as it is."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def has_bf16(device: torch.device) -> bool:
    """Return whether a device computes in bfloat16 by itself. Older GPUs emulate it, slower than float32."""
    return device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)


def resolve_amp(amp: Amp, device: torch.device) -> Amp:
    """Return the mixed precision of a training: `auto` is bf16 on GPUs that have it, else off.

    Raises:
        ConfigError: the device has no such precision (C10).
    """
    if amp == "auto":
        return "bf16" if device.type == "cuda" and has_bf16(device) else "off"
    if amp == "fp16" and device.type == "cpu":
        raise ConfigError("amp=fp16 needs a GPU", remedy="use amp=bf16 or amp=off", code="C10")
    if amp == "bf16" and not has_bf16(device):
        raise ConfigError(f"{device} has no bf16", where="amp", remedy="use amp=fp16 or amp=off", code="C10")
    return amp


def autocast(amp: Amp, device: torch.device) -> torch.autocast:
    """Return the context of a forward pass in mixed precision."""
    dtype = _DTYPES[resolve_amp(amp, device)]
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


@contextmanager
def tf32(device: torch.device, allowed: bool) -> Iterator[None]:
    """Allow or forbid for a while that GPUs round the factors of float32 products to 10 bits, which is far faster.

    torch forbids it for matrix products and allows it for convolutions. Has no effect on other devices.
    """
    if device.type != "cuda":
        yield
        return
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = products.allow_tf32, convolutions.allow_tf32
    products.allow_tf32 = convolutions.allow_tf32 = allowed
    try:
        yield
    finally:
        products.allow_tf32, convolutions.allow_tf32 = before


def describe(amp: Amp, device: torch.device, *, with_tf32: bool) -> str:
    """Return the precision of a training in words."""
    base = "TF32" if with_tf32 and device.type == "cuda" else "float32"
    return base if amp == "off" else f"{amp} with {base}"


@contextmanager
def inference_precision(precision: str, device: torch.device) -> Iterator[None]:
    """Run models in a precision for a while.

    Args:
        precision: `fp32`; `tf32`, GPUs alone: factors of products have 10 bits; `bf16` or `fp16`: mixed precision;
            `auto`: tf32 on CUDA, else fp32.
        device: of the models.

    Raises:
        ConfigError: no such precision (C02), or the device has it not (C10).
    """
    check_precision(precision)
    if (precision in ("tf32", "fp16") and device.type == "cpu") or (precision == "tf32" and device.type != "cuda"):
        what = f"precision={precision} needs a GPU, and the device is {device}"
        raise ConfigError(what, remedy="use fp32 or bf16", code="C10")
    if precision == "bf16" and not has_bf16(device):
        raise ConfigError(f"{device} has no bf16", where="precision", remedy="use fp16 or tf32", code="C10")
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    with tf32(device, precision != "fp32"), torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
        yield


def check_precision(precision: str) -> None:
    """Check the name of a precision. Raises ConfigError (C02)."""
    if precision not in PRECISIONS:
        raise unknown_name("value of precision", str(precision), PRECISIONS, code="C02")
