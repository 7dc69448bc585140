"""The mask head of DETR: where each query looks, refined to a mask by convolutions on ever finer maps.

    queries, memory -> attention maps -> 3x3 convolutions, upsampled and joined with the backbone's maps -> mask logits

Source: Carion et al. 2020, section 4.4 and figure 8, and the authors' models/segmentation.py, whose parameter names are
kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STRIDE = 4  # of the finest map that refines a mask, in pixels; what finer maps add costs more than all else
PLACE_MAPS = 2  # of `relative_places`
FARTHEST = 2.0  # from a box, in its widths and heights, that its mask head tells apart
GROUPS = 8  # of group normalisation, or as many as divide the channels


class AttentionMap(nn.Module):
    """The weights of multi-head attention from queries to a map.

    The softmax is taken over the cells of all heads together, as the authors do.
    """

    def __init__(self, embed_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_linear = nn.Linear(embed_dim, embed_dim)
        self.k_linear = nn.Linear(embed_dim, embed_dim)
        for linear in (self.q_linear, self.k_linear):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, queries: Tensor, memory: Tensor, image: Tensor, mask: Tensor | None = None) -> Tensor:
        """Weights (M, heads, N) of M queries (M, C), each for the tokens (B, N, C) of its image (M,); they sum to 1."""
        query = self.q_linear(queries).unflatten(1, (self.num_heads, -1))
        key = self.k_linear(memory).unflatten(2, (self.num_heads, -1)).permute(0, 2, 3, 1)  # (B, heads, d, N)
        scores = ((query * query.shape[-1] ** -0.5)[:, :, None] @ key[image])[:, :, 0]
        if mask is not None:
            scores = scores.masked_fill(~mask[:, 0][image], -math.inf)
        return scores.flatten(1).softmax(dim=1).view_as(scores)


class MaskHead(nn.Module):
    """Attention maps to mask logits: two convolutions, and one more for every finer map.

    Args:
        embed_dim: channels C of the projected features.
        num_heads: maps of a query: those of its attention, and `relative_places` of its box in a smaller head.
        finer_channels: channels of the backbone's maps, from coarse to fine.
    """

    def __init__(self, embed_dim: int, num_heads: int, finer_channels: Sequence[int]) -> None:
        super().__init__()
        first = embed_dim + num_heads
        widths = [first, *(embed_dim // 2 ** (1 + i) for i in range(1 + len(finer_channels)))]
        self.embed_dim = embed_dim
        self.lay1, self.gn1 = _layer(first, first)
        self.lay2, self.gn2 = _layer(first, widths[1])
        for number, (before, after) in enumerate(pairwise(widths[1:]), start=3):
            convolution, norm = _layer(before, after)
            self.add_module(f"lay{number}", convolution)
            self.add_module(f"gn{number}", norm)
        self.out_lay = nn.Conv2d(widths[-1], 1, 3, padding=1)
        for number, (channels, width) in enumerate(zip(finer_channels, widths[1:], strict=False), start=1):
            self.add_module(f"adapter{number}", nn.Conv2d(channels, width, 1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, attention: Tensor, projected: Tensor, finer: Sequence[Tensor], image: Tensor) -> Tensor:
        """Mask logits (M, H, W) with the size of the finest map.

        The first convolution is split by its input: its part on the features is the same for all queries of an image
        and done once; likewise the adapters.

        Args:
            attention: (M, heads, h, w). projected: (B, C, h, w). finer: (B, C_i, h_i, w_i).
            image: (M,) which image of the batch a query is of.
        """
        weight, bias = self.lay1.weight, self.lay1.bias
        common = F.conv2d(projected, weight[:, : self.embed_dim], bias, padding=1)
        x = common[image] + F.conv2d(attention, weight[:, self.embed_dim :], padding=1)
        return self._refine(x, finer, image)

    def plain(self, attention: Tensor, projected: Tensor, finer: Sequence[Tensor], image: Tensor) -> Tensor:
        """Compute the same as in the authors' code: features and attention concatenated for every query."""
        return self._refine(self.lay1(torch.cat((projected[image], attention), dim=1)), finer, image)

    def _refine(self, x: Tensor, finer: Sequence[Tensor], image: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)  # a third faster on a CPU, forward and backward
        x = self.lay2(self.gn1(x).relu())
        x = self.gn2(x).relu()
        for number, maps in enumerate(finer, start=1):
            maps = maps.contiguous(memory_format=torch.channels_last)
            adapted = self.get_submodule(f"adapter{number}")(maps)[image]
            x = adapted + F.interpolate(x, size=adapted.shape[-2:], mode="nearest")
            x = self.get_submodule(f"lay{number + 2}")(x)
            x = self.get_submodule(f"gn{number + 2}")(x).relu()
        return self.out_lay(x)[:, 0]


def cell_centres(padding: Tensor) -> Tensor:
    """Return x and y of the centre of each cell (B, h, w, 2), as fractions of the image; beyond 1 in its padding.

    Args:
        padding: (B, h, w) bool, at the right and at the bottom.
    """
    height, width = padding.shape[-2:]
    rows, columns = (~padding).any(2).sum(1), (~padding).any(1).sum(1)
    y = (torch.arange(height, device=padding.device) + 0.5) / rows[:, None]
    x = (torch.arange(width, device=padding.device) + 0.5) / columns[:, None]
    return torch.stack((x[:, None].expand(-1, height, -1), y[:, :, None].expand(-1, -1, width)), dim=-1)


def relative_places(centres: Tensor, boxes: Tensor) -> Tensor:
    """Return where cells lie, seen from a box: (M, 2, h, w), in its widths and heights from its centre, up to 2.

    A mask head that sees this need not learn where the box is (CondInst, Tian et al. 2020, section 3.1).

    Args:
        centres: (M, h, w, 2) of the cells, x and y as fractions of the image.
        boxes: (M, 4) cxcywh as fractions of the image.
    """
    centre, size = boxes[:, None, None, :2], boxes[:, None, None, 2:].clamp(min=1e-3)
    return ((centres - centre) / size).clamp(-FARTHEST, FARTHEST).permute(0, 3, 1, 2)


def ellipse_logits(places: Tensor, size: tuple[int, int]) -> Tensor:
    """Return mask logits (M, H, W) of the ellipse inside each box: 0 at its border, 2 at its centre, at least -6.

    Masks that start like this learn from the first step on. That is ours: from empty masks the losses of small objects
    have almost no gradient.

    Args:
        places: (M, 2, h, w) as from `relative_places`.
        size: (H, W).
    """
    x, y = F.interpolate(places, size=size, mode="bilinear", align_corners=False).unbind(1)
    return (2 - 8 * (x**2 + y**2)).clamp(min=-6)


def _layer(before: int, after: int) -> tuple[nn.Conv2d, nn.GroupNorm]:
    return nn.Conv2d(before, after, 3, padding=1), nn.GroupNorm(math.gcd(GROUPS, after), after)


@torch.no_grad()
def finer_channels(backbone: nn.Module) -> list[int]:
    """Channels of the backbone's maps before its last that have at least a stride of `STRIDE`, from coarse to fine."""
    parameter = next(backbone.parameters())
    was_training = backbone.training
    side = 64
    maps = backbone.eval()(torch.zeros(1, 3, side, side, device=parameter.device, dtype=parameter.dtype))
    backbone.train(was_training)
    return [features.shape[1] for features in maps[:-1][::-1] if side // features.shape[-1] >= STRIDE]
