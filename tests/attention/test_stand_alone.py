"""Stand-alone attention against loops, global attention, the paper's parameter counts, and itself on all paths."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch._subclasses import FakeTensorMode
from torchvision.models.resnet import Bottleneck, ResNet

from attention_cases import assert_formats, assert_gradients, largest_tensor
from regard.attention import AttentionStem2d, StandAloneAttention2d
from regard.attention.stand_alone import METHODS, window_attention

PATHS = [name for name in METHODS if name != "auto"]
SIZES = [(3, 5), (6, 4), (1, 6), (5, 1), (1, 1), (9, 15)]  # blocks have 7 x 7 cells


def inputs(h, w, kernel_size=3, heads=2, d=6, b=2, dtype=torch.float64):
    generator = torch.Generator().manual_seed(h * 100 + w)
    shapes = [(b, heads, d, h, w)] * 3 + [(heads, kernel_size, d // 2)] * 2
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]


def by_loops(query, key, value, row_table, column_table, border):
    """y_ij = sum over the window of softmax(q_ij . k_ab + q_ij . r) v_ab, r = [row vector; column vector]."""
    q, k, v, rows, columns = (t.detach().numpy() for t in (query, key, value, row_table, column_table))
    b, heads, d, h, w = q.shape
    reach = rows.shape[1] // 2
    steps = range(-reach, reach + 1)
    out = np.zeros(v.shape)
    for n, a, y, x in itertools.product(range(b), range(heads), range(h), range(w)):
        scores, seen = [], []
        for dy, dx in itertools.product(steps, steps):
            inside = 0 <= y + dy < h and 0 <= x + dx < w
            if not inside and border == "masked":
                continue
            r = np.concatenate((rows[a, dy + reach], columns[a, dx + reach]))
            scores.append(q[n, a, :, y, x] @ ((k[n, a, :, y + dy, x + dx] if inside else 0) + r))
            seen.append(v[n, a, :, y + dy, x + dx] if inside else np.zeros(d))
        weights = [math.exp(s - max(scores)) for s in scores]
        out[n, a, :, y, x] = sum(p * s for p, s in zip(weights, seen, strict=True)) / math.fsum(weights)
    return torch.from_numpy(out)


@pytest.mark.parametrize(("h", "w"), SIZES)
@pytest.mark.parametrize("border", ["masked", "zero"])
def test_each_path_is_the_formula(h, w, border):
    for kernel_size in (1, 3, 5):
        tensors = inputs(h, w, kernel_size, b=1 if h * w > 100 else 2)
        expected = by_loops(*tensors, border)
        for method in METHODS:
            found = window_attention(*tensors, border, method)
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-10, msg=f"{kernel_size} {method}")


@pytest.mark.parametrize("size", [(8, 15), (2, 3), (1, 1), (7, 14)])
@pytest.mark.parametrize("border", ["masked", "zero"])
def test_paths_have_the_same_gradients(size, border):
    found = {}
    for method in PATHS:
        leaves = [t.requires_grad_() for t in inputs(*size, 7)]
        out = window_attention(*leaves, border, method)
        found[method] = torch.autograd.grad(out.square().sum() + out.sum(), leaves)
    for method in PATHS[1:]:
        for a, b in zip(found[PATHS[0]], found[method], strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


@pytest.mark.parametrize("method", PATHS)
@pytest.mark.parametrize("border", ["masked", "zero"])
def test_gradients_by_differences(method, border):
    leaves = [t.requires_grad_() for t in inputs(2, 3, heads=1, d=2, b=1)]
    assert torch.autograd.gradcheck(lambda *t: window_attention(*t, border, method), leaves, fast_mode=True)


@pytest.mark.parametrize("method", PATHS)
def test_a_window_of_the_whole_map_is_attention_to_all_cells(method):
    query, key, value, rows, columns = inputs(4, 5, kernel_size=9)
    found = window_attention(query, key, value, rows * 0, columns * 0, "masked", method)
    q, k, v = (t.flatten(3).transpose(2, 3) for t in (query, key, value))
    expected = F.scaled_dot_product_attention(q, k, v, scale=1.0)
    torch.testing.assert_close(found.flatten(3).transpose(2, 3), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 2e-5), (torch.bfloat16, 5e-2), (torch.float16, 1e-2)])
def test_precisions(method, dtype, error):
    tensors = inputs(13, 11, 7)
    expected = window_attention(*tensors, "masked", "unfold")
    found = window_attention(*(t.to(dtype) for t in tensors), "masked", method)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=error, atol=error)


# The layer


def layer(cin=6, cout=8, kernel_size=3, heads=2, dtype=torch.float64, **options):
    torch.manual_seed(0)
    return StandAloneAttention2d(cin, cout, kernel_size, heads, **options).to(dtype).eval()


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("h", "w"), [(4, 7), (1, 5), (3, 1)])
def test_the_layer_is_the_formula(stride, h, w):
    module = layer(stride=stride, border="zero")
    x = torch.randn(2, 6, h, w, dtype=torch.float64)
    weights = module.qkv.weight[:, :, 0, 0].unflatten(0, (3, 2, 4))  # of queries, keys, values; by head
    q, k, v = torch.einsum("tndc,bcyx->tbndyx", weights, x)
    expected = by_loops(q, k, v, module.row_table, module.column_table, "zero").flatten(1, 2)
    if stride == 2:  # averages of the cells that there are
        whole, expected = expected, torch.zeros(2, 8, -(-h // 2), -(-w // 2), dtype=torch.float64)
        for y, z in itertools.product(range(expected.shape[2]), range(expected.shape[3])):
            expected[:, :, y, z] = whole[:, :, 2 * y : 2 * y + 2, 2 * z : 2 * z + 2].mean((2, 3))
    torch.testing.assert_close(module(x), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_of_the_layer(stride):
    assert_gradients(layer(cin=2, cout=4, stride=stride), torch.randn(1, 2, 3, 2, dtype=torch.float64))


def test_inner_cells_do_not_feel_the_border():
    x = torch.randn(1, 6, 9, 10, dtype=torch.float64)
    masked, zero = layer(kernel_size=5)(x), layer(kernel_size=5, border="zero")(x)
    torch.testing.assert_close(masked[..., 2:-2, 2:-2], zero[..., 2:-2, 2:-2])
    assert not torch.isclose(masked[..., :2, :], zero[..., :2, :]).any()
    moved = layer(kernel_size=5)(x.roll((1, 2), dims=(2, 3)))
    torch.testing.assert_close(moved[..., 3:-2, 4:-2], masked[..., 2:-3, 2:-4])  # it moves with its input


def test_parameters_of_the_paper():
    """ResNet-26, 38 and 50 with attention in place of all 3x3 convolutions: 10.3, 14.1 and 18.0 million."""
    for depths, millions in (([1, 2, 4, 1], 10.3), ([2, 3, 5, 2], 14.1), ([3, 4, 6, 3], 18.0)):
        with torch.device("meta"):
            net = ResNet(Bottleneck, depths)
            for block in net.modules():
                if isinstance(block, Bottleneck):
                    conv = block.conv2
                    block.conv2 = StandAloneAttention2d(conv.in_channels, conv.out_channels, stride=conv.stride[0])
            net.conv1, net.bn1, net.maxpool = AttentionStem2d(3, 64), torch.nn.Identity(), torch.nn.Identity()
        assert net(torch.empty(1, 3, 64, 96, device="meta")).shape == (1, 1000)
        assert math.floor(sum(p.numel() for p in net.parameters()) / 1e5) / 10 == millions


def test_windows_are_not_copied_on_lean_paths():
    """64 x 64 cells of 64 channels: the windows of keys alone would have 12.8 million numbers."""

    largest = {}
    with FakeTensorMode():
        module = StandAloneAttention2d(16, 64)
        x = torch.empty(1, 16, 64, 64, requires_grad=True)
        for method in PATHS:
            module.method = method
            largest[method] = largest_tensor(module, x)
    assert largest["unfold"] == 49 * 64 * 4096
    assert largest["shift"] == 49 * 8 * 4096  # weights
    assert largest["fused"] <= 8 * 100 * 169 * 24  # heads, blocks, their keys, and 8 + 14 numbers rounded up


SIZES_COMPILED = [(6, 5), (9, 15), (14, 7)]  # the second makes sizes symbols
TRACED = pytest.param("aot_eager", SIZES_COMPILED, marks=pytest.mark.slow)  # kernels and their gradients too


@pytest.mark.parametrize("method", PATHS)
@pytest.mark.parametrize(("backend", "sizes"), [("eager", SIZES_COMPILED[:1]), TRACED])
def test_it_compiles_in_one_graph(method, backend, sizes):
    torch.compiler.reset()
    module = layer(dtype=torch.float32, kernel_size=5 if method == "fused" else 3, method=method)
    compiled = torch.compile(module, fullgraph=True, backend=backend)
    for size in sizes:
        x = torch.randn(2, 6, *size)
        torch.testing.assert_close(compiled(x), module(x), rtol=1e-5, atol=1e-5)


SIDES = {n: (torch.export.Dim("h", min=n, max=64), torch.export.Dim("w", min=n, max=64)) for n in (3, 5, 8)}


def exported(module, channels, least):
    height, width = SIDES[least]
    example = (torch.randn(1, channels, 16, 12),)
    return torch.export.export(
        module, example, dynamic_shapes=({2: height, 3: width},), prefer_deferred_runtime_asserts_over_guards=True
    ).module()


@pytest.mark.parametrize(
    ("options", "least"),
    [
        ({}, 3),
        ({"stride": 2, "border": "zero"}, 3),
        pytest.param({"method": "unfold"}, 3, marks=pytest.mark.slow),
        pytest.param({"method": "fused"}, 8, marks=pytest.mark.slow),
    ],
)
def test_export_serves_all_sizes(options, least):
    module = layer(dtype=torch.float32, **options)
    graph = exported(module, 6, least)
    for size in [(16, 12), (least, 33), (14, 28), (40, least)]:
        x = torch.randn(1, 6, *size)
        torch.testing.assert_close(graph(x), module(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", PATHS)
def test_memory_formats_empty_batches_and_half_precision(method):
    assert_formats(layer(dtype=torch.float32, method=method), 6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kernel_size": 4}, "kernel_size 4"),
        ({"cout": 6}, "out_channels 6 .*num_heads 2"),
        ({"heads": 0}, "num_heads 0"),
        ({"stride": 3}, "stride 3"),
        ({"border": "reflect"}, "border 'reflect'"),
        ({"method": "flash"}, "method 'flash'"),
    ],
)
def test_wrong_numbers(options, words):
    with pytest.raises(ValueError, match=words):
        layer(**options)


# The stem


def stem(cin=3, cout=8, heads=2, mixtures=3, dtype=torch.float64):
    torch.manual_seed(0)
    return AttentionStem2d(cin, cout, heads, mixtures).to(dtype).eval()


def stem_by_loops(module, x):
    """Blocks of 4x4 pixels, one query at a time; then batch normalization and the maximum of each block."""
    named = {name: value.numpy() for name, value in module.state_dict().items()}
    wq, wk = np.split(named["qk.weight"][:, :, 0, 0], 2)
    heads, pixels = module.num_heads, x.numpy()
    b, _, h, w = pixels.shape
    d = len(wq) // heads
    out = np.full((b, len(wq), -(-h // 4), -(-w // 4)), -np.inf)
    for n, y, z in itertools.product(range(b), range(h), range(w)):
        top, left = y // 4 * 4, z // 4 * 4
        block = [(i, j) for i in range(top, min(top + 4, h)) for j in range(left, min(left + 4, w))]
        result = []
        for a in range(heads):
            part = slice(a * d, a * d + d)
            scores, values = [], []
            for i, j in block:
                scores.append((wq[part] @ pixels[n, :, y, z]) @ (wk[part] @ pixels[n, :, i, j]))
                place = named["row_embed"][i - top] + named["column_embed"][j - left]
                mixture = np.exp([place @ nu for nu in named["mixture_embed"]])
                matrix = sum(p * m for p, m in zip(mixture / mixture.sum(), named["value_weight"], strict=True))
                values.append(matrix[part] @ pixels[n, :, i, j])
            weights = np.exp(np.array(scores) - max(scores))
            result.append(weights @ np.array(values) / weights.sum())
        scale = named["norm.weight"] / np.sqrt(named["norm.running_var"] + module.norm.eps)
        normal = (np.concatenate(result) - named["norm.running_mean"]) * scale + named["norm.bias"]
        out[n, :, y // 4, z // 4] = np.maximum(out[n, :, y // 4, z // 4], normal)
    return torch.from_numpy(out)


@pytest.mark.parametrize(("h", "w"), [(8, 4), (5, 10), (1, 6), (3, 1), (1, 1)])
def test_the_stem_is_the_formula(h, w):
    module = stem()
    module.norm.running_mean.normal_()
    module.norm.running_var.uniform_(0.5, 2)
    x = torch.randn(2, 3, h, w, dtype=torch.float64)
    torch.testing.assert_close(module(x), stem_by_loops(module, x), rtol=0, atol=1e-10)


def test_statistics_of_the_stem_are_those_of_pixels_on_the_map():
    module = stem().train()
    x = torch.randn(3, 3, 5, 7, dtype=torch.float64)
    module(x)
    expected = 0.1 * module.attend(x).mean((0, 2, 3))
    torch.testing.assert_close(module.norm.running_mean, expected)


def test_gradients_of_the_stem():
    module = stem(cin=2, cout=2, heads=1, mixtures=2)
    assert_gradients(module, torch.randn(1, 2, 2, 5, dtype=torch.float64))


def test_the_stem_compiles_and_exports_and_takes_half_precision():
    module = stem(dtype=torch.float32)
    graph = exported(module, 3, 5)
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    for size in [(16, 12), (5, 33), (23, 8)]:
        x = torch.randn(1, 3, *size)
        torch.testing.assert_close(graph(x), module(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(compiled(x), module(x), rtol=1e-4, atol=1e-5)
    assert_formats(module, 3)


@pytest.mark.parametrize(("options", "words"), [({"cout": 9}, "channels 9"), ({"mixtures": 0}, "num_mixtures 0")])
def test_wrong_numbers_of_the_stem(options, words):
    with pytest.raises(ValueError, match=words):
        stem(**options)
