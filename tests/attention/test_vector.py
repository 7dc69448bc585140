"""Vector attention against loops, against the authors' way of writing it with unfold, and what it must stand."""

import itertools
import math

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
)
from regard.attention import PairwiseVectorAttention2d, PatchwiseVectorAttention2d
from regard.attention.vector import PAIRWISE_RELATIONS, PATCHWISE_RELATIONS

KINDS = [(PairwiseVectorAttention2d, relation) for relation in PAIRWISE_RELATIONS]
KINDS += [(PatchwiseVectorAttention2d, relation) for relation in PATCHWISE_RELATIONS]


def layer(kind, relation, kernel_size=3, **options):
    torch.manual_seed(0)
    options = {"channels": 5, "out_channels": 6, "relation_channels": 3, "share": 2, **options}
    return randomized(kind(kernel_size=kernel_size, relation=relation, **options).double())


def mirrored(place, length):
    """The cell whose reflection lies at `place`."""
    while not 0 <= place < length:
        place = -place if place < 0 else 2 * (length - 1) - place
        if length == 1:
            return 0
    return place


def gamma(named, features):
    """The small network, in evaluation, on one list of numbers."""

    def norm(t, name):
        scale = named[f"{name}.weight"] / np.sqrt(named[f"{name}.running_var"] + 1e-5)
        return np.maximum((t - named[f"{name}.running_mean"]) * scale + named[f"{name}.bias"], 0)

    hidden = named["conv_w.2.weight"][:, :, 0, 0] @ norm(np.array(features), "conv_w.0")
    return named["conv_w.5.weight"][:, :, 0, 0] @ norm(hidden, "conv_w.3") + named["conv_w.5.bias"]


def related(relation, phi, psi):
    return {
        "subtraction": lambda: list(phi - psi),
        "summation": lambda: list(phi + psi),
        "product": lambda: list(phi * psi),
        "dot": lambda: [float(phi @ psi)],
        "concatenation": lambda: [*phi, *psi],
    }[relation]()


def gathered(relation, here, around, keys):
    return {
        "concatenation": lambda: [*here, *np.array(keys).T.flatten()],
        "star": lambda: [here @ key for key in keys],
        "clique": lambda: [phi @ key for phi in around for key in keys],
    }[relation]()


