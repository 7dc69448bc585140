"""Attention against torch's own, the formula written out, and position encodings against numpy."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attention_cases import softmax_by_loops
from refusals import refused
from regard.attention import (
    LearnedPositionEncoding,
    MultiHeadAttention,
    SinePositionEncoding,
    attend,
    attention_weights,
    sine_embedding,
)
from regard.errors import ConfigError


def pair(embed_dim: int = 16, num_heads: int = 4) -> tuple[MultiHeadAttention, nn.MultiheadAttention]:
    """Our attention and torch's with the same random weights and biases."""
    torch.manual_seed(0)
    ours = MultiHeadAttention(embed_dim, num_heads)
    theirs = nn.MultiheadAttention(embed_dim, num_heads, batch_first=True)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.normal_(std=0.5)
    theirs.load_state_dict(ours.state_dict())  # strict: the names are torch's
    return ours.eval(), theirs.eval()


def inputs(*lengths: int, batch: int = 2, embed_dim: int = 16) -> list[Tensor]:
    g = torch.Generator().manual_seed(1)
    return [torch.randn(batch, n, embed_dim, generator=g) for n in lengths]


class TestMultiHeadAttention:
    @pytest.mark.parametrize("same", ["all", "query and key", "key and value", "none"])
    def test_equals_torch(self, same: str) -> None:
        ours, theirs = pair()
        q, k, v = inputs(5, 5, 5)
        query, key, value = {
            "all": (q, q, q),
            "query and key": (q, q, v),
            "key and value": (q, k, k),
            "none": (q, k, v),
        }[same]
        expected, weights = theirs(query, key, value, average_attn_weights=False)
        torch.testing.assert_close(ours(query, key, value), expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(ours.weights(query, key), weights, atol=1e-6, rtol=1e-5)

    def test_other_lengths_and_padded_keys(self) -> None:
        ours, theirs = pair()
        q, k, v = inputs(3, 7, 7)
        padding = torch.zeros(2, 7, dtype=torch.bool)
        padding[1, 4:] = True
        expected, weights = theirs(q, k, v, key_padding_mask=padding, average_attn_weights=False)
        mask = ~padding[:, None, None]
        torch.testing.assert_close(ours(q, k, v, mask=mask), expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(ours.weights(q, k, mask=mask), weights, atol=1e-6, rtol=1e-5)

    def test_mask_of_pairs(self) -> None:
        ours, theirs = pair()
        q, k, v = inputs(6, 6, 6)
        visible = torch.ones(6, 6, dtype=torch.bool).tril()
        expected, _ = theirs(q, k, v, attn_mask=~visible)
        torch.testing.assert_close(ours(q, k, v, mask=visible), expected, atol=1e-5, rtol=1e-5)

    def test_gradients_equal_torch(self) -> None:
        ours, theirs = (module.double() for module in pair())
        q, k, v = (x.double() for x in inputs(3, 7, 7))
        visible = torch.ones(3, 7, dtype=torch.bool).tril(2)
        for module, mask in ((ours, {"mask": visible}), (theirs, {"attn_mask": ~visible})):
            result = module(q, k, v, **mask)
            (result if isinstance(result, Tensor) else result[0]).square().sum().backward()
        expected = dict(theirs.named_parameters())
        for name, parameter in ours.named_parameters():
            torch.testing.assert_close(parameter.grad, expected[name].grad)

    def test_weights_reproduce_the_output(self) -> None:
        ours, _ = pair()
        q, k, v = inputs(3, 7, 7)
        mask = torch.rand(2, 1, 3, 7, generator=torch.Generator().manual_seed(2)) > 0.4
        mask[..., 0] = True
        weights = ours.weights(q, k, mask=mask)
        assert weights.shape == (2, 4, 3, 7)
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 3))
        assert (weights.masked_select(~mask) == 0).all()
        values = ours.project(q, k, v)[2]
        rebuilt = ours.out_proj((weights @ values).transpose(1, 2).flatten(2))
        torch.testing.assert_close(ours(q, k, v, mask=mask), rebuilt, atol=1e-5, rtol=1e-5)

    def test_a_query_that_sees_nothing_gets_nothing(self) -> None:
        ours, _ = pair()
        q, k, v = (x.requires_grad_() for x in inputs(3, 7, 7))
        mask = torch.ones(2, 1, 3, 7, dtype=torch.bool)
        mask[0, :, 1] = False
        attended = attend(*ours.project(q, k, v), mask=mask)
        weights = ours.weights(q, k, mask=mask)
        assert (attended[0, :, 1] == 0).all() and (weights[0, :, 1] == 0).all()
        torch.testing.assert_close(weights.sum(-1)[1], torch.ones(4, 3))
        output = ours(q, k, v, mask=mask)
        torch.testing.assert_close(output[0, 1], ours.out_proj.bias)
        (output.square().sum() + weights.square().sum()).backward()
        for x in (q, k, v, *ours.parameters()):
            assert x.grad is not None and x.grad.isfinite().all()
        assert q.grad is not None and (q.grad[0, 1] == 0).all() and (q.grad[0, 0] != 0).any()

    def test_gradcheck(self) -> None:
        torch.manual_seed(0)
        module = MultiHeadAttention(4, 2).double()
        q, k, v = (torch.randn(1, n, 4, dtype=torch.float64, requires_grad=True) for n in (2, 3, 3))
        mask = torch.tensor([[True, False, True], [True, True, True]])
        names, parameters = zip(*module.named_parameters(), strict=True)

        def run(q: Tensor, k: Tensor, v: Tensor, *values: Tensor) -> Tensor:
            return torch.func.functional_call(
                module, dict(zip(names, values, strict=True)), (q, k, v), kwargs={"mask": mask}
            )

        assert torch.autograd.gradcheck(run, (q, k, v, *parameters))
        assert torch.autograd.gradcheck(lambda q, k: module.weights(q, k, mask=mask), (q, k))

    def test_dropout_in_training_only(self) -> None:
        torch.manual_seed(0)
        module = MultiHeadAttention(16, 4, dropout=0.5)
        (x,) = inputs(5)
        assert not torch.equal(module(x, x, x), module(x, x, x))
        module.eval()
        assert torch.equal(module(x, x, x), module(x, x, x))

    def test_initial_values(self) -> None:
        """Xavier's bound for the packed matrix, no biases (the authors' reset of nn.MultiheadAttention)."""
        module = MultiHeadAttention(256, 8)
        bound = math.sqrt(6 / (3 * 256 + 256))
        assert 0.98 * bound < module.in_proj_weight.abs().max() <= bound
        assert (module.in_proj_bias == 0).all() and (module.out_proj.bias == 0).all()

    def test_one_graph_for_all_lengths(self) -> None:
        """Queries and keys of their own lengths; the graph of self-attention has one symbol for both."""
        ours, _ = pair()
        torch.compiler.reset()
        compiled = torch.compile(ours, fullgraph=True, backend="eager")
        n, m = torch.export.Dim("n", min=2, max=64), torch.export.Dim("m", min=2, max=64)
        graph = torch.export.export(ours, tuple(inputs(5, 7, 7)), dynamic_shapes=({1: n}, {1: m}, {1: m})).module()
        for lengths in ((5, 7), (9, 4), (2, 40)):
            q, k, v = inputs(lengths[0], lengths[1], lengths[1])
            expected = ours(q, k, v)
            for run in (compiled, graph):
                torch.testing.assert_close(run(q, k, v), expected, atol=1e-5, rtol=1e-5)
        (x,) = inputs(6)
        torch.testing.assert_close(compiled(x, x, x), ours(x, x, x), atol=1e-5, rtol=1e-5)

    def test_precisions_strides_and_no_images(self) -> None:
        ours, _ = pair()
        (x,) = inputs(7)
        expected, weights = ours(x, x, x), ours.weights(x, x)
        turned = x.transpose(1, 2).contiguous().transpose(1, 2)  # the tokens of a map, where channels come first
        torch.testing.assert_close(ours(turned, turned, turned), expected)
        assert ours(x[:0], x[:0], x[:0]).shape == (0, 7, 16)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = ours(x, x, x)
        assert mixed.dtype == torch.bfloat16
        torch.testing.assert_close(mixed.float(), expected, atol=1e-1, rtol=5e-2)
        mixed.float().square().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in ours.parameters())
        half = ours.bfloat16()(*(x.bfloat16(),) * 3)
        assert half.dtype == torch.bfloat16
        torch.testing.assert_close(half.float(), expected, atol=1e-1, rtol=5e-2)
        torch.testing.assert_close(ours.weights(*(x.bfloat16(),) * 2).float(), weights, atol=5e-2, rtol=5e-2)

    @pytest.mark.parametrize(
        ("numbers", "says"),
        [
            ((10, 4), "10 .*num_heads 4"),
            ((8, 0), "embed_dim 8 .*num_heads 0"),
            ((0, 2), "embed_dim 0 .*num_heads 2"),
        ],
    )
    def test_wrong_numbers(self, numbers: tuple[int, int], says: str) -> None:
        with pytest.raises(ValueError, match=says):
            MultiHeadAttention(*numbers)


