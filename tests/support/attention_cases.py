"""What every attention layer for maps must stand: sizes, memory formats, precisions, tracing, lean memory."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

M = TypeVar("M", bound=nn.Module)
SIZES = [(3, 5), (5, 4), (1, 6), (5, 1), (1, 1)]


def random_map(channels: int, h: int, w: int, batch: int = 2, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(100 * h + w)
    return torch.randn(batch, channels, h, w, generator=generator, dtype=torch.float64).to(dtype)


def randomized(module: M, std: float = 0.5) -> M:
    """The layer in evaluation with random parameters and statistics, so that no factor 0 hides a part of it."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=generator, dtype=torch.float64) * std)
        for inner in module.modules():
            if isinstance(inner, nn.BatchNorm2d):
                assert inner.running_var is not None
                inner.running_var.square_().add_(0.5)
    return module.eval()


def softmax_by_loops(scores: list[float]) -> list[float]:
    powers = torch.tensor(scores, dtype=torch.float64).sub(max(scores)).exp().tolist()
    return [power / sum(powers) for power in powers]


def assert_gradients(module: nn.Module, x: Tensor) -> None:
    """Derivatives in the input and in all parameters, along random directions, against differences. Float64."""
    names = [name for name, _ in module.named_parameters()]

    def run(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(module, dict(zip(names, values, strict=True)), (x,))

    parameters = [p.detach().clone().requires_grad_() for p in module.parameters()]
    assert torch.autograd.gradcheck(run, (x.clone().requires_grad_(), *parameters), fast_mode=True)


def assert_formats(module: nn.Module, channels: int) -> None:
    """Channels last, no images, bfloat16 and automatic mixed precision, for a layer in float32 in evaluation."""
    x = random_map(channels, 5, 4, dtype=torch.float32)
    expected = module(x)
    torch.testing.assert_close(module(x.contiguous(memory_format=torch.channels_last)), expected)
    turned = x.transpose(2, 3).contiguous().transpose(2, 3)
    torch.testing.assert_close(module(turned), expected)
    found = module(x[:0].clone().requires_grad_())
    assert found.shape == (0, *expected.shape[1:])
    found.sum().backward()
    assert all(p.grad is None or (p.grad == 0).all() for p in module.parameters())
    module.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = module(x)
    torch.testing.assert_close(mixed.float(), expected, rtol=5e-2, atol=5e-2)
    mixed.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())
    half = module.bfloat16()(x.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), expected, rtol=5e-2, atol=5e-2)


def assert_traced(module: nn.Module, channels: int, backend: str = "eager", least: int = 2) -> None:
    """One graph with torch.compile, and one graph for all sides from `least` up with torch.export."""
    torch.compiler.reset()
    compiled = torch.compile(module, fullgraph=True, backend=backend)
    for size in [(6, 5), (9, 4)]:  # the second makes sizes symbols
        x = random_map(channels, *size, dtype=torch.float32)
        torch.testing.assert_close(compiled(x), module(x), rtol=1e-5, atol=1e-5)
    sides = {2: torch.export.Dim("h", min=least, max=64), 3: torch.export.Dim("w", min=least, max=64)}
    example = (random_map(channels, 16, 12, dtype=torch.float32),)
    graph = torch.export.export(
        module, example, dynamic_shapes=(sides,), prefer_deferred_runtime_asserts_over_guards=True
    ).module()
    for size in [(16, 12), (7, 33), (40, least)]:
        x = random_map(channels, *size, dtype=torch.float32)
        torch.testing.assert_close(graph(x), module(x), rtol=1e-4, atol=1e-5)


class _Largest(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


def largest_tensor(module: nn.Module, x: Tensor) -> int:
    """Numbers in the largest result of any operation, forward and backward."""
    with _Largest() as seen:
        module(x).sum().backward()
    return seen.elements
