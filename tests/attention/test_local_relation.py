"""The local relation layer against loops, and its two paths against each other."""

import itertools
import math

import numpy as np
import pytest
import torch

from attention_cases import assert_formats, assert_gradients, assert_traced
from regard.attention import LocalRelation2d
from regard.attention.local_relation import METHODS, SIMILARITIES

BORDERS = ["masked", "zero"]


def layer(channels=6, kernel_size=3, share=2, dtype=torch.float64, **options):
    torch.manual_seed(0)
    return LocalRelation2d(channels, kernel_size, share, **options).to(dtype).eval()


def by_loops(module, x):
    """One cell and one group of channels at a time."""
    named = {name: value.numpy() for name, value in module.state_dict().items()}
    groups, reach = module.channels // module.share, module.kernel_size // 2
    x = x.numpy()
    b, _, h, w = x.shape
    qk = np.einsum("oc,bcyx->boyx", named["qk.weight"][:, :, 0, 0], x) + named["qk.bias"][:, None, None]
    phi = {
        "product": lambda q, k: q * k,
        "difference": lambda q, k: -((q - k) ** 2),
        "absolute": lambda q, k: -abs(q - k),
    }
    gathered = np.zeros(x.shape)
    steps = range(-reach, reach + 1)
    priors = {}
    for dy, dx in itertools.product(steps, steps):
        offset = np.array([dy, dx]) / max(reach, 1)
        hidden = np.maximum(named["prior.hidden.weight"][:, :, 0, 0] @ offset + named["prior.hidden.bias"], 0)
        priors[dy, dx] = named["prior.out.weight"][:, :, 0, 0] @ hidden + named["prior.out.bias"]
    for n, g, y, z in itertools.product(range(b), range(groups), range(h), range(w)):
        part = slice(g * module.share, (g + 1) * module.share)
        scores, values = [], []
        for dy, dx in itertools.product(steps, steps):
            inside = 0 <= y + dy < h and 0 <= z + dx < w
            if not inside and module.border == "masked":
                continue
            key = qk[n, groups + g, y + dy, z + dx] if inside else 0.0
            scores.append(phi[module.similarity](qk[n, g, y, z], key) + priors[dy, dx][g])
            values.append(x[n, part, y + dy, z + dx] if inside else np.zeros(module.share))
        weights = [math.exp(s - max(scores)) for s in scores]
        gathered[n, part, y, z] = np.array(weights) @ np.array(values) / math.fsum(weights)
    out = np.einsum("oc,bcyx->boyx", named["out.weight"][:, :, 0, 0], gathered) + named["out.bias"][:, None, None]
    return torch.from_numpy(out)


@pytest.mark.parametrize(("h", "w"), [(3, 5), (6, 2), (1, 4), (3, 1), (1, 1)])
@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("border", BORDERS)
def test_it_is_the_formula(h, w, similarity, border):
    for kernel_size in (1, 3, 7):
        module = layer(kernel_size=kernel_size, similarity=similarity, border=border)
        x = torch.randn(2, 6, h, w, dtype=torch.float64)
        expected = by_loops(module, x)
        for method in METHODS:
            module.method = method
            torch.testing.assert_close(module(x), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("size", [(4, 7), (9, 8), (1, 2)])
@pytest.mark.parametrize("border", BORDERS)
def test_paths_have_the_same_gradients(size, border):
    module = layer(kernel_size=7, border=border, similarity="difference")
    x = torch.randn(2, 6, *size, dtype=torch.float64, requires_grad=True)
    leaves, found = [x, *module.parameters()], {}
    for method in METHODS:
        module.method = method
        found[method] = torch.autograd.grad(module(x).square().sum(), leaves)
    for method in METHODS[1:]:
        for a, b in zip(found[METHODS[0]], found[method], strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


@pytest.mark.parametrize("method", ["unfold", "shift"])
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_gradients_by_differences(method, similarity):
    module = layer(channels=2, share=1, similarity=similarity, border="zero", method=method)
    assert_gradients(module, torch.randn(1, 2, 2, 3, dtype=torch.float64))


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_weights_of_a_window_sum_to_one_and_alike_cells_weigh_most(similarity):
    module = layer(channels=4, share=4, similarity=similarity)
    x = torch.randn(1, 4, 5, 6, dtype=torch.float64)
    assert module.weights(x).shape == (1, 1, 9, 5, 6)
    torch.testing.assert_close(module.weights(x).sum(2), torch.ones(1, 1, 5, 6, dtype=torch.float64))
    torch.nn.init.zeros_(module.prior.out.weight)
    query, key = module.qk(x)[0]
    if similarity != "product":
        alike = [(query[2, 3] - key[2 + m // 3 - 1, 3 + m % 3 - 1]).abs() for m in range(9)]
        assert module.weights(x)[0, 0, :, 2, 3].argmax() == torch.stack(alike).argmin()


def test_the_prior_knows_offsets_as_fractions_of_the_reach():
    offsets = layer(kernel_size=5).prior.offsets()
    assert offsets[:, 0, 4].tolist() == [-1, 1] and offsets[:, 2, 3].tolist() == [0, 0.5]
    assert layer(kernel_size=1).prior.offsets().tolist() == [[[0]], [[0]]]


@pytest.mark.parametrize(
    ("method", "backend"),
    [
        ("auto", "eager"),
        ("shift", "eager"),
        pytest.param("unfold", "aot_eager", marks=pytest.mark.slow),
        pytest.param("shift", "aot_eager", marks=pytest.mark.slow),
    ],
)
def test_one_graph_for_all_sizes(method, backend):
    assert_traced(layer(dtype=torch.float32, method=method), 6, backend)


@pytest.mark.parametrize("method", METHODS)
def test_memory_formats_empty_batches_and_half_precision(method):
    assert_formats(layer(dtype=torch.float32, method=method), 6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kernel_size": 2}, "kernel_size 2"),
        ({"share": 4}, "channels 6 .*share 4"),
        ({"share": 0}, "share 0"),
        ({"similarity": "cosine"}, "similarity 'cosine'"),
        ({"border": "reflect"}, "border 'reflect'"),
        ({"method": "fused"}, "method 'fused'"),
    ],
)
def test_wrong_numbers(options, words):
    with pytest.raises(ValueError, match=words):
        layer(**options)