def test_attention_is_the_formula() -> None:
    g = torch.Generator().manual_seed(0)
    q, k = (torch.randn(2, 3, n, 5, generator=g, dtype=torch.float64) for n in (4, 6))
    v = torch.randn(2, 3, 6, 7, generator=g, dtype=torch.float64)
    weights, attended = attention_weights(q, k), attend(q, k, v)
    for b, h, i in itertools.product(range(2), range(3), range(4)):
        scores = [sum(q[b, h, i] * k[b, h, j]).item() / math.sqrt(5) for j in range(6)]
        shares = torch.tensor(softmax_by_loops(scores), dtype=torch.float64)
        torch.testing.assert_close(weights[b, h, i], shares, rtol=0, atol=1e-10)
        expected = sum(shares[j] * v[b, h, j] for j in range(6))
        torch.testing.assert_close(attended[b, h, i], expected, rtol=0, atol=1e-10)


def plain_sine(height: int, width: int, channels: int, temperature: float, shift: float) -> np.ndarray:
    """(h, w, C) by loops: y in the first half of the channels, sine and cosine in turn."""
    result = np.zeros((height, width, channels))
    half = channels // 2
    for y in range(height):
        for x in range(width):
            for start, place, count in ((0, y, height), (half, x, width)):
                position = (place + 1 - shift) / (count + 1e-6) * 2 * np.pi
                for i in range(half // 2):
                    angle = position / temperature ** (2 * i / half)
                    result[y, x, start + 2 * i] = np.sin(angle)
                    result[y, x, start + 2 * i + 1] = np.cos(angle)
    return result


class TestSinePositions:
    @pytest.mark.parametrize(("temperature", "centered"), [(10000.0, False), (20.0, True)])
    def test_equal_numpy_with_and_without_padding(self, temperature: float, centered: bool) -> None:
        sizes = [(5, 6), (3, 6), (4, 2), (1, 1)]
        padding = torch.ones(4, 5, 6, dtype=torch.bool)
        for mask, (h, w) in zip(padding, sizes, strict=True):
            mask[:h, :w] = False
        encoding = SinePositionEncoding(16, temperature, centered)(padding)
        assert encoding.shape == (4, 5, 6, 16) and encoding.isfinite().all()
        for found, (h, w) in zip(encoding, sizes, strict=True):
            expected = plain_sine(h, w, 16, temperature, 0.5 if centered else 0.0)
            np.testing.assert_allclose(found[:h, :w].numpy(), expected, atol=2e-6)

    def test_no_weights(self) -> None:
        assert not SinePositionEncoding(16).state_dict()

    def test_width_that_is_no_multiple_of_four(self) -> None:
        with pytest.raises(ValueError, match="embed_dim 18"):
            SinePositionEncoding(18)

    def test_embedding_keeps_leading_dimensions(self) -> None:
        positions = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(0))
        embedded = sine_embedding(positions, 6, temperature=20)
        assert embedded.shape == (2, 3, 4, 6)
        p = positions[1, 2, 3].item()
        by_hand = [f(p / 20 ** (2 * i / 6)) for i in range(3) for f in (math.sin, math.cos)]
        torch.testing.assert_close(embedded[1, 2, 3], torch.tensor(by_hand))


