"""First and second derivatives of attention against differences, in float64, every number on its own.

Tolerances are those of `torch.autograd.gradcheck`: 1e-5 and a thousandth, for differences over 1e-6 of float64 numbers
are right to about 1e-9.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.attention import SDPBackend, sdpa_kernel

from regard.attention import AugmentedConv2d, MultiHeadAttention
from regard.attention.relative import METHODS, RelativePosition2d, relative_attention

PATHS = [name for name in METHODS if name != "auto"]
# batch, heads, height, width, width of keys, width of values
MAPS = [
    (1, 1, 1, 1, 1, 1), (2, 1, 1, 1, 2, 1), (1, 2, 1, 3, 2, 1), (1, 1, 3, 1, 1, 2), (1, 2, 2, 2, 2, 2),
    (2, 1, 2, 3, 1, 1), (1, 1, 3, 2, 3, 1), (1, 3, 1, 2, 1, 3),
]  # fmt: skip
# batch, queries, keys, width, heads, mask: what may be seen
MASKED = [
    (1, 1, 1, 1, 1, "all"), (1, 1, 1, 2, 1, "nothing"), (2, 1, 3, 2, 2, "padding"), (1, 3, 1, 2, 1, "some"),
    (1, 2, 3, 4, 2, "some"), (2, 2, 2, 2, 1, "padding"), (1, 3, 2, 3, 3, "a blind row"), (1, 2, 4, 2, 2, "one key"),
    (2, 3, 3, 2, 1, "a blind image"), (1, 4, 1, 1, 1, "nothing"),
]  # fmt: skip


def numbers(*shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(sum(map(sum, shapes)))
    return [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]


def check(function, inputs) -> None:
    assert gradcheck(function, inputs, fast_mode=False)
    with sdpa_kernel(SDPBackend.MATH):  # torch's other kernels have no second derivative
        assert gradgradcheck(function, inputs, fast_mode=False)


class Attention(nn.Module):
    """`relative_attention` with its tables as parameters."""

    def __init__(self, position: RelativePosition2d, method: str) -> None:
        super().__init__()
        self.position = position
        self.method = method

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return relative_attention(query, key, value, self.position, self.method)


@pytest.mark.parametrize("shape", MAPS, ids=str)
@pytest.mark.parametrize("method", PATHS)
def test_relative_attention(method, shape):
    """In queries, keys, values and both tables; with two rows more than the map has, and with too few."""
    b, heads, h, w, d, e = shape
    layer = Attention(RelativePosition2d(h + 1, max(1, w - 1), d), method)
    names, tables = zip(*layer.named_parameters(), strict=True)

    def run(query, key, value, *tables):
        given = (query, key, value)
        return torch.func.functional_call(layer, dict(zip(names, tables, strict=True)), given)

    shapes = [(b, heads, h, w, d), (b, heads, h, w, d), (b, heads, h, w, e), *(tuple(table.shape) for table in tables)]
    check(run, numbers(*shapes))


@pytest.mark.parametrize(
    ("size", "stride", "pooled"),
    [((1, 1), 1, False), ((1, 3), 1, False), ((3, 1), 2, False), ((2, 2), 1, True), ((3, 2), 2, False)],
)
def test_augmented_convolution(size, stride, pooled):
    """In the image and in all parameters."""
    torch.manual_seed(0)
    layer = AugmentedConv2d(
        1, 3, 3, key_channels=2, value_channels=2, num_heads=2, map_size=(2, 2), stride=stride, pool_attention=pooled
    ).double()
    names, parameters = zip(*layer.named_parameters(), strict=True)

    def run(x, *values):
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    check(run, (*numbers((1, 1, *size)), *(p.detach().clone().requires_grad_() for p in parameters)))


def mask_of(kind: str, batch: int, queries: int, keys: int) -> Tensor | None:
    mask = torch.ones(batch, 1, queries, keys, dtype=torch.bool)
    if kind == "all":
        return None
    if kind == "padding":
        mask[0, :, :, -1] = False
    elif kind == "some":
        mask = mask.tril()
    elif kind == "a blind row":
        mask[:, :, 1] = False
    elif kind == "a blind image":
        mask[0] = False
    elif kind == "one key":
        mask[..., 1:] = False
    elif kind == "nothing":
        mask[:] = False
    return mask


@pytest.mark.parametrize("shape", MASKED, ids=str)
def test_attention_of_detr_with_a_mask(shape):
    """In queries, keys, values and all parameters, also where a query, an image or everything sees nothing."""
    batch, queries, keys, width, heads, kind = shape
    torch.manual_seed(0)
    module, mask = MultiHeadAttention(width, heads).double(), mask_of(kind, batch, queries, keys)
    names, parameters = zip(*module.named_parameters(), strict=True)

    def run(query, key, value, *values):
        given = (query, key, value)
        return torch.func.functional_call(module, dict(zip(names, values, strict=True)), given, {"mask": mask})

    inputs = numbers((batch, queries, width), (batch, keys, width), (batch, keys, width))
    check(run, (*inputs, *(p.detach().clone().requires_grad_() for p in parameters)))
    check(lambda query, key: module.weights(query, key, mask=mask), inputs[:2])
