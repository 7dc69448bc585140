"""Vision transformers: ViT, DeiT with its distillation token, and DeiT III.

An image is cut into patches, each a token; a class token, and in distilled models a distillation token, gather what the
image shows. Sources: Dosovitskiy et al. 2021, section 3; Touvron et al. 2021 (DeiT), sections 4 and 5; Touvron et al.
2022 (DeiT III), section 3; numbers and names of parameters as in the authors' models.py and models_v2.py and in timm,
whose files fit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from regard.attention import attend, attention_weights, resize_positions
from regard.config import check_choices
from regard.errors import ConfigError
from regard.structures.categories import ModelCard
from regard.structures.outputs import DistilledLogits

EPS = 1e-6  # of layer normalisation


@dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """Settings of a vision transformer.

    num_classes: classes.
    image_size: side of the images that positions are learnt for, a multiple of `patch_size`; others work as well.
    patch_size: side of a patch in pixels.
    embed_dim, num_heads: width of a token, and attention heads.
    depth: blocks.
    mlp_ratio: width of the hidden layer over that of a token.
    distilled: with a distillation token and a second head.
    fuse: what a distilled model gives outside of training: `logits`, the mean of both heads' logits (the authors'
        code); `probabilities`, the mean of their probabilities, as logarithms (the paper); `class` or `distillation`,
        one head.
    class_position: the class token has a position embedding too (not in DeiT III).
    layer_scale: initial factor of each residual branch, learnt per channel; 0 for none.
    dropout: of tokens, after positions and in blocks.
    drop_path: probability with which a residual branch is left out of an image, of the last block.
    drop_path_rule: `linear` rises to it from the first block on, `constant` has it in all (DeiT III).
    resize: how positions are made for another number of patches: `bicubic` as the authors do, or `antialiased` as timm.
    initial: deviation of random linear weights: `published`, 0.02 everywhere; `fan_in`, the width of the input to the
        power -0.5, with which narrow models learn far sooner.
    """

    num_classes: int = 1000
    image_size: int = 224
    patch_size: int = 16
    embed_dim: int = 768
    num_heads: int = 12
    depth: int = 12
    mlp_ratio: float = 4.0
    distilled: bool = False
    fuse: Literal["logits", "probabilities", "class", "distillation"] = "logits"
    class_position: bool = True
    layer_scale: float = 0.0
    dropout: float = 0.0
    drop_path: float = 0.0
    drop_path_rule: Literal["linear", "constant"] = "linear"
    resize: Literal["bicubic", "antialiased"] = "bicubic"
    initial: Literal["published", "fan_in"] = "published"

    def __post_init__(self) -> None:
        check_choices(self)
        least = {"num_classes": 1, "image_size": 1, "patch_size": 1, "embed_dim": 1, "num_heads": 1, "depth": 1}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ConfigError(f"{name}={getattr(self, name)}, expected at least {low}", code="C03")
        if not 1 / self.embed_dim <= self.mlp_ratio < math.inf or not 0 <= self.layer_scale < math.inf:
            what = f"mlp_ratio={self.mlp_ratio} and layer_scale={self.layer_scale}, expected more than 0 and at least 0"
            raise ConfigError(what, code="C03")
        for name in ("dropout", "drop_path"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}, expected 0 to less than 1", code="C03")
        if self.embed_dim % self.num_heads:
            what = f"embed_dim={self.embed_dim} is no multiple of num_heads={self.num_heads}"
            raise ConfigError(what, code="C05")
        if self.image_size % self.patch_size:
            near = round(self.image_size / self.patch_size) * self.patch_size or self.patch_size
            what = f"image_size={self.image_size} is no multiple of patch_size={self.patch_size}"
            raise ConfigError(what, remedy=f"use image_size={near}", code="C04")
        if self.distilled and not self.class_position:
            raise ConfigError(
                "a distilled model has position embeddings of its tokens: class_position=true", code="C09"
            )


class VisionTransformer(nn.Module):
    """Patches -> tokens -> blocks of attention -> classes. Parameters have the authors' and timm's names.

    `no_weight_decay`: parameters that the authors' recipes do not decay, beside biases and normalisation.
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
            ConfigError: H or W is no multiple of the patch (C04).
        """
        tokens = self._embed(images)
        for block in self.blocks[:-1]:
            tokens = block(tokens)
        # Of the last block only the tokens that are read are computed; they attend to all.
        return self.classify(self.blocks[-1](tokens, queries=self.num_tokens))

    def classify(self, tokens: Tensor) -> Tensor | DistilledLogits:
        """Tokens after the last block (B, N, C) -> what `forward` gives. Of the patches none is read."""
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
        """Attention weights of each block, computed beside the fused ones: (B, heads, N, N), rows sum to 1.

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
        # Each for itself: gradients of parts of one tensor would not lie as DistributedDataParallel wants them.
        given = [token for token in (self.cls_token, self.dist_token) if token is not None]
        front = [token.expand(images.shape[0], -1, -1) for token in given]
        if self.config.class_position:
            return self.dropout(torch.cat((*front, patches), dim=1) + positions)
        return torch.cat((*front, self.dropout(patches + positions)), dim=1)

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        """Position embeddings for a grid of patches; those of the tokens in front stay as they are."""
        count = self.num_tokens if self.config.class_position else 0
        side = self.config.image_size // self.config.patch_size
        if grid == (side, side):
            return self.pos_embed
        front, places = self.pos_embed[:, :count], self.pos_embed[:, count:]
        places = resize_positions(places, (side, side), grid, antialias=self.config.resize == "antialiased")
        return torch.cat((front, places), dim=1)


