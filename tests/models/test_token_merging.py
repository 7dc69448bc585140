"""Token merging: the paper's algorithm in plain loops, nothing changed for r = 0, and what may not be merged is not."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from refusals import refused
from regard.errors import ConfigError
from regard.models import DistilledLogits, VisionTransformer, ViTConfig, merge_tokens
from regard.models.token_merging import merge

PLAIN = ViTConfig(num_classes=7, image_size=32, patch_size=8, embed_dim=24, num_heads=3, depth=4)
DISTILLED = replace(PLAIN, distilled=True)
THIRD = replace(PLAIN, class_position=False, layer_scale=0.1)


def random_model(config):
    torch.manual_seed(0)
    model = VisionTransformer(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model.eval()


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def matched_by_loops(keys, front, r):
    """Bolya et al., section 3: (source, target) of the merged pairs, and the order of the tokens that are left.

    Every second token is in the first set A, the others in B, beginning with the class token in A.
    """
    length = [math.sqrt(dot(key, key)) for key in keys]
    a = [i for i in range(0, len(keys), 2) if i >= front]
    b = [i for i in range(1, len(keys), 2) if i >= front]
    edges = []
    for i in a:
        cosine, j = max((dot(keys[i], keys[j]) / (length[i] * length[j]), -j) for j in b)
        edges.append((cosine, i, -j))
    edges.sort(reverse=True)
    pairs = [(i, j) for _, i, j in edges[: min(r, (len(keys) - front) // 2)]]
    gone = [i for i, _ in pairs]
    return pairs, [*range(front), *(i for i in a if i not in gone), *b]


def block_by_loops(block, x, sizes, front, r):
    """One block in float64 for one image: tokens (N, C) and sizes [N]; proportional attention, merging, MLP."""
    heads = block.attn.num_heads
    q, k, v = block.attn.qkv(block.norm1(x)).unflatten(1, (3, heads, -1)).unbind(1)
    rows = []
    for i in range(len(x)):
        of_heads = []
        for h in range(heads):
            weights = [s * math.exp(dot(q[i, h], k[j, h]) / math.sqrt(q.shape[2])) for j, s in enumerate(sizes)]
            of_heads.append(sum(w * v[j, h] for j, w in enumerate(weights)) / sum(weights))
        rows.append(torch.cat(of_heads))
    x = x + block.ls1(block.attn.proj(torch.stack(rows)))
    pairs, order = matched_by_loops(k.mean(1).tolist(), front, r)
    tokens, counts = [], []
    for j in order:
        members = [j, *(i for i, target in pairs if target == j)]
        counts.append(sum(sizes[i] for i in members))
        tokens.append(sum(sizes[i] * x[i] for i in members) / counts[-1])
    x = torch.stack(tokens)
    return x + block.ls2(block.mlp(block.norm2(x))), counts


@pytest.mark.parametrize("config", [PLAIN, DISTILLED, THIRD])
@torch.no_grad()
def test_r_0_changes_no_bit(config):
    model = random_model(config)
    merged = merge_tokens(model, 0)
    for size in ((32, 32), (24, 40)):
        images = torch.randn(3, 3, *size)
        assert torch.equal(merged(images), model(images))
        assert all(map(torch.equal, merged.tokens(images), model.tokens(images)))


@pytest.mark.parametrize(("config", "r"), [(PLAIN, 3), (DISTILLED, 3), (THIRD, 5)])
@torch.no_grad()
def test_it_is_the_paper(config, r):
    model = random_model(config).double()
    merged = merge_tokens(model, r)
    images = torch.randn(1, 3, 32, 40, dtype=torch.float64)
    x = model._embed(images)[0]
    sizes = [1.0] * len(x)
    for block, (tokens, counts) in zip(model.blocks, merged.steps(images), strict=True):
        x, sizes = block_by_loops(block, x, sizes, model.num_tokens, r)
        assert counts[0].tolist() == sizes
        torch.testing.assert_close(tokens[0], x, rtol=0, atol=1e-8)
    assert max(sizes) >= 3  # tokens that had been merged were merged again
    x = model.norm(x)
    heads = [model.head(x[0])] + ([model.head_dist(x[1])] if config.distilled else [])
    torch.testing.assert_close(merged(images)[0], sum(heads) / len(heads), rtol=0, atol=1e-8)
    torch.testing.assert_close(merged.float()(images.float())[0].double(), sum(heads) / len(heads), rtol=0, atol=1e-3)


@pytest.mark.parametrize("front", [1, 2])
def test_class_and_distillation_tokens_stay(front):
    """Even where all tokens look alike."""
    torch.manual_seed(0)
    x = torch.randn(2, front + 9, 5)
    tokens, sizes = merge(x, None, torch.ones(2, front + 9, 4), 4, front)
    assert torch.equal(tokens[:, :front], x[:, :front]) and torch.equal(sizes[:, :front], torch.ones(2, front))
    torch.testing.assert_close((tokens * sizes[..., None])[:, front:].sum(1), x[:, front:].sum(1))


@pytest.mark.parametrize("config", [PLAIN, DISTILLED])
@pytest.mark.parametrize(
    ("r", "patches"), [(0, [16, 16, 16, 16]), (3, [13, 10, 7, 4]), (6, [10, 5, 3, 2]), (100, [8, 4, 2, 1])]
)
@torch.no_grad()
def test_number_and_sizes_of_tokens(config, r, patches):
    merged = merge_tokens(random_model(config), r)
    front = merged.num_tokens
    images = torch.randn(2, 3, 32, 32)
    for (tokens, sizes), count in zip(merged.steps(images), patches, strict=True):
        assert tokens.shape == (2, front + count, 24)
        assert (sizes is None) == (r == 0)
        if sizes is not None:
            assert sizes[:, front:].sum(1).tolist() == [16.0, 16.0] and sizes.min() == 1
    assert merged(torch.randn(1, 3, 8, 8)).shape == (1, 7)  # one patch, nothing to merge


@torch.no_grad()
def test_images_of_a_batch_do_not_meet():
    merged = merge_tokens(random_model(DISTILLED), 4)
    images = torch.randn(4, 3, 32, 32)
    logits = merged(images)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(merged(images[order]), logits[order], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(merged(images[1:2]), logits[1:2], rtol=1e-4, atol=1e-5)


def test_weights_are_shared_and_the_model_stays():
    model = random_model(DISTILLED)
    model.head.weight.requires_grad_(False)
    images = torch.randn(1, 3, 32, 32)
    before, own = model(images), {name: id(p) for name, p in model.named_parameters()}
    merged = merge_tokens(model, 4).train()
    assert {name: id(p) for name, p in merged.named_parameters()} == own and not merged.head.weight.requires_grad
    assert not any(module.training for module in model.modules()) and type(model) is VisionTransformer
    assert torch.equal(model(images), before) and not torch.equal(merge_tokens(model, 4)(images), before)
    assert isinstance(merged(images), DistilledLogits)
    sum(logits.sum() for logits in merged(images)).backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if name != "head.weight")
    again = merge_tokens(merge_tokens(model, 4), 0)
    assert torch.equal(again(images), before)


@torch.no_grad()
def test_one_graph_and_half_precision():
    merged = merge_tokens(random_model(PLAIN), 3)
    images = torch.randn(2, 3, 32, 32)
    torch.compiler.reset()
    compiled = torch.compile(merged, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(images), merged(images), rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        logits = merged(images)
    assert F.cosine_similarity(logits.float(), merged(images)).min() > 0.95
    assert merged.bfloat16()(images.bfloat16()).isfinite().all()


def test_refusals():
    model = random_model(PLAIN)
    with refused(ConfigError, "r=-1", code="C03"):
        merge_tokens(model, -1)
    for ask in (merge_tokens(model, 2).features, merge_tokens(model, 2).attention):
        with refused(ConfigError, code="C09"):
            ask(torch.randn(1, 3, 32, 32))
