"""Attention weights of a forward pass with fused kernels, and their gradients, computed again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from regard.attention.multi_head import attention_weights


@dataclass(frozen=True, eq=False)
class Attended:
    """One call of scaled dot-product attention: inputs (B, heads, N, d), (B, heads, M, d), (B, heads, M, e), output."""

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    output: Tensor

    @cached_property
    def weights(self) -> Tensor:
        """(B, heads, N, M), rows sum to 1."""
        return attention_weights(self.query.detach(), self.key.detach(), mask=self.mask)

    def weighted_gradient(self, gradient: Tensor) -> Tensor:
        """`mean over heads of relu(A * dy/dA)`, (B, N, M), from dy/d(output): as output = A V, dy/dA is that times V^T.

        Chefer et al. 2021, equation 5.
        """
        of_weights = gradient @ self.value.detach().transpose(-2, -1)
        return (self.weights * of_weights).relu().mean(dim=1)


class AttentionRecorder(TorchFunctionMode):
    """Within `with AttentionRecorder() as recorder:`, every call of fused attention is recorded in `recorder.calls`."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Attended] = []

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        output = function(*args, **kwargs)
        if function is F.scaled_dot_product_attention:
            mask = kwargs.get("attn_mask", args[3] if len(args) > 3 else None)
            self.calls.append(Attended(args[0], args[1], args[2], mask, output))
        return output


def gradients(score: Tensor, calls: Sequence[Attended]) -> list[Tensor]:
    """`Attended.weighted_gradient` of a score (a scalar) for each call; zeros for those that it does not depend on."""
    found = torch.autograd.grad(score, [call.output for call in calls], retain_graph=True, allow_unused=True)
    return [
        call.weighted_gradient(torch.zeros_like(call.output) if gradient is None else gradient)
        for call, gradient in zip(calls, found, strict=True)
    ]
