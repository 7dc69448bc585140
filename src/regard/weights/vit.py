"""Weights of vision transformers under other people's names: the DeiT authors', timm's and Hugging Face's.

The names of the tensors tell the files apart, and their shapes show the settings. Nothing is loaded here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from math import isqrt
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from regard.attention import resize_positions
from regard.errors import ArchitectureError, CheckpointError
from regard.models.configs.vit import VIT_PRESETS, ViTConfig

# What stands in every such file: of the authors and timm, and of Hugging Face.
_BLOCK = "blocks.0.attn.qkv.weight"
_PATCHES = re.compile(r"(vit\.|deit\.)?embeddings\.patch_embeddings\.projection\.weight")

# Hugging Face's parts of names -> ours, in this order: its old names, which it still writes to files, and its new ones.
_PARTS = (
    (r"^(vit|deit)\.", ""),
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.distillation_token$", "dist_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^layernorm\.", "norm."),
    (r"^(cls_)?classifier\.", "head."),
    (r"^distillation_classifier\.", "head_dist."),
    (r"^(encoder\.layer|layers)\.(\d+)\.", r"blocks.\2."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.(attention\.query|q_proj)\.", ".attn.q."),
    (r"\.attention\.(attention\.key|k_proj)\.", ".attn.k."),
    (r"\.attention\.(attention\.value|v_proj)\.", ".attn.v."),
    (r"\.attention\.(output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
)

# Tensors that show the settings, with their number of dimensions.
_SHOWING = {
    "cls_token": 3,
    "pos_embed": 3,
    "patch_embed.proj.weight": 4,
    "blocks.0.mlp.fc1.weight": 2,
    "head.weight": 2,
}

# Settings that tensors show and that nobody can change after training, unlike the classes and the image size.
_SHOWN = ("patch_size", "embed_dim", "depth", "mlp_ratio", "distilled", "class_position")

# Beside the presets: the widths of so400m, giant, gigantic and enormous models, whose heads are wider than 64.
_HEADS_OF_WIDTH = dict.fromkeys((1152, 1408, 1664, 1792), 16)
_HEADS_OF_WIDTH |= {config.embed_dim: config.num_heads for config in VIT_PRESETS.values()}


class ViTFile(NamedTuple):
    """What a file is.

    Attributes:
        name: of the model: the one that was asked for, else the first preset of these settings, else `vit`.
        config: its settings, with the file's number of classes.
        tensors: all the file has, under our names, fitted to `config`.
        notes: what the user has to know.
    """

    name: str
    config: ViTConfig
    tensors: dict[str, Tensor]
    notes: list[str]


def is_vit(tensors: Mapping[str, Tensor]) -> bool:
    """Whether these are the names of a vision transformer's tensors."""
    return ("patch_embed.proj.weight" in tensors and _BLOCK in tensors) or _of_hugging_face(tensors)


def read_vit(
    tensors: Mapping[str, Tensor], name: str | None = None, *, num_heads: int | None = None, where: str | Path
) -> ViTFile:
    """What the tensors of a file are, from their names and shapes.

    Heads leave no trace: they are the named model's, else `num_heads`, else those of the presets of this width, else
    width / 64. Positions are taken for those of a square image where their number is a square. The
    positions of a file for another image size than the named model's are resized by the rule of that model. A DeiT of
    Hugging Face with one classifying layer (`DeiTForImageClassification`) predicts with it alone, as there; the second
    head becomes its copy. How images are normalised no tensor says: see `regard.weights.hub_folder`.

    Args:
        tensors: of the DeiT authors (DeiT, DeiT III), of timm or of Hugging Face (ViT, DeiT).
        name: one of `VIT_PRESETS`; read off the tensors if None.
        num_heads: if something beside the file tells it.
        where: the file, for errors.

    Raises:
        CheckpointError: no classifying vision transformer, or not the named one (K07); two tensors of one name (K10).
    """
    if name is not None and name not in VIT_PRESETS:
        what = f"weights of a vision transformer, but {name} is none"
        raise ArchitectureError(what, where=where, remedy="name the model that the file belongs to", code="K07")
    if not is_vit(tensors):
        first = next(iter(tensors), "none")[:100]
        what = f"no weights of a vision transformer ({len(tensors)} tensors, the first is {first!r})"
        raise ArchitectureError(what, where=where, remedy="name the model that the file belongs to", code="K07")
    found = _our_names(tensors, where)
    notes: list[str] = []
    shown = _shown_by(found, where)
    if name is None:
        name, config = _preset_of(shown, num_heads, where)
    else:
        config = replace(VIT_PRESETS[name], num_classes=shown.num_classes)
        _check_same(shown, config, name, where)
    if _of_hugging_face(tensors) and config.distilled and "head_dist.weight" not in found:
        config = replace(config, fuse="class")
        found |= {key.replace("head.", "head_dist."): found[key] for key in found if key.startswith("head.")}
        notes.append("no distillation head in the file: the class head predicts alone, the other is its copy")
    found, resized = fit_vit(found, shown, config)
    return ViTFile(name, config, found, notes + resized)