class TestLearnedPositions:
    def test_column_then_row(self) -> None:
        torch.manual_seed(0)
        encoding = LearnedPositionEncoding(8, max_size=6)
        found = encoding(torch.zeros(2, 3, 5, dtype=torch.bool))
        assert found.shape == (2, 3, 5, 8)
        for y in range(3):
            for x in range(5):
                expected = torch.cat((encoding.col_embed.weight[x], encoding.row_embed.weight[y]))
                assert torch.equal(found[0, y, x], expected) and torch.equal(found[1, y, x], expected)

    def test_every_used_row_learns(self) -> None:
        encoding = LearnedPositionEncoding(8, max_size=6)
        encoding(torch.zeros(2, 3, 5, dtype=torch.bool)).sum().backward()
        rows, columns = encoding.row_embed.weight.grad, encoding.col_embed.weight.grad
        assert rows is not None and columns is not None
        assert (rows[:3] == 10).all() and (rows[3:] == 0).all()  # 2 images, 5 columns
        assert (columns[:5] == 6).all() and (columns[5:] == 0).all()

    @pytest.mark.parametrize("size", [(7, 2), (2, 7)])
    def test_maps_beyond_the_tables(self, size: tuple[int, int]) -> None:
        with refused(ConfigError, f"{size[0]} x {size[1]}", "at 6", code="C03"):
            LearnedPositionEncoding(8, max_size=6)(torch.zeros(1, *size, dtype=torch.bool))
