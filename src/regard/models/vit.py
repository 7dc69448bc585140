"""Vision transformers: ViT, DeiT with its distillation token, and DeiT III.

An image is cut into patches, each a token; a class token, and in distilled models a distillation token, collect
information from them. Sources: Dosovitskiy et al. 2021, section 3; Touvron et al. 2021 (DeiT), sections 4 and 5;
Touvron et al. 2022 (DeiT III), section 3; numbers and names of parameters as in the authors' models.py and
models_v2.py and in timm, whose files load.
"""

from __future__ import annotations

import math
from math import isqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from regard.attention import attend, attention_weights, resize_positions
from regard.errors import ConfigError
from regard.models.configs.vit import ViTConfig
from regard.structures.categories import ModelCard
from regard.structures.outputs import DistilledLogits

EPS = 1e-6  # of layer normalisation


class VisionTransformer(nn.Module):
    """Patches -> tokens -> blocks of attention -> classes. Parameters have the authors' and timm's names.

    `no_weight_decay`: parameters that the authors' recipes do not decay, besides biases and normalisation.
    """

    card: ModelCard
    no_weight_decay = frozenset({"pos_embed", "cls_token"})

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        c, side = config.embed_dim, config.image_size // config.patch_size
        self.num_channels = c
        self.num_tokens = 2 if config.distilled else 1  # in front of the patches
        positioned = self.num_tokens if config.class_position else 0
        self.cls_token = nn.Parameter(torch.zeros(1, 1, c))
        self.dist_token = nn.Parameter(torch.zeros(1, 1, c)) if config.distilled else None
        self.pos_embed = nn.Parameter(torch.zeros(1, positioned + side * side, c))
        self.patch_embed = PatchEmbedding(config.patch_size, c)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, share) for share in _drop_paths(config))
        self.norm = nn.LayerNorm(c, eps=EPS)
        self.head = nn.Linear(c, config.num_classes)
        self.head_dist = nn.Linear(c, config.num_classes) if config.distilled else None
        self._initialize()

    def _initialize(self) -> None:
        for parameter in (self.cls_token, self.dist_token, self.pos_embed):
            if parameter is not None:
                nn.init.trunc_normal_(parameter, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                std = 0.02 if self.config.initial == "published" else module.in_features**-0.5
                nn.init.trunc_normal_(module.weight, std=std)
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor | DistilledLogits:
        """Normalised images (B, 3, H, W), H and W multiples of the patch -> logits (B, classes).

        Distilled models in training: `DistilledLogits` of both heads.

        Raises:
            ConfigError: H or W is not a multiple of the patch size (C04).
        """
        tokens = self._embed(images)
        for block in self.blocks[:-1]:
            tokens = block(tokens)
        # Of the last block only the tokens that are read are computed; they attend to all.
        return self.classify(self.blocks[-1](tokens, queries=self.num_tokens))

    def classify(self, tokens: Tensor) -> Tensor | DistilledLogits:
        """Tokens after the last block (B, N, C) -> the result of `forward`. Patch tokens are not read."""
        tokens = self.norm(tokens[:, : self.num_tokens])
        logits = self.head(tokens[:, 0])
        if self.head_dist is None:
            return logits
        both = DistilledLogits(logits, self.head_dist(tokens[:, 1]))
        return both if self.training else fuse_logits(both, self.config.fuse)

    def tokens(self, images: Tensor) -> list[Tensor]:
        """All tokens after each block, before the last normalisation: (B, tokens + patches, C) each."""
        tokens, found = self._embed(images), []
        for block in self.blocks:
            tokens = block(tokens)
            found.append(tokens)
        return found

    def features(self, images: Tensor) -> list[Tensor]:
        """The normalised patches as a map, for other heads: one (B, C, ceil(H / patch), ceil(W / patch)).

        Sides that the patch does not divide are filled up with 0 on the right and below.
        """
        patch, (h, w) = self.config.patch_size, images.shape[-2:]
        images = F.pad(images, (0, -w % patch, 0, -h % patch))
        patches = self.norm(self.tokens(images)[-1])[:, self.num_tokens :]
        return [patches.transpose(1, 2).unflatten(2, (images.shape[-2] // patch, images.shape[-1] // patch))]

    def attention(self, images: Tensor) -> list[Tensor]:
        """Attention weights of each block, computed in addition to the fused ones: (B, heads, N, N), rows sum to 1.

        Tokens: class, distillation if there is one, then patches row by row.
        """
        tokens, found = self._embed(images), []
        for block in self.blocks:
            assert isinstance(block, Block)
            found.append(block.attention_weights(tokens))
            tokens = block(tokens)
        return found

    def _embed(self, images: Tensor) -> Tensor:
        """Tokens of patches with their positions, behind the class and distillation tokens: (B, N, C)."""
        patch, (h, w) = self.config.patch_size, images.shape[-2:]
        if h % patch or w % patch:
            near = [max(1, round(side / patch)) * patch for side in (h, w)]
            what = f"images of {h} x {w} pixels for patches of {patch}"
            raise ConfigError(what, remedy=f"resize them to {near[0]} x {near[1]}", code="C04")
        patches = self.patch_embed(images)
        positions = self._positions((h // patch, w // patch))
        # Separately: gradients of parts of one tensor would not have the layout that DistributedDataParallel needs.
        given = [token for token in (self.cls_token, self.dist_token) if token is not None]
        front = [token.expand(images.shape[0], -1, -1) for token in given]
        if self.config.class_position:
            return self.dropout(torch.cat((*front, patches), dim=1) + positions)
        return torch.cat((*front, self.dropout(patches + positions)), dim=1)

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        """Position embeddings for a grid of patches; those of the tokens in front stay as they are."""
        count = self.num_tokens if self.config.class_position else 0
        side = self.config.image_size // self.config.patch_size
        if not torch.compiler.is_exporting() and grid == (side, side):
            return self.pos_embed
        front, places = self.pos_embed[:, :count], self.pos_embed[:, count:]
        return torch.cat((front, positions_at(grid, places, self.config)), dim=1)


def positions_at(grid: tuple[int, int], places: Tensor, config: ViTConfig) -> Tensor:
    """Learnt positions of the patches of a square image, resized as the model does: (1, N, C) -> (1, h w, C).

    Args:
        grid: rows and columns of patches wanted.
    """
    side = isqrt(places.shape[1])
    return resize_positions(places, (side, side), grid, antialias=config.resize == "antialiased")


class PatchEmbedding(nn.Module):
    """A linear layer on the pixels of each patch, kept as the convolution that it is."""

    def __init__(self, patch_size: int, embed_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, embed_dim, patch_size, patch_size)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, patches, C), row by row."""
        return self.proj(images).flatten(2).transpose(1, 2)


class Block(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)), with layer scale and stochastic depth if configured."""

    def __init__(self, config: ViTConfig, drop_path: float) -> None:
        super().__init__()
        c = config.embed_dim
        self.norm1 = nn.LayerNorm(c, eps=EPS)
        self.attn = SelfAttention(c, config.num_heads, config.dropout)
        self.ls1 = LayerScale(c, config.layer_scale) if config.layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(c, eps=EPS)
        self.mlp = MLPBlock(c, round(c * config.mlp_ratio), config.dropout)
        self.ls2 = LayerScale(c, config.layer_scale) if config.layer_scale else nn.Identity()
        self.drop_path = StochasticDepth(drop_path, "row") if drop_path else nn.Identity()

    def forward(self, x: Tensor, queries: int | None = None) -> Tensor:
        """(B, N, C) -> (B, N, C), or the first `queries` tokens of it."""
        normed = self.norm1(x)
        x = x[:, :queries] + self.drop_path(self.ls1(self.attn(normed, queries)))
        return x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))

    def attention_weights(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, heads, N, N)."""
        query, key, _ = self.attn.project(self.norm1(x))
        return attention_weights(query, key)


class SelfAttention(nn.Module):
    """Multi-head attention of tokens to each other, with queries, keys and values of one linear layer."""

    def __init__(self, embed_dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim)
        self.proj = nn.Linear(embed_dim, embed_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, queries: int | None = None) -> Tensor:
        """(B, N, C) -> (B, N, C), or the first `queries` tokens of it."""
        return self.join_heads(attend(*self.project(x, queries)))

    def join_heads(self, attended: Tensor) -> Tensor:
        """(B, heads, N, d) -> (B, N, C)."""
        return self.dropout(self.proj(attended.transpose(1, 2).flatten(2)))

    def project(self, x: Tensor, queries: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, heads, N or `queries`, d), keys and values (B, heads, N, d)."""
        if queries is None:
            q, k, v = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
            return q, k, v
        c = x.shape[-1]
        weight, bias = self.qkv.weight, self.qkv.bias
        q = F.linear(x[:, :queries], weight[:c], bias[:c]).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
        k, v = F.linear(x, weight[c:], bias[c:]).unflatten(2, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return q, k, v


class MLPBlock(nn.Module):
    """The MLP of an encoder block: two linear layers with the exact GELU between them (ViT, equation 3)."""

    def __init__(self, embed_dim: int, hidden_dim: int, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(embed_dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, embed_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.fc1(x)
        # In place if no gradient needs the input: new memory costs a CPU as much as the function.
        hidden = F.gelu(hidden) if torch.is_grad_enabled() else torch.ops.aten.gelu_(hidden)
        return self.dropout(self.fc2(self.dropout(hidden)))


class LayerScale(nn.Module):
    """A learnt factor for every channel (Touvron et al. 2021, CaiT)."""

    def __init__(self, channels: int, value: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((channels,), value))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


def fuse_logits(both: DistilledLogits, how: str) -> Tensor:
    """Combine the logits of two heads into (B, classes); `how`: see `ViTConfig.fuse`."""
    first, second = both
    if how == "class":
        return first
    if how == "distillation":
        return second
    if how == "logits":
        return (first + second) / 2
    # In logarithms: the mean of probabilities that are 0 in floats would be -inf.
    sums = torch.logaddexp(first.float().log_softmax(dim=-1), second.float().log_softmax(dim=-1))
    return (sums - math.log(2)).to(first.dtype)


def _drop_paths(config: ViTConfig) -> list[float]:
    if config.drop_path_rule == "constant" or config.depth == 1:
        return [config.drop_path] * config.depth
    return [config.drop_path * number / (config.depth - 1) for number in range(config.depth)]


# Width, heads and blocks.