def by_loops(module, x):
    """One cell and one channel at a time."""
    named = {name: value.numpy() for name, value in module.state_dict().items()}
    b, _, h, w = x.shape
    k, groups = module.kernel_size, module.out_channels // module.share

    def conv(name, t):
        return np.einsum("oc,bcyx->boyx", named[f"{name}.weight"][:, :, 0, 0], t) + named[f"{name}.bias"][:, None, None]

    phi, psi, value = (conv(name, x.numpy()) for name in ("conv1", "conv2", "conv3"))
    places = np.zeros((1, 2, h, w))
    for y, z in itertools.product(range(h), range(w)):
        places[0, :, y, z] = (2 * z / (w - 1) - 1 if w > 1 else -1, 2 * y / (h - 1) - 1 if h > 1 else -1)
    if "conv_p.weight" in named:
        places = conv("conv_p", places)
    out = np.zeros((b, module.out_channels, h, w))
    for n, y, z in itertools.product(range(b), range(h), range(w)):
        steps = itertools.product(range(-(k // 2), k // 2 + 1), repeat=2)
        window = [(mirrored(y + dy, h), mirrored(z + dx, w)) for dy, dx in steps]
        here, keys = phi[n, :, y, z], [psi[n, :, i, j] for i, j in window]
        if isinstance(module, PairwiseVectorAttention2d):
            offsets = [places[0, :, y, z] - places[0, :, i, j] for i, j in window]
            weights = np.array(
                [gamma(named, [*related(module.relation, here, key), *p]) for key, p in zip(keys, offsets, strict=True)]
            )
            weights = np.exp(weights - weights.max(0))
            weights = weights / weights.sum(0)  # (k*k, groups)
        else:
            around = [phi[n, :, i, j] for i, j in window]
            weights = gamma(named, gathered(module.relation, here, around, keys)).reshape(groups, k * k).T
        for c in range(module.out_channels):
            parts = [weights[m, c % groups] * value[n, c, i, j] for m, (i, j) in enumerate(window)]
            out[n, c, y, z] = math.fsum(parts)
    return torch.from_numpy(out)


@pytest.mark.parametrize(("kind", "relation"), KINDS)
@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_it_is_the_formula(kind, relation, size):
    for kernel_size in (1, 3, 5):
        module = layer(kind, relation, kernel_size)
        x = random_map(5, *size)
        torch.testing.assert_close(module(x), by_loops(module, x), rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", [PairwiseVectorAttention2d, PatchwiseVectorAttention2d])
@torch.no_grad()
def test_it_is_what_the_authors_write(kind):
    """model/san.py with torch's own padding and unfold in the place of its CUDA kernels, at the sizes of SAN-10."""
    module = layer(kind, kind(8).relation, 7, channels=64, out_channels=16, relation_channels=4, share=8)
    b, h, w = 2, 6, 9
    x = random_map(64, h, w)
    phi, psi, value = module.conv1(x), module.conv2(x), module.conv3(x)
    around = [nn.Unfold(7)(nn.ReflectionPad2d(3)(t)) for t in (psi, value)]
    if kind is PairwiseVectorAttention2d:
        place = torch.stack(torch.meshgrid(torch.linspace(-1, 1, h), torch.linspace(-1, 1, w), indexing="ij")[::-1])
        place = module.conv_p(place[None].double())
        nearby = nn.Unfold(7)(nn.ReflectionPad2d(3)(place)).view(1, 2, 49, h * w)
        offsets = (place.view(1, 2, 1, h * w) - nearby).repeat(b, 1, 1, 1)
        differences = phi.view(b, -1, 1, h * w) - around[0].view(b, -1, 49, h * w)
        weights = module.conv_w(torch.cat((differences, offsets), 1)).softmax(-2)
    else:
        both = torch.cat((phi.view(b, -1, 1, h * w), around[0].view(b, -1, 1, h * w)), 1)
        weights = module.conv_w(both).view(b, -1, 49, h * w)
    shared = around[1].view(b, 8, 2, 49, h * w)  # 8 x 2 channels; the weights are for the last of them
    expected = (weights[:, None] * shared).sum(-2).view(b, 16, h, w)
    torch.testing.assert_close(module(x), expected, rtol=0, atol=1e-6)  # linspace is in float32
    torch.testing.assert_close(module.weights(x).flatten(3), weights, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("kind", "relation"), KINDS)
def test_gradients(kind, relation):
    assert_gradients(layer(kind, relation, channels=4, out_channels=4, relation_channels=2), random_map(4, 2, 3, 1))


@pytest.mark.parametrize(("kind", "relation"), KINDS)
def test_formats_and_precisions(kind, relation):
    torch.manual_seed(0)
    assert_formats(kind(16, kernel_size=3, relation=relation).eval(), 16)


@pytest.mark.parametrize("kind", [PairwiseVectorAttention2d, PatchwiseVectorAttention2d])
def test_one_graph_for_all_sizes(kind):
    torch.manual_seed(0)
    assert_traced(kind(8, kernel_size=3).eval(), 8)


@pytest.mark.parametrize("kind", [PairwiseVectorAttention2d, PatchwiseVectorAttention2d])
def test_values_are_never_copied_for_each_place_of_a_window(kind):
    module = kind(8, 64, relation_channels=2, share=32)  # 4 numbers of a relation and 2 weights for 64 values
    x = random_map(8, 12, 12, 1, dtype=torch.float32)
    assert largest_tensor(module, x) <= 49 * 12 * 12 * 4


@torch.no_grad()
def test_pairwise_weights_sum_to_one_and_patchwise_ones_need_not():
    x = random_map(5, 4, 6)
    pairwise = layer(PairwiseVectorAttention2d, "dot").weights(x)
    assert pairwise.shape == (2, 3, 9, 4, 6)
    torch.testing.assert_close(pairwise.sum(2), torch.ones(2, 3, 4, 6, dtype=torch.float64))
    patchwise = layer(PatchwiseVectorAttention2d, "star").weights(x)
    assert (patchwise.sum(2) - 1).abs().min() > 1e-3 and (patchwise < 0).any()


@torch.no_grad()
def test_a_constant_patchwise_weight_is_a_convolution():
    """With zero in the last product its bias alone weighs the window: a depthwise convolution of the values."""
    module = layer(PatchwiseVectorAttention2d, "concatenation")
    module.conv_w[5].weight.zero_()
    x = random_map(5, 6, 7)
    kernels = module.conv_w[5].bias.view(3, 1, 3, 3).repeat(2, 1, 1, 1)  # channel c has that of c mod 3
    padded = nn.ReflectionPad2d(1)(module.conv3(x))
    expected = torch.nn.functional.conv2d(padded, kernels, groups=6)
    torch.testing.assert_close(module(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", [PairwiseVectorAttention2d, PatchwiseVectorAttention2d])
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"kernel_size": 4}, "kernel_size 4"),
        ({"out_channels": 12, "share": 8}, "out_channels 12 .*share"),
        ({"relation_channels": 0}, "relation_channels"),
        ({"relation": "difference"}, "relation 'difference'"),
    ],
)
def test_wrong_arguments(kind, arguments, says):
    with pytest.raises(ValueError, match=says):
        kind(16, **arguments)
