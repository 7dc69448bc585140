"""Explanations of ViT and DeiT: attention of their tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from regard.explanations.checks import cell_of, check_kind, chosen
from regard.explanations.explanation import Box, SaliencyMap
from regard.explanations.recording import AttentionRecorder, gradients
from regard.models.vit import VisionTransformer

# Kinds of explanation with the options that each uses.
KINDS = {"rollout": (), "heads": ("layer",), "tokens": ("head",), "patch": ("point", "head"), "relevance": ()}


def rollout(weights: Sequence[Tensor]) -> Tensor:
    """Compute the share of each input token in each token of the last block: (B, N, N), rows sum to 1.

    The product over blocks of (I + mean over heads of A) / 2, where I stands for the residual sum. Abnar and Zuidema
    2020, section 3.

    Args:
        weights: (B, heads, N, N) of each block, first block first.
    """
    joint = torch.eye(weights[0].shape[-1], dtype=weights[0].dtype, device=weights[0].device)[None]
    for block in weights:
        mixed = 0.5 * (block.mean(dim=1) + torch.eye(block.shape[-1], dtype=block.dtype, device=block.device))
        joint = mixed / mixed.sum(dim=-1, keepdim=True) @ joint
    return joint


def explain_vit(
    net: VisionTransformer,
    pixels: Tensor,
    extent: Box,
    what: str,
    *,
    point: tuple[float, float] | None,
    layer: int | None,
    head: int | None,
) -> tuple[list[SaliencyMap], int]:
    """Return maps over the patches of one image, and the number of maps per row of the picture.

    * `rollout`: of the class token, and of the distillation token if there is one, through all blocks.
    * `heads`: of each head of a block, of the class token.
    * `tokens`: of class and distillation token in each block, mean of heads (or one head).
    * `patch`: of the patch at `point`, in each block, mean of heads (or one head).
    * `relevance`: for the predicted class, of each token in front. Chefer et al. 2021, equations 5 and 6.

    Args:
        pixels: (1, 3, H, W), normalised.
        extent: the part of the original that they show.
    """
    check_kind(what, KINDS, net.card.name, point=point, layer=layer, head=head)
    count = net.num_tokens
    grid = tuple(side // net.config.patch_size for side in pixels.shape[-2:])
    names = ("class token", "distillation token")[:count]

    def saliency(row: Tensor, title: str, at: tuple[float, float] | None = None) -> SaliencyMap:
        return SaliencyMap(row[count:].unflatten(0, grid), title, extent, at)

    with torch.no_grad():
        weights = [block[0] for block in net.attention(pixels)]  # (heads, N, N)
    if what == "relevance":
        relevance, name = _relevance(net, pixels)
        return [saliency(relevance[token], f"for {name}, {names[token]}") for token in range(count)], count
    if what == "rollout":
        joint = rollout([block[None] for block in weights])[0]
        return [saliency(joint[token], f"rollout, {names[token]}") for token in range(count)], count
    if what == "heads":
        number = chosen("layer", layer, len(weights), -1)
        rows = weights[number][:, 0]
        return [saliency(row, f"block {number}, head {i}") for i, row in enumerate(rows)], 4
    one = None if head is None else chosen("head", head, len(weights[0]), 0)
    means = [block.mean(0) if one is None else block[one] for block in weights]
    if what == "tokens":
        shown = [(i, token) for i in range(len(means)) for token in range(count)]
        return [saliency(means[i][token], f"block {i}, {names[token]}") for i, token in shown], 4 if count == 2 else 6
    cell = cell_of(point, extent, grid)
    row = count + cell[0] * grid[1] + cell[1]
    return [saliency(mean[row], f"block {i}", point or _middle(extent)) for i, mean in enumerate(means)], 6


def _relevance(net: VisionTransformer, pixels: Tensor) -> tuple[Tensor, str]:
    """(N, N) relevance of each token for each, for the likeliest class, and the name of that class."""
    with AttentionRecorder() as recorder:
        logits = net(pixels.clone().requires_grad_())
    assert isinstance(logits, Tensor)  # of both heads together, in evaluation
    label = int(logits[0].argmax())
    relevance = torch.eye(recorder.calls[0].key.shape[2], device=pixels.device)
    for weighted in gradients(logits[0, label], recorder.calls):
        rows = weighted.shape[1]  # the last block may compute the first tokens alone
        relevance = torch.cat((relevance[:rows] + weighted[0] @ relevance, relevance[rows:]))
    return relevance.detach(), net.card.categories[label].name


def _middle(extent: Box) -> tuple[float, float]:
    return (extent[0] + extent[2]) / 2, (extent[1] + extent[3]) / 2
