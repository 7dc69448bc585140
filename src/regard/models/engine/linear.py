"""Linear layers of the engine: the matrix product of oneDNN where that of torch is slow."""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from torch import Tensor, nn

_PROCESSOR = Path("/proc/cpuinfo")


class OneDNNLinear(nn.Linear):
    """A linear layer in float32 by oneDNN's kernel, as torch.compile calls it.

    Args:
        linear: whose weights it takes over.
    """

    def __init__(self, linear: nn.Linear) -> None:
        nn.Module.__init__(self)
        vars(self).update(vars(linear))

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., F)."""
        weight = self.weight
        if x.device.type != "cpu" or not x.dtype == weight.dtype == torch.float32 or not x.numel():
            return super().forward(x)
        if torch.compiler.is_compiling():
            return _whole_linear(x, weight, self.bias)
        return _linear(x, weight, self.bias)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


# As one piece for torch.compile, which takes oneDNN's product apart and fails unless weights are constants.
_whole_linear = torch.library.custom_op(
    "regard::onednn_linear", _linear, mutates_args=(), schema="(Tensor x, Tensor weight, Tensor? bias) -> Tensor"
)
_whole_linear.register_fake(lambda x, weight, bias: x.new_empty(*x.shape[:-1], weight.shape[0]))


def replace_linear_layers(module: nn.Module) -> None:
    """Replace the linear layers in a module, in place."""
    for name, child in list(module.named_children()):
        if type(child) is nn.Linear:
            setattr(module, name, OneDNNLinear(child))
        else:
            replace_linear_layers(child)


@functools.cache
def products_are_slow() -> bool:
    """Return whether torch's matrix products in float32 are slower than oneDNN's.

    They are MKL's, which runs at less than half of its speed on processors of AMD. The answer depends on the machine
    alone, not on a measurement, so that results are the same each time.
    """
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return False
    try:
        return "AuthenticAMD" in _PROCESSOR.read_text()
    except OSError:  # not Linux
        return False
