"""The augmented convolution against loops, the paper's listing, timm, and the faults of public re-implementations."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses import FakeTensorMode

from attention_cases import assert_formats, assert_gradients, largest_tensor
from regard.attention import AugmentedConv2d, attention_channels
from regard.attention.relative import METHODS, RelativePosition2d, relative_attention, relative_logits

PATHS = [name for name in METHODS if name != "auto"]
SIZES = [(3, 5), (5, 3), (4, 4), (1, 6), (6, 1), (1, 1)]


def inputs(h, w, heads=2, d=5, e=3, b=2, dtype=torch.float64):
    generator = torch.Generator().manual_seed(h * 10 + w)
    shapes = [(b, heads, h, w, d), (b, heads, h, w, d), (b, heads, h, w, e)]
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]


def by_loops(query, key, value, position):
    """Attention(i) = sum over j of softmax(q_i.k_j + q_i.r^W + q_i.r^H) v_j, one number at a time."""
    q, k, v = (t.detach().numpy() for t in (query, key, value))
    rows, columns = position.height_table.detach().numpy(), position.width_table.detach().numpy()
    b, heads, h, w, _ = q.shape
    out = np.zeros(v.shape)
    cells = list(itertools.product(range(h), range(w)))
    for n, a, (y, x) in itertools.product(range(b), range(heads), cells):
        scores = []
        for yy, xx in cells:
            r = rows[yy - y + rows.shape[0] // 2] + columns[xx - x + columns.shape[0] // 2]
            scores.append(math.fsum(q[n, a, y, x] * (k[n, a, yy, xx] + r)))
        weights = [math.exp(s - max(scores)) for s in scores]
        for weight, (yy, xx) in zip(weights, cells, strict=True):
            out[n, a, y, x] += weight / math.fsum(weights) * v[n, a, yy, xx]
    return torch.from_numpy(out)


@pytest.mark.parametrize(("h", "w"), SIZES)
@pytest.mark.parametrize("method", PATHS)
def test_each_path_is_the_formula(h, w, method):
    position = RelativePosition2d(h, w, 5).double()
    q, k, v = inputs(h, w)
    torch.testing.assert_close(
        relative_attention(q, k, v, position, method), by_loops(q, k, v, position), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("positioned", [True, False])
@pytest.mark.parametrize("method", ["fused", "chunked"])
def test_paths_have_the_same_gradients(method, positioned, monkeypatch):
    monkeypatch.setattr("regard.attention.relative.CHUNK", 2 * 2 * 7 * 35 * 2)  # two rows at a time, and one left
    position = RelativePosition2d(5, 7, 5).double() if positioned else None
    found = {}
    for name in ("broadcast", method):
        leaves = [t.requires_grad_() for t in inputs(5, 7)] + (list(position.parameters()) if position else [])
        out = relative_attention(*leaves[:3], position, name)
        found[name] = torch.autograd.grad(out.square().sum() + out.sum(), leaves)
    for a, b in zip(found["broadcast"], found[method], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 2e-5), (torch.bfloat16, 3e-2), (torch.float16, 4e-3)])
def test_precisions(method, dtype, error):
    position = RelativePosition2d(13, 11, 20).double()
    q, k, v = inputs(13, 11, d=20)
    expected = relative_attention(q * 20**-0.5, k, v, position, "broadcast")
    position.to(dtype)
    found = relative_attention(*(t.to(dtype) for t in (q * 20**-0.5, k, v)), position, method)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=error, atol=error)


def test_auto_changes_no_number():
    position = RelativePosition2d(14, 14, 20).double()
    for side in (4, 14, 40, 60):
        q, k, v = inputs(side, side, d=20, b=1, heads=1)
        expected = relative_attention(q, k, v, position, "broadcast")
        torch.testing.assert_close(relative_attention(q, k, v, position), expected, rtol=0, atol=1e-12)


# The layer


def layer(*, cin=4, cout=12, dk=10, dv=6, heads=2, dtype=torch.float64, **options):
    torch.manual_seed(0)
    made = AugmentedConv2d(cin, cout, key_channels=dk, value_channels=dv, num_heads=heads, **options)
    return made.to(dtype).eval()


def paper_listing(module, x):
    """The appendix, in numpy and channels last, as it is printed: tiled relative logits and all."""
    x = x.detach().numpy().transpose(0, 2, 3, 1)
    b, h, w, _ = x.shape
    dk, dv, heads = module.key_channels, module.value_channels, module.num_heads
    weight = {name: value.detach().numpy() for name, value in module.state_dict().items()}
    kqv = x @ weight["kqv.weight"][:, :, 0, 0].T + weight["kqv.bias"]
    k, q, v = np.split(kqv, [dk, 2 * dk], axis=3)
    q = q * (dk // heads) ** -0.5

    def split(t):
        return t.reshape(b, h, w, heads, -1).transpose(0, 3, 1, 2, 4)

    def rel_to_abs(t):
        n, a, length, _ = t.shape
        t = np.concatenate([t, np.zeros((n, a, length, 1))], axis=3).reshape(n, a, length * 2 * length)
        t = np.concatenate([t, np.zeros((n, a, length - 1))], axis=2)
        return t.reshape(n, a, length + 1, 2 * length - 1)[:, :, :length, length - 1 :]

    def relative_1d(t, table, hh, ww, order):
        t = np.einsum("bhxyd,md->bhxym", t, table).reshape(-1, heads * hh, ww, 2 * ww - 1)
        t = rel_to_abs(t).reshape(-1, heads, hh, ww, ww)[:, :, :, None]
        return np.tile(t, (1, 1, 1, hh, 1, 1)).transpose(order).reshape(-1, heads, hh * ww, hh * ww)

    q, k, v = split(q), split(k), split(v)
    logits = q.reshape(b, heads, h * w, -1) @ k.reshape(b, heads, h * w, -1).transpose(0, 1, 3, 2)
    logits = logits + relative_1d(q, weight["relative.width_table"], h, w, (0, 1, 2, 4, 3, 5))
    rows = relative_1d(q.transpose(0, 1, 3, 2, 4), weight["relative.height_table"], w, h, (0, 1, 4, 2, 5, 3))
    logits = logits + rows
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    out = (weights @ v.reshape(b, heads, h * w, -1)).reshape(b, heads, h, w, dv // heads)
    out = out.transpose(0, 2, 3, 1, 4).reshape(b, h, w, dv) @ weight["out.weight"][:, :, 0, 0].T + weight["out.bias"]
    return torch.from_numpy(logits), torch.from_numpy(out.transpose(0, 3, 1, 2))


@pytest.mark.parametrize("size", [(3, 5), (6, 4)])
def test_the_layer_is_the_listing(size):
    module = layer(map_size=size)
    x = torch.randn(2, 4, *size, dtype=torch.float64)
    logits, attended = paper_listing(module, x)
    torch.testing.assert_close(module.attention_logits(x), logits, rtol=0, atol=1e-12)
    expected = torch.cat((F.conv2d(x, module.conv.weight, module.conv.bias, padding=1), attended), dim=1)
    torch.testing.assert_close(module(x), expected, rtol=0, atol=1e-12)


def test_equal_to_timm():
    timm = pytest.importorskip("timm.layers.bottleneck_attn")
    theirs = timm.BottleneckAttn(8, 8, feat_size=(5, 7), num_heads=2, qk_ratio=1.0, scale_pos_embed=True).eval()
    ours = AugmentedConv2d(8, 8, key_channels=8, value_channels=8, num_heads=2, map_size=(5, 7), bias=False)
    q, k, v = theirs.qkv.weight.detach().chunk(3)
    ours.kqv.weight.data = torch.cat((k, q, v))
    ours.out.weight.data = torch.eye(8)[:, :, None, None]
    ours.relative.height_table.data = theirs.pos_embed.height_rel.detach().clone()
    ours.relative.width_table.data = theirs.pos_embed.width_rel.detach().clone()
    x = torch.randn(2, 8, 5, 7)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)


def test_without_positions_it_is_multi_head_attention():
    module = layer(cin=8, cout=8, dk=8, dv=8, heads=2, position="none")
    peer = nn.MultiheadAttention(8, 2, batch_first=True).double()
    k, q, v = module.kqv.weight.detach()[:, :, 0, 0].chunk(3)
    bk, bq, bv = module.kqv.bias.detach().chunk(3)
    peer.in_proj_weight.data, peer.in_proj_bias.data = torch.cat((q, k, v)), torch.cat((bq, bk, bv))
    peer.out_proj.weight.data, peer.out_proj.bias.data = module.out.weight.data[:, :, 0, 0], module.out.bias.data
    x = torch.randn(2, 8, 3, 5, dtype=torch.float64)
    tokens = x.flatten(2).transpose(1, 2)
    expected = peer(tokens, tokens, tokens)[0].transpose(1, 2).unflatten(2, (3, 5))
    torch.testing.assert_close(module(x), expected, rtol=0, atol=1e-12)


def test_attention_to_oneself_returns_the_values():
    """Public code reshapes (N, e) to (e, H, W) without a transpose, which accuracy does not show."""
    module = layer(cin=6, cout=6, dk=8, dv=6, bias=False, map_size=(4, 3))
    module.kqv.weight.data.zero_()
    module.kqv.weight.data[16:, :, 0, 0] = torch.eye(6)  # values are the input
    module.out.weight.data[:, :, 0, 0] = torch.eye(6)
    x = torch.randn(1, 6, 4, 3, dtype=torch.float64)
    with torch.no_grad():
        query, key, value = module.project(x)
        query = torch.ones_like(query)
        for table in (module.relative.height_table, module.relative.width_table):
            table.zero_()[len(table) // 2] = 50.0  # only offset 0
    heads = relative_attention(query, key, value, module.relative)
    torch.testing.assert_close(module.out(heads.permute(0, 1, 4, 2, 3).flatten(1, 2)), x, rtol=0, atol=1e-12)


def test_zero_queries_average_all_cells():
    module = layer(map_size=(5, 3))
    module.kqv.weight.data[10:20] = 0
    module.kqv.bias.data[10:20] = 0
    x = torch.randn(2, 4, 5, 3, dtype=torch.float64)
    values = F.conv2d(x, module.kqv.weight[20:], module.kqv.bias[20:]).mean(dim=(2, 3), keepdim=True)
    expected = F.conv2d(values, module.out.weight, module.out.bias).expand(-1, -1, 5, 3)
    torch.testing.assert_close(module.attend(x), expected, rtol=0, atol=1e-12)


def test_logits_depend_on_offsets_only():
    position = RelativePosition2d(4, 6, 5).double()
    ones = torch.ones(1, 1, 4, 6, 5, dtype=torch.float64)
    logits = relative_logits(ones, torch.zeros_like(ones), position).view(4, 6, 4, 6)
    torch.testing.assert_close(logits[:-1, :-1, :-1, :-1], logits[1:, 1:, 1:, 1:])
    assert not torch.allclose(logits[0, 0, 1, 0], logits[0, 0, 0, 1])


@pytest.mark.parametrize(("small", "large"), [((3, 4), (7, 9)), ((1, 4), (5, 2)), ((20, 20), (14, 14))])
def test_tables_serve_other_sizes(small, large):
    position = RelativePosition2d(*large, 5).double()
    q, k, v = inputs(*small)
    cut = RelativePosition2d(*small, 5).double()
    with torch.no_grad():
        for ours, whole in zip(cut.parameters(), position.parameters(), strict=True):
            half, farthest = len(ours) // 2, len(whole) // 2
            for offset in range(-half, half + 1):
                ours[offset + half] = whole[max(-farthest, min(farthest, offset)) + farthest]
    expected = relative_attention(q, k, v, cut, "broadcast")
    for method in PATHS:
        torch.testing.assert_close(relative_attention(q, k, v, position, method), expected, rtol=0, atol=1e-12)


def test_large_logits_stay_finite_in_half_precision():
    """Scores of 3e4 are numbers in half precision; their products before the scale would not be."""
    module = layer(cin=20, dk=40, dv=6, bias=False, map_size=(4, 4), dtype=torch.float32)
    x = torch.randn(1, 20, 4, 4)
    with torch.no_grad():
        module.kqv.weight[:80] *= (3e4 / module.attention_logits(x).abs().max()).sqrt()
        for table in module.relative.parameters():
            table.zero_()
        scores = module.half().attention_logits(x.half())
        assert scores.isfinite().all() and scores.abs().max() > 2e4 and scores.abs().max() * 20**0.5 > 65504
        for method in PATHS:
            module.method = method
            assert module.attend(x.half()).isfinite().all()


@pytest.mark.parametrize("method", PATHS)
def test_gradients_by_differences(method):
    module = layer(cin=2, cout=5, dk=4, dv=2, map_size=(2, 3), method=method)
    assert_gradients(module, torch.randn(1, 2, 2, 3, dtype=torch.float64))


# Shapes and options


@pytest.mark.parametrize("reduction", ["pool", "subsample", "pool_after"])
@pytest.mark.parametrize("pooled", [True, False])
@pytest.mark.parametrize("size", [(7, 7), (8, 5), (1, 3)])
@pytest.mark.parametrize(
    ("kernel", "stride", "dilation"), [(3, 2, 1), (5, 1, 1), (3, 1, 2), (1, 1, 1), ((3, 5), (2, 1), 1)]
)
def test_sizes_are_those_of_the_convolution(reduction, pooled, size, kernel, stride, dilation):
    module = layer(
        kernel_size=kernel, stride=stride, dilation=dilation, reduction=reduction, pool_attention=pooled,
        dtype=torch.float32,
    )  # fmt: skip
    x = torch.randn(2, 4, *size)
    assert module(x).shape == (2, 12, *module.conv(x).shape[2:])


def test_pooling_reads_averages():
    module = layer(stride=2, pool_attention=True, map_size=(3, 3))
    x = torch.randn(1, 4, 11, 10, dtype=torch.float64)

    def average(t):
        ones = F.conv2d(torch.ones_like(t[:, :1]), torch.ones(1, 1, 3, 3).double(), stride=2, padding=1)
        return F.conv2d(t, torch.ones(4, 1, 3, 3).double(), stride=2, padding=1, groups=4) / ones

    small = average(average(x))
    plain = layer(map_size=(3, 3))
    assert small.shape[-2:] == (3, 3)
    torch.testing.assert_close(module.attention_logits(x), plain.attention_logits(small))
    expected = F.interpolate(plain.attend(small), size=(6, 5), mode="bilinear")
    torch.testing.assert_close(module(x)[:, 6:], expected)


@pytest.mark.parametrize("position", ["none", "sine", "learned", "coord"])
def test_other_positions(position):
    module = layer(position=position, map_size=(4, 6))
    x = torch.randn(1, 4, 1, 1, dtype=torch.float64).expand(1, 4, 4, 6)
    for size in [(4, 6), (7, 3)]:
        shifted = module.attend(x[..., :1, :1].expand(1, 4, *size))
        same = torch.allclose(shifted, shifted[..., :1, :1].expand_as(shifted))
        assert same == (position == "none")  # on an even map only positions tell cells apart


def test_attention_alone_and_convolution_alone():
    alone = layer(cout=6, dv=6)
    assert alone.conv is None and alone(torch.randn(1, 4, 3, 5).double()).shape == (1, 6, 3, 5)
    plain = layer(dv=0, stride=2, padding=0, groups=2)
    x = torch.randn(1, 4, 7, 5, dtype=torch.float64)
    expected = F.conv2d(x, plain.conv.weight, plain.conv.bias, stride=2, groups=2)
    assert torch.equal(plain(x), expected) and [n for n, _ in plain.named_parameters()] == ["conv.weight", "conv.bias"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dk": 7}, "key_channels 7 .*num_heads 2"),
        ({"dv": 5}, "value_channels 5"),
        ({"dk": 0}, "key_channels 0"),
        ({"dv": 14}, "out_channels 12"),
        ({"groups": 4}, "4 groups"),
        ({"position": "relativ"}, "'relativ'"),
        ({"reduction": "max"}, "'max'"),
        ({"method": "flash"}, "'flash'"),
        ({"cin": 5, "position": "learned"}, "in_channels 5 .*'learned'"),
        ({"cin": 5, "position": "sine"}, "in_channels 5 .*'sine'"),
    ],
)
def test_wrong_numbers(options, words):
    with pytest.raises(ValueError, match=words):
        layer(**options)


@pytest.mark.parametrize(
    ("f", "kappa", "upsilon", "expected"),
    [
        (128, 0.2, 0.1, (160, 8)), (256, 0.2, 0.1, (160, 24)), (512, 0.2, 0.1, (160, 48)), (512, 0.5, 0.5, (256, 256)),
        (16, 0.25, 0.25, (160, 8)),
    ],
)  # fmt: skip
def test_channels_of_the_paper(f, kappa, upsilon, expected):
    assert attention_channels(f, kappa, upsilon, 8) == expected


# What ships


def test_no_map_is_formed_on_the_fused_path():
    """64 x 64 cells and 8 heads: the map would have 134 million numbers per image."""

    with FakeTensorMode():  # the kernels of the CPU, without their work
        module = AugmentedConv2d(16, 32, key_channels=160, value_channels=8, num_heads=8, method="fused")
        x = torch.empty(1, 16, 64, 64, requires_grad=True)
        assert largest_tensor(module, x) <= 8 * 4096 * 152  # augmented queries have 148 numbers, filled up to 152
        module.method = "broadcast"
        assert largest_tensor(module, x) == 8 * 4096**2


@pytest.mark.parametrize("method", PATHS)
@pytest.mark.parametrize("backend", ["eager", pytest.param("aot_eager", marks=pytest.mark.slow)])
def test_it_compiles_in_one_graph(method, backend):
    torch.compiler.reset()
    module = layer(dtype=torch.float32, method=method)
    compiled = torch.compile(module, fullgraph=True, backend=backend)
    for size in [(6, 5), (9, 4)]:  # the second makes sizes symbols
        x = torch.randn(2, 4, *size)
        torch.testing.assert_close(compiled(x), module(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stride", [1, 2])
def test_export_serves_all_sizes(stride):
    module = layer(dtype=torch.float32, stride=stride)
    sizes = {2: torch.export.Dim("h", min=3, max=64), 3: torch.export.Dim("w", min=3, max=64)}
    exported = torch.export.export(
        module, (torch.randn(1, 4, 16, 12),), dynamic_shapes=(sizes,), prefer_deferred_runtime_asserts_over_guards=True
    )
    exported = exported.module()
    for size in [(16, 12), (7, 33), (40, 3)]:
        x = torch.randn(1, 4, *size)
        torch.testing.assert_close(exported(x), module(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_memory_formats_empty_batches_and_half_precision(method):
    assert_formats(layer(dtype=torch.float32, map_size=(5, 4), method=method), 4)
