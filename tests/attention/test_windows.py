"""Windows of maps of any size, against one number at a time."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from regard.attention.windows import (
    PADDINGS,
    cells_inside,
    move_windows,
    reflect_border,
    sum_windows,
    unfold_windows,
    window_softmax,
)

SIZES = [(1, 1), (1, 6), (2, 3), (5, 1), (4, 7), (9, 8)]


def reflected(place, length):
    """Walks off the end and comes back, cell by cell."""
    here, step = 0, 1
    for _ in range(abs(place)):  # a reflection is the same to both sides of cell 0
        if length == 1:
            return 0
        if not 0 <= here + step < length:
            step = -step
        here += step
    return here


def by_loops(x, kernel_size, padding):
    b, c, h, w = x.shape
    border = kernel_size // 2
    out = torch.zeros(b, c, kernel_size**2, h, w, dtype=x.dtype)
    for y, z, m in itertools.product(range(h), range(w), range(kernel_size**2)):
        row, column = y + m // kernel_size - border, z + m % kernel_size - border
        if padding == "reflect":
            row, column = reflected(row, h), reflected(column, w)
        if 0 <= row < h and 0 <= column < w:
            out[:, :, m, y, z] = x[:, :, row, column]
    return out


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kernel_size", [1, 3, 7])
@pytest.mark.parametrize("padding", PADDINGS)
def test_windows_hold_the_cells_around(size, kernel_size, padding):
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    assert torch.equal(unfold_windows(x, kernel_size, padding), by_loops(x, kernel_size, padding))


def test_reflection_is_that_of_torch_and_goes_on_where_torch_stops():
    x = torch.randn(2, 3, 5, 6)
    assert torch.equal(reflect_border(x, 4), F.pad(x, (4, 4, 4, 4), mode="reflect"))
    row = torch.tensor([0.0, 1.0, 2.0]).view(1, 1, 1, 3)
    assert reflect_border(row, 5)[0, 0, 0].tolist() == [1, 0, 1, 2, 1, 0, 1, 2, 1, 0, 1, 2, 1]
    with pytest.raises(RuntimeError):
        F.pad(row, (5, 5), mode="reflect")


@pytest.mark.parametrize("size", SIZES)
def test_inside_is_where_ones_are(size):
    ones = torch.ones(1, 1, *size)
    assert torch.equal(cells_inside(*size, 5), by_loops(ones, 5, "zero")[0, 0] > 0)


def test_softmax_leaves_out_what_is_beyond_the_map():
    logits = torch.randn(2, 3, 25, 2, 4, dtype=torch.float64)
    inside = cells_inside(2, 4, 5)
    masked, zero = window_softmax(logits, "masked"), window_softmax(logits, "zero")
    assert (masked[..., ~inside] == 0).all() and (zero > 0).all()
    for weights in (masked, zero):
        torch.testing.assert_close(weights.sum(2), torch.ones(2, 3, 2, 4, dtype=torch.float64))
    torch.testing.assert_close(masked, zero * inside / (zero * inside).sum(2, keepdim=True))
    with pytest.raises(ValueError, match="'wrap'"):
        window_softmax(logits, "wrap")


@pytest.mark.parametrize("size", SIZES)
def test_sums_and_moves_are_those_of_windows(size):
    value = torch.randn(2, 3, 4, *size, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(2, 3, 25, *size, dtype=torch.float64, requires_grad=True)
    windows = unfold_windows(value.flatten(1, 2), 5).unflatten(1, (3, 4))
    assert torch.equal(torch.stack(move_windows(value, 5), dim=3), windows)
    expected, found = (weights[:, :, None] * windows).sum(3), sum_windows(weights, value)
    torch.testing.assert_close(found, expected)
    for a, b in zip(*(torch.autograd.grad(t.square().sum(), (value, weights)) for t in (found, expected)), strict=True):
        torch.testing.assert_close(a, b)


def test_wrong_arguments():
    x = torch.zeros(1, 1, 3, 3)
    with pytest.raises(ValueError, match="kernel_size 4"):
        unfold_windows(x, 4)
    with pytest.raises(ValueError, match="kernel_size -1"):
        unfold_windows(x, -1)
    with pytest.raises(ValueError, match="'circular'"):
        unfold_windows(x, 3, "circular")


class Windows(torch.nn.Module):
    def __init__(self, padding):
        super().__init__()
        self.padding = padding

    def forward(self, x):
        return unfold_windows(x, 7, self.padding)


@pytest.mark.parametrize("padding", PADDINGS)
def test_compiled_and_exported(padding):
    module = Windows(padding)
    sizes = {2: torch.export.Dim("h", min=2, max=64), 3: torch.export.Dim("w", min=2, max=64)}
    exported = torch.export.export(module, (torch.randn(1, 2, 8, 9),), dynamic_shapes=(sizes,)).module()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for size in [(8, 9), (2, 11), (3, 2)]:
        x = torch.randn(1, 2, *size)
        assert torch.equal(exported(x), module(x)) and torch.equal(compiled(x), module(x))


@pytest.mark.parametrize("padding", PADDINGS)
def test_types_and_gradients(padding):
    x = torch.randn(2, 1, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: unfold_windows(t, 5, padding), x)
    half = x.detach().bfloat16()
    assert torch.equal(unfold_windows(half, 5, padding), by_loops(half, 5, padding))
    assert unfold_windows(half[:0], 5, padding).shape == (0, 1, 25, 2, 3)
    assert math.prod(unfold_windows(half, 1, padding).shape) == half.numel()