def fit_vit(tensors: Mapping[str, Tensor], source: ViTConfig, target: ViTConfig) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors of one vision transformer for another one with other tokens or another image size, and what was done.

    Positions of patches are resized by the target's rule. A plain model gives its class token, that token's position
    and its head to a distilled one twice; a distilled one leaves its second ones out. What else differs stays as it is.

    Args:
        tensors: of a model of `source`, under our names.
    """
    found, notes = dict(tensors), list[str]()
    if source.class_position != target.class_position:
        return found, notes
    positioned = (2 if source.distilled else 1) if source.class_position else 0
    front, places = found["pos_embed"][:, :positioned], found["pos_embed"][:, positioned:]
    if target.distilled and not source.distilled:
        front = torch.cat((front, front), dim=1)
        found["dist_token"] = found["cls_token"]
        found |= {f"head_dist.{part}": found[f"head.{part}"] for part in ("weight", "bias")}
        notes.append("distillation token and head from those of the class")
    elif source.distilled and not target.distilled:
        front = front[:, :1]
        found = {key: value for key, value in found.items() if key.partition(".")[0] not in ("dist_token", "head_dist")}
        notes.append("without the distillation token and head")
    old, new = (config.image_size // config.patch_size for config in (source, target))
    if old != new:
        antialias = target.resize == "antialiased"
        places = resize_positions(places.float(), (old, old), (new, new), antialias=antialias)
        notes.append(f"positions of {old} x {old} patches resized to {new} x {new}")
    found["pos_embed"] = torch.cat((front.to(places.dtype), places), dim=1)
    return found, notes


def _of_hugging_face(tensors: Mapping[str, Tensor]) -> bool:
    return any(_PATCHES.fullmatch(key) for key in tensors)


def _our_names(tensors: Mapping[str, Tensor], where: str | Path) -> dict[str, Tensor]:
    rename = _hugging_face_to_ours if _of_hugging_face(tensors) else _authors_to_ours
    found = {rename(key): tensor for key, tensor in tensors.items()}
    if len(found) != len(tensors):
        raise CheckpointError("two tensors have one name in our layout", where=where, code="K10")
    return _merged(found)


def _authors_to_ours(key: str) -> str:
    """timm's names are ours; only the authors' DeiT III has others."""
    return re.sub(r"^(blocks\.\d+)\.gamma_([12])$", r"\1.ls\2.gamma", key)


def _hugging_face_to_ours(key: str) -> str:
    for pattern, ours in _PARTS:
        key = re.sub(pattern, ours, key)
    return key


def _merged(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Queries, keys and values of one layer each -> one layer. Incomplete ones stay, to be told of when loaded."""
    found = dict(tensors)
    for key, query in tensors.items():
        if re.fullmatch(r"blocks\.\d+\.attn\.q\.(weight|bias)", key) and query.ndim:
            parts = [tensors.get(key.replace(".attn.q.", f".attn.{part}.")) for part in "qkv"]
            alike = [part for part in parts if part is not None and _kind(part) == _kind(query)]
            merged = key.replace(".attn.q.", ".attn.qkv.")
            if len(alike) == 3 and merged not in tensors:
                for part in "qkv":
                    del found[key.replace(".attn.q.", f".attn.{part}.")]
                found[merged] = torch.cat(alike)
    return found


