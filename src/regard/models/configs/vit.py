"""Settings of vision transformers (ViT, DeiT, DeiT III), and the named models."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from regard.config import check_choices
from regard.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """Settings of a vision transformer.

    num_classes: number of classes.
    image_size: side of the images that positions are learnt for, a multiple of `patch_size`; other sizes work too.
    patch_size: side of a patch in pixels.
    embed_dim, num_heads: width of a token, and attention heads.
    depth: blocks.
    mlp_ratio: width of the hidden layer over that of a token.
    distilled: whether there is a distillation token and a second head.
    fuse: output of a distilled model in evaluation: `logits`, the mean of both heads' logits (the authors'
        code); `probabilities`, the mean of their probabilities, as logarithms (the paper); `class` or `distillation`,
        one head.
    class_position: whether the class token has a position embedding (not in DeiT III).
    layer_scale: initial factor of each residual branch, learnt per channel; 0 for none.
    dropout: of tokens, after positions and in blocks.
    drop_path: stochastic depth: probability of dropping a residual branch, in the last block.
    drop_path_rule: `linear` rises to it from the first block on, `constant` has it in all (DeiT III).
    resize: interpolation of positions for another number of patches: `bicubic` as the authors, `antialiased` as timm.
    initial: standard deviation of random linear weights: `published`, 0.02; `fan_in`, input width to the power -0.5,
        with which narrow models learn far sooner.
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
            what = f"embed_dim={self.embed_dim} is not a multiple of num_heads={self.num_heads}"
            raise ConfigError(what, code="C05")
        if self.image_size % self.patch_size:
            near = round(self.image_size / self.patch_size) * self.patch_size or self.patch_size
            what = f"image_size={self.image_size} is not a multiple of patch_size={self.patch_size}"
            raise ConfigError(what, remedy=f"use image_size={near}", code="C04")
        if self.distilled and not self.class_position:
            raise ConfigError(
                "a distilled model has position embeddings of its tokens: class_position=true", code="C09"
            )


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