class PatchEmbedding(nn.Module):
    """A linear layer on the pixels of each patch, kept as the convolution that it is."""

    def __init__(self, patch_size: int, embed_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, embed_dim, patch_size, patch_size)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, patches, C), row by row."""
        return self.proj(images).flatten(2).transpose(1, 2)


class Block(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)); each branch scaled and left out at times, where asked for."""

    def __init__(self, config: ViTConfig, drop_path: float) -> None:
        super().__init__()
        c = config.embed_dim
        self.norm1 = nn.LayerNorm(c, eps=EPS)
        self.attn = SelfAttention(c, config.num_heads, config.dropout)
        self.ls1 = LayerScale(c, config.layer_scale) if config.layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(c, eps=EPS)
        self.mlp = MLP(c, round(c * config.mlp_ratio), config.dropout)
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


class MLP(nn.Module):
    """Two linear layers with the exact GELU between them."""

    def __init__(self, embed_dim: int, hidden_dim: int, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(embed_dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, embed_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.fc1(x)
        # Where no gradient needs its input, in its place: fresh memory costs a CPU as much as the function.
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
    """One prediction (B, classes) of two heads; `how`: see `ViTConfig.fuse`."""
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
_SIZES = {
    "tiny": (192, 3, 12), "small": (384, 6, 12), "medium": (512, 8, 12), "base": (768, 12, 12),
    "large": (1024, 16, 24), "huge": (1280, 16, 32),
}  # fmt: skip


def _sized(size: str, patch: int, image: int) -> ViTConfig:
    width, heads, depth = _SIZES[size]
    return ViTConfig(embed_dim=width, num_heads=heads, depth=depth, patch_size=patch, image_size=image)


VIT_PRESETS: dict[str, ViTConfig] = {}
for _size, _patch, _image in (
    ("tiny", 16, 224), ("tiny", 16, 384), ("small", 16, 224), ("small", 16, 384), ("small", 32, 224),
    ("small", 32, 384), ("base", 16, 224), ("base", 16, 384), ("base", 32, 224), ("base", 32, 384),
    ("large", 16, 224), ("large", 16, 384), ("large", 32, 224), ("large", 32, 384), ("huge", 14, 224),
):  # fmt: skip
    VIT_PRESETS[f"vit_{_size}_patch{_patch}_{_image}"] = _sized(_size, _patch, _image)
for _size, _image in (("tiny", 224), ("small", 224), ("base", 224), ("base", 384)):
    _config = _sized(_size, 16, _image)
    VIT_PRESETS[f"deit_{_size}_patch16_{_image}"] = _config
    VIT_PRESETS[f"deit_{_size}_distilled_patch16_{_image}"] = replace(_config, distilled=True)
for _size, _patch, _image in (
    ("small", 16, 224), ("small", 16, 384), ("medium", 16, 224), ("base", 16, 224), ("base", 16, 384),
    ("large", 16, 224), ("large", 16, 384), ("huge", 14, 224),
):  # fmt: skip
    VIT_PRESETS[f"deit3_{_size}_patch{_patch}_{_image}"] = replace(
        _sized(_size, _patch, _image), class_position=False, layer_scale=1e-4, drop_path_rule="constant"
    )
# For images of 32 pixels, to be trained in minutes on a CPU.
_config = ViTConfig(
    num_classes=10, image_size=32, patch_size=4, embed_dim=64, num_heads=2, depth=4, initial="fan_in"
)  # fmt: skip
VIT_PRESETS["deit_nano_patch4_32"] = _config
VIT_PRESETS["deit_nano_distilled_patch4_32"] = replace(_config, distilled=True)
