"""The non-local block against loops and torch's attention, and what it must stand."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

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
from regard.attention import NonLocalBlock
from regard.attention.non_local import PAIRWISE


def block(pairwise="embedded_gaussian", **options):
    torch.manual_seed(0)
    return randomized(NonLocalBlock(4, 3, pairwise=pairwise, **options).double())


def by_loops(module, x):
    """One pair of cells at a time: the output, and f / C of every pair."""
    named = {name: value.numpy() for name, value in module.state_dict().items()}
    images = x.numpy()
    b, c, h, w = images.shape

    def project(name, cell):
        return named[f"{name}.weight"][:, :, 0, 0] @ cell + named[f"{name}.bias"]

    out, pairs = np.empty_like(images), []
    for n in range(b):
        cells = [images[n, :, y, z] for y, z in itertools.product(range(h), range(w))]
        keys = cells
        if module.pool_keys:
            corners = itertools.product(range(0, h, 2), range(0, w, 2))
            keys = [images[n, :, y : y + 2, z : z + 2].max(axis=(1, 2)) for y, z in corners]
        for i, cell in enumerate(cells):
            if module.pairwise == "gaussian":
                logits = [float(cell @ key) for key in keys]
            else:
                logits = [float(project("theta", cell) @ project("phi", key)) for key in keys]
            if module.pairwise == "dot_product":
                weights = [logit / len(keys) for logit in logits]
            elif module.pairwise == "concatenation":
                both = [np.concatenate((project("theta", cell), project("phi", key))) for key in keys]
                weights = [max(float(named["pair_weight"] @ pair), 0) / len(keys) for pair in both]
            else:
                width = c if module.pairwise == "gaussian" else module.inner_channels
                weights = softmax_by_loops([logit * width**-0.5 for logit in logits])
            y = sum(weight * project("g", key) for weight, key in zip(weights, keys, strict=True))
            z = named["out.weight"][:, :, 0, 0] @ y
            scale = named["norm.weight"] / np.sqrt(named["norm.running_var"] + 1e-5)
            out[n, :, i // w, i % w] = cell + (z - named["norm.running_mean"]) * scale + named["norm.bias"]
            pairs.append(weights)
    return torch.from_numpy(out), torch.tensor(pairs, dtype=torch.float64).view(b, h * w, -1)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("pool_keys", [False, True])
@pytest.mark.parametrize("pairwise", PAIRWISE)
@torch.no_grad()
def test_it_is_the_formula(pairwise, pool_keys, size):
    module = block(pairwise, pool_keys=pool_keys)
    x = random_map(4, *size)
    out, pairs = by_loops(module, x)
    torch.testing.assert_close(module(x), out, rtol=0, atol=1e-10)
    torch.testing.assert_close(module.attention_weights(x), pairs, rtol=0, atol=1e-10)


@pytest.mark.parametrize("pairwise", ["gaussian", "embedded_gaussian"])
@torch.no_grad()
def test_the_papers_softmax_has_no_scale(pairwise):
    module = block(pairwise, scale=False, pool_keys=False)
    x = random_map(4, 3, 5)
    tokens = x.flatten(2).transpose(1, 2)
    query, key = tokens, tokens
    if pairwise == "embedded_gaussian":
        query, key = (F.conv2d(x, p.weight, p.bias).flatten(2).transpose(1, 2) for p in (module.theta, module.phi))
    expected = (query @ key.transpose(1, 2)).softmax(dim=-1)
    torch.testing.assert_close(module.attention_weights(x), expected, rtol=0, atol=1e-12)
    value = module.g(x).flatten(2).transpose(1, 2)
    attended = F.scaled_dot_product_attention(query, key, value, scale=1.0).transpose(1, 2).unflatten(2, (3, 5))
    torch.testing.assert_close(module(x), x + module.norm(module.out(attended)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("pairwise", PAIRWISE)
def test_it_starts_as_the_identity(pairwise):
    x = torch.randn(2, 8, 5, 4)
    module = NonLocalBlock(8, pairwise=pairwise).train()
    assert torch.equal(module(x), x) and module.inner_channels == 4


def test_weights_start_small():
    """A hundredth, as in the authors' configuration: the first logits are near 0."""
    module = NonLocalBlock(128, pairwise="concatenation")
    for weight in (module.theta.weight, module.phi.weight, module.g.weight, module.out.weight):
        assert 0.009 < weight.std() < 0.011
    assert 0.007 < module.pair_weight.std() < 0.013 and (module.g.bias == 0).all()


@pytest.mark.parametrize("pairwise", PAIRWISE)
@torch.no_grad()
def test_places_do_not_count(pairwise):
    module = block(pairwise, pool_keys=False)
    x = random_map(4, 4, 5)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    mixed = x.flatten(2)[..., order].unflatten(2, (4, 5))
    expected = module(x).flatten(2)[..., order].unflatten(2, (4, 5))
    torch.testing.assert_close(module(mixed), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("pairwise", PAIRWISE)
def test_gradients(pairwise):
    assert_gradients(block(pairwise, pool_keys=False), random_map(4, 2, 3, 1))


@pytest.mark.parametrize("pairwise", PAIRWISE)
def test_formats_and_precisions(pairwise):
    torch.manual_seed(0)
    module = NonLocalBlock(8, pairwise=pairwise)
    torch.nn.init.ones_(module.norm.weight)
    assert_formats(module.eval(), 8)


@pytest.mark.parametrize(
    ("pairwise", "pool_keys"),
    [("embedded_gaussian", True), ("gaussian", False), ("dot_product", True), ("concatenation", False)],
)
def test_one_graph_for_all_sizes(pairwise, pool_keys):
    """Exported with pooled keys, torch's pooling asks for two keys a side."""
    module = randomized(NonLocalBlock(4, pairwise=pairwise, pool_keys=pool_keys), std=0.2)
    assert_traced(module, 4, least=3 if pool_keys else 2)


@pytest.mark.parametrize("pairwise", PAIRWISE)
def test_the_map_of_pairs_is_made_for_the_concatenation_only(pairwise):
    side = 24
    module = NonLocalBlock(4, pairwise=pairwise, pool_keys=False)
    seen = largest_tensor(module, torch.randn(1, 4, side, side))
    assert (seen >= side**4) == (pairwise == "concatenation")


def test_wrong_arguments():
    for arguments, says in (
        ({"channels": 0}, "channels 0"),
        ({"channels": 4, "inner_channels": 0}, "inner_channels 0"),
        ({"channels": 4, "pairwise": "cosine"}, "pairwise 'cosine'"),
    ):
        with pytest.raises(ValueError, match=says):
            NonLocalBlock(**arguments)
    assert NonLocalBlock(1).inner_channels == 1 and math.isclose(NonLocalBlock(8).logit_scale, 0.5)
