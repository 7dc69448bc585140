"""Criss-cross attention against loops and against dense attention under a mask, and what it must stand."""

import itertools

import numpy as np
import pytest
import torch

from attention_cases import (
    SIZES,
    assert_formats,
    assert_gradients,
    assert_traced,
    largest_tensor,
    random_map,
    randomized,
    softmax_by_loops,
)
from regard.attention import CrissCrossAttention, attend, criss_cross_attention
from regard.attention.criss_cross import criss_cross_weights


def layer(recurrence=2, channels=9):
    torch.manual_seed(0)
    return randomized(CrissCrossAttention(channels, recurrence).double())


def by_loops(module, x):
    """One cell at a time; the cell itself is once among its keys."""
    named = {name: value.numpy() for name, value in module.state_dict().items()}
    x = x.numpy()
    b, _, h, w = x.shape
    for _ in range(module.recurrence):
        q, k, v = (
            np.einsum("oc,bcyx->boyx", named[f"{n}.weight"][:, :, 0, 0], x) + named[f"{n}.bias"][:, None, None]
            for n in ("query", "key", "value")
        )
        new = np.empty_like(x)
        for n, y, z in itertools.product(range(b), range(h), range(w)):
            cross = {(y, j) for j in range(w)} | {(i, z) for i in range(h)}
            assert len(cross) == h + w - 1
            places = sorted(cross)
            weights = softmax_by_loops([float(q[n, :, y, z] @ k[n, :, i, j]) for i, j in places])
            gathered = sum(p * v[n, :, i, j] for p, (i, j) in zip(weights, places, strict=True))
            new[n, :, y, z] = named["gamma"] * gathered + x[n, :, y, z]
        x = new
    return torch.from_numpy(x)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("recurrence", [1, 2, 3])
@torch.no_grad()
def test_it_is_the_formula(recurrence, size):
    module = layer(recurrence)
    x = random_map(9, *size)
    torch.testing.assert_close(module(x), by_loops(module, x), rtol=0, atol=1e-10)


@pytest.mark.parametrize("size", SIZES)
def test_it_is_dense_attention_under_a_mask(size):
    """Forward and backward. Queries are scaled up, for dense attention divides by the root of the width."""
    h, w = size
    query, key = (random_map(4, h, w).mul(s).requires_grad_() for s in (1.0, 0.5))
    value = random_map(3, h, w).requires_grad_()
    y, x = (t.flatten() for t in torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij"))
    mask = (y[:, None] == y) | (x[:, None] == x)
    q, k, v = (t.flatten(2).transpose(1, 2)[:, None] for t in (2.0 * query, key, value))
    dense = attend(q, k, v, mask=mask)[:, 0].transpose(1, 2).unflatten(2, size)
    ours = criss_cross_attention(query, key, value)
    torch.testing.assert_close(ours, dense, rtol=0, atol=1e-12)
    seed = random_map(3, h, w)
    for mine, theirs in zip(
        torch.autograd.grad(ours, (query, key, value), seed),
        torch.autograd.grad(dense, (query, key, value), seed),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


@torch.no_grad()
def test_weights():
    h, w = 3, 5
    row, column = criss_cross_weights(random_map(4, h, w), random_map(4, h, w) + 1)
    assert row.shape == (2, h, w, w) and column.shape == (2, h, w, h)
    torch.testing.assert_close(row.sum(-1) + column.sum(-1), torch.ones(2, h, w, dtype=torch.float64))
    assert all((column[:, y, :, y] == 0).all() for y in range(h))


def reached(recurrence):
    """Which cells of 4 x 5 the output at (1, 2) depends on."""
    module = layer(recurrence)
    x = random_map(9, 4, 5, 1).requires_grad_()
    return torch.autograd.grad(module(x)[0, :, 1, 2].sum(), x)[0].abs().sum(1)[0] > 0


def test_one_pass_sees_a_cross_and_two_see_everything():
    cross = torch.zeros(4, 5, dtype=torch.bool)
    cross[1], cross[:, 2] = True, True
    assert torch.equal(reached(1), cross)
    assert reached(2).all()


def test_it_starts_as_the_identity():
    x = torch.randn(2, 16, 3, 4)
    module = CrissCrossAttention(16)
    assert torch.equal(module(x), x) and module.query.out_channels == 2


def test_gradients():
    assert_gradients(layer(2, 3), random_map(3, 2, 3, 1))


def test_formats_and_precisions():
    torch.manual_seed(0)
    module = CrissCrossAttention(16)
    torch.nn.init.constant_(module.gamma, 0.5)
    assert_formats(module.eval(), 16)


def test_one_graph_for_all_sizes():
    assert_traced(randomized(CrissCrossAttention(8), std=0.3), 8)


def test_no_map_of_all_pairs():
    side = 24
    assert largest_tensor(CrissCrossAttention(4), torch.randn(1, 4, side, side)) < side**4 / 4


def test_wrong_arguments():
    for channels, recurrence in ((0, 2), (8, 0)):
        with pytest.raises(ValueError, match=f"channels {channels} .*recurrence {recurrence}"):
            CrissCrossAttention(channels, recurrence)