def _kind(tensor: Tensor) -> tuple[torch.Size, torch.dtype]:
    return tensor.shape, tensor.dtype


def _shown_by(tensors: Mapping[str, Tensor], where: str | Path) -> ViTConfig:
    """The settings that tensors show. Heads do not show: one is given."""
    if "head.weight" not in tensors:
        what = "weights of a vision transformer without a classifying layer"
        raise ArchitectureError(what, where=where, remedy="give the file of a classifier", code="K07")
    for key, dimensions in _SHOWING.items():
        if key not in tensors or tensors[key].ndim != dimensions or not tensors[key].numel():
            shape = f"has the shape {tuple(tensors[key].shape)}" if key in tensors else "is missing"
            raise ArchitectureError(f"not weights of a vision transformer: {key} {shape}", where=where, code="K07")
    width, patch = len(tensors["patch_embed.proj.weight"]), tensors["patch_embed.proj.weight"].shape[-1]
    front, rows = 2 if "dist_token" in tensors else 1, tensors["pos_embed"].shape[1]
    class_position = rows > front and isqrt(rows - front) ** 2 == rows - front
    if not class_position and (front == 2 or isqrt(rows) ** 2 != rows):
        what = f"{rows} rows of pos_embed are no square of patches behind {front} token{'s' * (front - 1)}"
        raise ArchitectureError(what, where=where, remedy="only positions of square images are known", code="K07")
    depth = len({match[1] for key in tensors if (match := re.match(r"blocks\.(\d+)\.", key))})
    return ViTConfig(
        num_classes=len(tensors["head.weight"]),
        image_size=patch * isqrt(rows - front if class_position else rows),
        patch_size=patch,
        embed_dim=width,
        num_heads=1,
        depth=depth,
        mlp_ratio=len(tensors["blocks.0.mlp.fc1.weight"]) / width,
        distilled=front == 2,
        class_position=class_position,
        layer_scale=1e-4 if "blocks.0.ls1.gamma" in tensors else 0.0,
    )


def _differences(shown: ViTConfig, config: ViTConfig) -> list[str]:
    differing = [name for name in _SHOWN if getattr(shown, name) != getattr(config, name)]
    return differing + (["layer_scale"] if bool(shown.layer_scale) != bool(config.layer_scale) else [])


def _check_same(shown: ViTConfig, config: ViTConfig, name: str, where: str | Path) -> None:
    if differing := _differences(shown, config):
        theirs, ours = (", ".join(f"{key}={getattr(c, key)}" for key in differing) for c in (shown, config))
        what = f"weights of a vision transformer with {theirs}, but {name} has {ours}"
        raise ArchitectureError(what, where=where, remedy="name the model that the file belongs to", code="K07")


def _preset_of(shown: ViTConfig, num_heads: int | None, where: str | Path) -> tuple[str, ViTConfig]:
    """The first named model of these settings, apart from the number of classes; else `vit`."""
    for name, config in VIT_PRESETS.items():
        fits = config.image_size == shown.image_size and num_heads in (None, config.num_heads)
        if fits and not _differences(shown, config):
            return name, replace(config, num_classes=shown.num_classes)
    if num_heads is not None:
        return "vit", replace(shown, num_heads=num_heads)
    heads, rest = divmod(shown.embed_dim, 64)
    if shown.embed_dim not in _HEADS_OF_WIDTH and rest:
        what = f"a vision transformer of width {shown.embed_dim}, and nothing in the file tells its attention heads"
        raise ArchitectureError(what, where=where, remedy="name the model, or the run's folder", code="K07")
    return "vit", replace(shown, num_heads=_HEADS_OF_WIDTH.get(shown.embed_dim, heads))
