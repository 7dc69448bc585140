"""Token merging: a trained vision transformer becomes faster by averaging similar patches in every block.

Between attention and MLP every block merges r pairs of tokens, so that each block has r fewer to work on than the one
before. Nothing is trained. The paper's ViT-S becomes 1.6 times as fast with r = 13 and falls from 81.4 to 79.3 percent
top-1 (appendix, without training).

Source: Bolya et al. 2023 (Token Merging: Your ViT But Faster), section 3 and appendix D; tokens are split and put
back together in the order of the authors' merge.py, so that the same pairs are found in the next block.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from regard.errors import ConfigError
from regard.models.vit import Block, VisionTransformer
from regard.structures.outputs import DistilledLogits


def merge_tokens(model: VisionTransformer, r: int) -> VisionTransformer:
    """Return the same model with the same weights, which merges r patches in every block. `model` is unchanged.

    Both share their parameters; save and load for a separate copy. With r = 0 the results equal the model's bit for
    bit.

    Args:
        model: a trained vision transformer.
        r: tokens that each block merges into others. At most half of the patches that are left are merged; class and
            distillation tokens never are.

    Raises:
        ConfigError: r is negative (C03).
    """
    if r < 0:
        raise ConfigError(f"r={r}, expected at least 0", where="merge_tokens", code="C03")
    return MergingTransformer(model, r)


class MergingTransformer(VisionTransformer):
    """A vision transformer whose tokens get fewer from block to block; see `merge_tokens`.

    Its tokens are not a grid, so it has no maps of features or attention; use the original model for these.
    """

    def __init__(self, model: VisionTransformer, r: int) -> None:
        # Modules of its own, or to train one would change the mode of both; parameters are the same.
        vars(self).update(vars(copy.deepcopy(model, {id(p): p for p in model.parameters()})))
        self.r = r

    def forward(self, images: Tensor) -> Tensor | DistilledLogits:
        """As the model's, for images of any size that it takes."""
        tokens, sizes = self._embed(images), None
        for block in self.blocks[:-1]:
            tokens, sizes = self._step(block, tokens, sizes)
        return self.classify(self._step(self.blocks[-1], tokens, sizes, self.num_tokens)[0])

    def tokens(self, images: Tensor) -> list[Tensor]:
        """All tokens after each block: (B, N, C) each, N falling; see `merge` for their order."""
        return [tokens for tokens, _ in self.steps(images)]

    def steps(self, images: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
        """After each block the tokens (B, N, C), and how many patches each stands for: (B, N), None where all are 1."""
        tokens, sizes = self._embed(images), None
        for block in self.blocks:
            tokens, sizes = self._step(block, tokens, sizes)
            yield tokens, sizes

    def features(self, images: Tensor) -> list[Tensor]:
        """Raises ConfigError: merged patches are no map."""
        raise _no_map()

    def attention(self, images: Tensor) -> list[Tensor]:
        """Raises ConfigError: merged patches are no map."""
        raise _no_map()

    def _step(
        self, block: torch.nn.Module, x: Tensor, sizes: Tensor | None, queries: int | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """A block with merging in its middle. With `queries` only so many tokens are left, and none are merged."""
        assert isinstance(block, Block)
        query, key, value = block.attn.project(block.norm1(x), queries)
        # Proportional attention: a token counts as often as there are patches in it. No mask where all have one, as
        # kernels with and without round differently; and no `attend`, whose care for blind queries costs a copy.
        mask = None if sizes is None else sizes.log()[:, None, None, :].to(query.dtype)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        x = x[:, :queries] + block.drop_path(block.ls1(block.attn.join_heads(attended)))
        r = min(self.r, (x.shape[1] - self.num_tokens) // 2)
        if r and queries is None:
            x, sizes = merge(x, sizes, key.mean(dim=1), r, self.num_tokens)
        return x + block.drop_path(block.ls2(block.mlp(block.norm2(x)))), sizes


def merge(x: Tensor, sizes: Tensor | None, keys: Tensor, r: int, front: int) -> tuple[Tensor, Tensor]:
    """Merge r tokens by bipartite soft matching: O(N^2 d) for the similarities, O(N C) for the rest.

    Patches are dealt to two sets in turns. Each of the first has its most similar one (cosine of keys) in the second;
    the r pairs that are most similar of all become their mean, weighted by sizes. Several may end in one.

    Args:
        x: tokens (B, N, C).
        sizes: (B, N), patches in each token, or None for 1 everywhere.
        keys: (B, N, d), what tokens are compared by.
        r: tokens that go, 1 to (N - front) // 2.
        front: 1 or 2 tokens before the patches, which stay.

    Returns:
        Tokens (B, N - r, C): those in front, what is left of the first set, the second. Their sizes (B, N - r), at
        least in float32.
    """
    b, n, _ = x.shape
    if sizes is None:
        sizes = torch.ones(b, n, device=x.device, dtype=torch.promote_types(x.dtype, torch.float32))
    # By turns of all tokens: the class token would be the first of the first set, that of distillation of the second.
    keys = F.normalize(keys.to(sizes.dtype), dim=-1)
    first, second = keys[:, 2::2], keys[:, 2 * front - 1 :: 2]
    similarity, partner = (first @ second.transpose(1, 2)).max(dim=-1)
    order = similarity.argsort(dim=-1, descending=True)
    going, staying = order[:, :r], order[:, r:].sort(dim=-1).values
    # Places of tokens in all images of the batch, one after the other: before, and of partners after.
    image, places = torch.arange(b, device=x.device)[:, None], torch.arange(n, device=x.device).expand(b, -1)
    kept = torch.cat((places[:, :front], 2 * staying + 2, places[:, 2 * front - 1 :: 2]), dim=1) + n * image
    target = front + staying.shape[1] + partner.gather(1, going) + (n - r) * image
    gone = 2 * going + 2 + n * image
    return _join(x, sizes, kept, gone.flatten(), target.flatten())


def _join(x: Tensor, sizes: Tensor, kept: Tensor, gone: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens at `kept` (B, M), where those at `gone` are merged into the ones that then are at `target`."""
    tokens, counts = x.flatten(0, 1), sizes.flatten()
    left, joined = tokens.index_select(0, kept.flatten()), counts.index_select(0, kept.flatten())
    counts = counts.index_select(0, gone)
    joined.index_add_(0, target, counts)
    # The mean of t and more tokens i is t + sum of (i - t) size_i / (size of all): only the merged are touched.
    move = tokens.index_select(0, gone) - left.index_select(0, target)
    left.index_add_(0, target, (move * (counts / joined.index_select(0, target))[:, None]).to(x.dtype))
    return left.unflatten(0, kept.shape), joined.unflatten(0, kept.shape)


def _no_map() -> ConfigError:
    remedy = "ask the model that merge_tokens was given: the weights are the same"
    return ConfigError("merged tokens are no map of the image", remedy=remedy, code="C09")
