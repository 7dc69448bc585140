"""Masks: who sees whom, against loops; queries that see nothing; numbers added to the logits, and their gradients."""

import itertools
import math
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from attention_cases import softmax_by_loops
from regard.attention import MultiHeadAttention, attend, attention_weights, causal_mask, key_padding_mask

KINDS = ["bool", "real"]
KERNELS = [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION]


def inputs(n=5, m=7, d=4, e=4, b=2, heads=3, dtype=torch.float64):
    generator = torch.Generator().manual_seed(n * 10 + m)
    shapes = ((b, heads, n, d), (b, heads, m, d), (b, heads, m, e))
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]


def masks(*shape, blind_row=1):
    """The same mask as bool and as numbers, -inf where it is False; one row sees nothing, another one key."""
    generator = torch.Generator().manual_seed(3)
    visible = torch.rand(shape, generator=generator) > 0.4
    visible[..., 0, :] = False
    visible[..., 0, -1] = True
    visible[..., blind_row, :] = False
    added = torch.randn(shape, generator=generator, dtype=torch.float64).masked_fill(~visible, -math.inf)
    return visible, added


def weights_by_loops(query, key, visible, added):
    b, heads, n, d = query.shape
    weights = torch.zeros(b, heads, n, key.shape[2], dtype=torch.float64)
    visible, added = (t.expand(weights.shape) for t in (visible, added))
    for place in itertools.product(range(b), range(heads), range(n)):
        seen = [j for j in range(key.shape[2]) if visible[(*place, j)]]
        scores = [
            sum(x * y for x, y in zip(query[place].tolist(), key[(*place[:2], j)].tolist(), strict=True)) / math.sqrt(d)
            + added[(*place, j)].item()
            for j in seen
        ]
        for j, weight in zip(seen, softmax_by_loops(scores) if seen else [], strict=True):
            weights[(*place, j)] = weight
    return weights


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (1, 3, 5, 7), (2, 1, 5, 7), (5, 7)])
@pytest.mark.parametrize("e", [4, 6])  # values as wide as keys go to a fused kernel
def test_masked_attention_is_the_formula(kind, shape, e):
    query, key, value = inputs(e=e)
    visible, added = masks(*shape)
    expected = weights_by_loops(query, key, visible, added if kind == "real" else torch.zeros(()))
    mask = visible if kind == "bool" else added
    weights = attention_weights(query, key, mask=mask)
    torch.testing.assert_close(weights, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(attend(query, key, value, mask=mask), expected @ value, rtol=0, atol=1e-12)
    assert (weights.masked_select(~visible.expand(weights.shape)) == 0).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.filterwarnings("ignore:Anomaly Detection")
def test_queries_that_see_nothing_get_nothing_and_give_no_nan(kind, kernel, dtype):
    tensors = inputs(dtype=dtype)
    mask = masks(2, 1, 5, 7)[KINDS.index(kind)]
    # The anomaly mode finds NaN also where a later step would hide it.
    with sdpa_kernel(kernel), torch.autograd.detect_anomaly(check_nan=True):
        attended = attend(*tensors, mask=mask)
        weights = attention_weights(*tensors[:2], mask=mask)
        assert attended.dtype == weights.dtype == dtype
        assert (attended[:, :, 1] == 0).all() and (weights[:, :, 1] == 0).all()
        assert attended.isfinite().all() and weights.isfinite().all()
        (attended.float().square().sum() + weights.float().square().sum()).backward()
    for tensor in tensors:
        assert tensor.grad.isfinite().all() and (tensor.grad != 0).any()
    assert (tensors[0].grad[:, :, 1] == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_nobody_sees_anything(kind):
    tensors = inputs()
    mask = torch.zeros(2, 1, 1, 7, dtype=torch.bool)
    mask = mask if kind == "bool" else torch.zeros(mask.shape).masked_fill(~mask, -math.inf)
    attended, weights = attend(*tensors, mask=mask), attention_weights(*tensors[:2], mask=mask)
    (attended.sum() + weights.sum()).backward()
    for tensor in (attended, weights, *(t.grad for t in tensors)):
        assert (tensor == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_masked_keys_change_nothing(kind):
    """Not even huge ones: their weight is 0, and not the exp(0) of a logit that was multiplied by a mask."""
    query, key, value = (t.detach() for t in inputs(dtype=torch.float32))
    visible = torch.ones(2, 1, 1, 7, dtype=torch.bool)
    visible[..., 4:] = False
    mask = visible if kind == "bool" else torch.zeros(visible.shape).masked_fill(~visible, -math.inf)
    far_key, far_value = key.clone(), value.clone()
    far_key[:, :, 4:] *= 1e4
    far_value[:, :, 4:] = 1e30
    far_key.requires_grad_()
    far_value.requires_grad_()
    attended = attend(query, far_key, far_value, mask=mask)
    assert torch.equal(attended, attend(query, key, value, mask=mask))
    attended.sum().backward()
    assert (far_key.grad[:, :, 4:] == 0).all() and (far_value.grad[:, :, 4:] == 0).all()
    without = attend(query, key[:, :, :4], value[:, :, :4])
    torch.testing.assert_close(attended, without)


def test_bool_masks_and_numbers_agree():
    query, key, value = inputs()
    visible, _ = masks(2, 1, 5, 7)
    added = torch.zeros(visible.shape).masked_fill(~visible, -math.inf)  # in float32
    for run in (
        lambda mask: attend(query, key, value, mask=mask),
        lambda mask: attention_weights(query, key, mask=mask),
    ):
        torch.testing.assert_close(run(added), run(visible), rtol=0, atol=1e-14)


@pytest.mark.parametrize("e", [4, 6])
def test_gradients_also_in_the_mask(e):
    query, key, value = inputs(n=3, m=4, e=e, b=1, heads=2)
    visible, _ = masks(1, 2, 3, 4)
    bias = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)

    def run(query, key, value, bias):
        mask = bias.masked_fill(~visible, -math.inf)
        return attend(query, key, value, mask=mask), attention_weights(query, key, mask=mask)

    assert torch.autograd.gradcheck(run, (query, key, value, bias))
    assert torch.autograd.gradcheck(lambda q, k, v: attend(q, k, v, mask=visible), (query, key, value))
    assert torch.autograd.gradcheck(lambda q, k: attention_weights(q, k, mask=visible), (query, key))


@pytest.mark.parametrize("shape", [(2, 3, 5, 1), (2, 1, 1, 1)])
@pytest.mark.parametrize("kind", KINDS)
def test_masks_of_queries_broadcast_over_keys(shape, kind):
    tensors = inputs()
    visible = torch.ones(shape, dtype=torch.bool)
    visible[1, ..., 0, 0] = False
    mask = visible if kind == "bool" else torch.zeros(shape).masked_fill(~visible, -math.inf)
    expected = attend(*tensors) * visible
    torch.testing.assert_close(attend(*tensors, mask=mask), expected)
    torch.testing.assert_close(attention_weights(*tensors[:2], mask=mask), attention_weights(*tensors[:2]) * visible)


@pytest.mark.parametrize(("b", "n", "m"), [(0, 5, 7), (2, 0, 7), (2, 5, 0)])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_to_attend(b, n, m, kind):
    tensors = inputs(n=n, m=m, b=b)
    mask = torch.ones(b, 1, n, m, dtype=torch.bool)
    attended = attend(*tensors, mask=mask if kind == "bool" else mask.double())
    assert attended.shape == (b, 3, n, 4) and (attended == 0).all()
    assert attention_weights(*tensors[:2], mask=mask).shape == (b, 3, n, m)


def test_whole_numbers_are_no_mask():
    query, key, value = inputs()
    with pytest.raises(ValueError, match=r"mask .*torch\.int64"):
        attend(query, key, value, mask=torch.ones(5, 7, dtype=torch.int64))


def test_no_work_without_a_mask():
    """The number of operations: one kernel, as before there were masks."""
    query, key, value = (t.detach() for t in inputs())
    with torch.profiler.profile() as profile:
        attend(query, key, value)
    names = [event.key for event in profile.key_averages() if event.key.startswith("aten::")]
    assert not any("mask" in name or "where" in name or "any" in name for name in names), names


class TestCausalMask:
    @pytest.mark.parametrize("length", [0, 1, 6])
    def test_rows_see_themselves_and_what_comes_before(self, length):
        mask = causal_mask(length)
        assert mask.shape == (length, length) and mask.dtype == torch.bool
        assert all(mask[i, j] == (j <= i) for i in range(length) for j in range(length))

    def test_later_cells_change_nothing(self):
        """Raster order on a map of 3 x 5 cells: what changes from cell 7 on is seen from cell 7 on only."""
        torch.manual_seed(0)
        module = MultiHeadAttention(8, 2).eval()
        x = torch.randn(2, 15, 8)
        other = x.clone()
        other[:, 7:] = torch.randn(2, 8, 8)
        a, b = (module(t, t, t, mask=causal_mask(15)) for t in (x, other))
        assert torch.equal(a[:, :7], b[:, :7])
        assert ((a - b).abs().amax(-1)[:, 7:] > 1e-4).all()


class TestKeyPaddingMask:
    def test_tokens_and_maps(self):
        padding = torch.zeros(2, 3, 4, dtype=torch.bool)
        padding[1, :, 2:] = True
        mask = key_padding_mask(padding)
        assert mask.shape == (2, 1, 1, 12)
        assert all(mask[b, 0, 0, 4 * y + x] == ~padding[b, y, x] for b in range(2) for y in range(3) for x in range(4))
        assert torch.equal(key_padding_mask(padding.flatten(1)), mask)

    def test_it_is_that_of_torch_and_combines(self):
        torch.manual_seed(0)
        ours, theirs = MultiHeadAttention(8, 2).eval(), nn.MultiheadAttention(8, 2, batch_first=True).eval()
        theirs.load_state_dict(ours.state_dict())
        x = torch.randn(2, 6, 8)
        padding = torch.zeros(2, 6, dtype=torch.bool)
        padding[1, 3:] = True
        mask = causal_mask(6) & key_padding_mask(padding)
        expected, weights = theirs(
            x, x, x, key_padding_mask=padding, attn_mask=~causal_mask(6), average_attn_weights=False
        )
        torch.testing.assert_close(ours(x, x, x, mask=mask), expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(ours.weights(x, x, mask=mask), weights, rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("padding", [torch.zeros(2, 3), torch.zeros(3, dtype=torch.bool)])
    def test_what_is_no_padding(self, padding):
        with pytest.raises(ValueError, match=r"bool, \(B, M\) or \(B, h, w\)"):
            key_padding_mask(padding)


@pytest.mark.parametrize("kind", KINDS)
def test_the_module_takes_all_masks(kind):
    torch.manual_seed(0)
    module = MultiHeadAttention(12, 3).double()
    x, y = torch.randn(2, 5, 12, dtype=torch.float64), torch.randn(2, 7, 12, dtype=torch.float64)
    visible, added = masks(2, 3, 5, 7)
    mask = visible if kind == "bool" else added
    query, key, value = module.project(x, y, y)
    expected = weights_by_loops(query, key, visible, added if kind == "real" else torch.zeros(()))
    torch.testing.assert_close(module.weights(x, y, mask=mask), expected, rtol=0, atol=1e-12)
    output = module(x, y, y, mask=mask)
    torch.testing.assert_close(
        output, module.out_proj((expected @ value).transpose(1, 2).flatten(2)), rtol=0, atol=1e-12
    )
    assert torch.equal(output[:, 1], module.out_proj.bias.expand(2, 12))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("autocast", [False, True])
def test_masks_in_one_graph_and_in_mixed_precision(kind, autocast):
    module = MultiHeadAttention(12, 3).eval()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, 12, generator=generator)
    mask = masks(2, 1, 5, 5)[KINDS.index(kind)]
    expected = module(x, x, x, mask=mask)
    torch.compiler.reset()
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    with torch.autocast("cpu", dtype=torch.bfloat16) if autocast else nullcontext():
        for run in (module, compiled):
            found = run(x, x, x, mask=mask)
            error = 5e-2 if autocast else 1e-5
            torch.testing.assert_close(found.float(), expected, rtol=error, atol=error)
