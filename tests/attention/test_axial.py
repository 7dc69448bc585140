"""Axial attention against loops, torch's own and dense attention under a mask, and what it must stand."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

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
from regard.attention import AxialAttention, attend
from regard.attention.axial import COMBINATIONS, POSITIONS


def layer(combine="chain", position="relative", channels=6, heads=2, map_size=(4, 3)):
    torch.manual_seed(0)
    return randomized(AxialAttention(channels, heads, combine, position, map_size).double())


def along_rows(side, x):
    """Multi-head attention of each row, one query at a time: (B, C, H, W) as an array."""
    named = {name: value.numpy() for name, value in side.state_dict().items()}
    b, c, h, w = x.shape
    heads = side.attention.num_heads
    d = c // heads
    table = named.get("table")
    weight = named["attention.in_proj_weight"].reshape(3, c, c)
    bias = named["attention.in_proj_bias"].reshape(3, c)
    q, k, v = (np.einsum("oc,bcyx->boyx", weight[n], x) + bias[n][:, None, None] for n in range(3))
    out = np.empty_like(x)
    for n, y, z, head in itertools.product(range(b), range(h), range(w), range(heads)):
        part = slice(head * d, (head + 1) * d)
        query, logits = q[n, part, y, z], []
        for j in range(w):
            key = k[n, part, y, j]
            if table is not None:
                reach = len(table) // 2
                key = key + table[max(-reach, min(reach, j - z)) + reach]
            logits.append(float(query @ key) / d**0.5)
        weights = softmax_by_loops(logits)
        out[n, part, y, z] = sum(p * v[n, part, y, j] for j, p in enumerate(weights))
    projection = named["attention.out_proj.weight"], named["attention.out_proj.bias"]
    return np.einsum("oc,bcyx->boyx", projection[0], out) + projection[1][:, None, None]


def by_loops(module, x):
    rows = along_rows(module.row, x.numpy())
    source = rows if module.combine == "chain" else x.numpy()
    columns = along_rows(module.column, source.swapaxes(2, 3)).swapaxes(2, 3)
    return torch.from_numpy(columns if module.combine == "chain" else rows + columns)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("combine", COMBINATIONS)
@torch.no_grad()
def test_it_is_the_formula(combine, position, size):
    """Maps smaller and larger than those that the tables are made for."""
    module = layer(combine, position)
    x = random_map(6, *size)
    torch.testing.assert_close(module(x), by_loops(module, x), rtol=0, atol=1e-10)


@torch.no_grad()
def test_rows_are_those_of_torch():
    module = layer("sum", "none")
    h, w = 3, 5
    x = random_map(6, h, w)
    parts = []
    for side, t in ((module.row, x), (module.column, x.transpose(2, 3))):
        peer = nn.MultiheadAttention(6, 2, batch_first=True).double()
        peer.load_state_dict(side.attention.state_dict())
        rows = t.permute(0, 2, 3, 1).flatten(0, 1)
        parts.append(peer(rows, rows, rows)[0].view(2, t.shape[2], t.shape[3], 6).permute(0, 3, 1, 2))
    torch.testing.assert_close(module(x), parts[0] + parts[1].transpose(2, 3), rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_it_is_dense_attention_under_a_mask(size):
    """All cells at once, where each may look at its own row."""
    module = layer("chain", "none").row
    h, w = size
    tokens = random_map(6, h, w).flatten(2).transpose(1, 2)
    y = torch.arange(h).repeat_interleave(w)
    attended = attend(*module.attention.project(tokens, tokens, tokens), mask=y[:, None] == y)
    dense = module.attention.out_proj(attended.transpose(1, 2).flatten(2)).transpose(1, 2).unflatten(2, size)
    torch.testing.assert_close(module(random_map(6, h, w)), dense, rtol=0, atol=1e-12)


def test_a_chain_sees_everything_and_a_sum_a_cross():
    for combine, expected in (("chain", 20), ("sum", 8)):
        x = random_map(6, 4, 5, 1).requires_grad_()
        gradient = torch.autograd.grad(layer(combine)(x)[0, :, 1, 2].sum(), x)[0]
        assert int((gradient.abs().sum(1) > 0).sum()) == expected


@torch.no_grad()
def test_smaller_maps_use_the_middle_of_the_tables():
    large, small = layer(map_size=(6, 7)), layer(map_size=(4, 3))
    state = large.state_dict()
    state["row.table"], state["column.table"] = state["row.table"][4:-4], state["column.table"][2:-2]
    small.load_state_dict(state)
    x = random_map(6, 4, 3)
    assert torch.equal(large(x), small(x))


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("combine", COMBINATIONS)
def test_gradients(combine, position):
    assert_gradients(layer(combine, position, channels=4, map_size=(2, 3)), random_map(4, 2, 3, 1))


@pytest.mark.parametrize("position", POSITIONS)
def test_formats_and_precisions(position):
    torch.manual_seed(0)
    assert_formats(AxialAttention(8, 2, position=position, map_size=(5, 4)).eval(), 8)


@pytest.mark.parametrize("position", POSITIONS)
def test_one_graph_for_all_sizes(position):
    torch.manual_seed(0)
    assert_traced(AxialAttention(8, 2, "sum", position, (16, 12)).eval(), 8)


@pytest.mark.parametrize("position", POSITIONS)
def test_no_map_of_all_pairs(position):
    side = 24
    module = AxialAttention(4, 1, position=position, map_size=(side, side))
    assert largest_tensor(module, torch.randn(1, 4, side, side)) < side**4 / 4


def test_wrong_arguments():
    for arguments, says in (
        ({"combine": "product"}, "combine 'product'"),
        ({"position": "sine"}, "position 'sine'"),
        ({"num_heads": 0}, "num_heads 0"),
        ({"map_size": (0, 4)}, r"map_size \(0, 4\)"),
        ({"num_heads": 3}, "embed_dim 8 .*num_heads 3"),
        ({"channels": 0}, "embed_dim 0"),
    ):
        with pytest.raises(ValueError, match=says):
            AxialAttention(**{"channels": 8, "num_heads": 2, **arguments})
