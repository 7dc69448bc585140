"""Convert the weights of vision transformers from the names of the DeiT authors, timm and Hugging Face to ours.

The names of the tensors identify the format, and their shapes the settings. No model is built here.
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

from regard.errors import ArchitectureError, CheckpointError, counted
from regard.models.configs.vit import VIT_PRESETS, ViTConfig
from regard.models.vit import positions_at

# Tensors in every file of the DeiT authors and timm, and in every file of Hugging Face.
_BLOCK = "blocks.0.attn.qkv.weight"
_PATCHES = re.compile(r"(vit\.|deit\.)?embeddings\.patch_embeddings\.projection\.weight")

# (pattern in Hugging Face's names, our name), applied in this order. transformers writes the old names to files and has
# new ones in memory; both are known.
_HUGGING_FACE_NAMES = (
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

# Tensors from which the settings are inferred -> number of dimensions.
_REQUIRED_TENSORS = {
    "cls_token": 3,
    "pos_embed": 3,
    "patch_embed.proj.weight": 4,
    "blocks.0.mlp.fc1.weight": 2,
    "head.weight": 2,
}

# Inferred settings that are fixed after training, unlike the number of classes and the image size.
_FIXED_SETTINGS = ("patch_size", "embed_dim", "depth", "mlp_ratio", "distilled", "class_position")

# Width -> heads. The first are the so400m, giant, gigantic and enormous models, whose heads are wider than 64.
_HEADS_OF_WIDTH = dict.fromkeys((1152, 1408, 1664, 1792), 16)
_HEADS_OF_WIDTH |= {config.embed_dim: config.num_heads for config in VIT_PRESETS.values()}


class ViTFile(NamedTuple):
    """The model in a weights file.

    Attributes:
        name: the requested name, else that of the first preset with these settings, else `vit`.
        config: its settings, with the number of classes of the file.
        tensors: all tensors of the file under our names, adapted to `config`.
        notes: changes that the user should know, one sentence each.
        headless: whether the file has no class layer; the tensors then hold one of zeros, for one class.
    """

    name: str
    config: ViTConfig
    tensors: dict[str, Tensor]
    notes: list[str]
    headless: bool


def is_vit(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether the tensors are those of a vision transformer, by their names."""
    return ("patch_embed.proj.weight" in tensors and _BLOCK in tensors) or _is_hugging_face(tensors)


def read_vit(
    tensors: Mapping[str, Tensor], name: str | None = None, *, num_heads: int | None = None, where: str | Path
) -> ViTFile:
    """Identify the model in a weights file from the names and shapes of its tensors, and convert the tensors.

    The tensors do not show the number of heads. It is that of the named model, else `num_heads`, else that of the
    presets of this width, else width / 64. Position embeddings are assumed to be those of a square image. If the named
    model has another image size, they are resized as that model does.

    Hugging Face's DeiT with one classification layer (`DeiTForImageClassification`) predicts with this layer alone. The
    model does the same, and its second head is a copy. The tensors do not show the normalisation of images: see
    `regard.weights.hub_folder`.

    Args:
        tensors: name -> tensor, of the DeiT authors (DeiT, DeiT III), of timm or of Hugging Face (ViT, DeiT).
        name: one of `VIT_PRESETS`; inferred from the tensors if None.
        num_heads: number of attention heads, if known.
        where: the file, for errors.

    Raises:
        CheckpointError: not a vision transformer, or not the named one (K07); two tensors of one name (K10).
    """
    if name is not None and name not in VIT_PRESETS:
        what = f"weights of a vision transformer, but {name} is none"
        raise ArchitectureError(what, where=where, remedy="name the model that the file belongs to", code="K07")
    if not is_vit(tensors):
        first = next(iter(tensors), "none")[:100]
        what = f"no weights of a vision transformer ({len(tensors)} tensors, the first is {first!r})"
        raise ArchitectureError(what, where=where, remedy="name the model that the file belongs to", code="K07")
    found = _rename_tensors(tensors, where)
    headless = "head.weight" not in found
    if headless:
        found = _with_empty_head(found)
    notes: list[str] = []
    inferred = _infer_config(found, where)
    if name is None:
        name, config = _match_preset(inferred, num_heads, where)
    else:
        config = replace(VIT_PRESETS[name], num_classes=inferred.num_classes)
        _check_settings(inferred, config, name, where)
    if _is_hugging_face(tensors) and config.distilled and "head_dist.weight" not in found:
        config = replace(config, fuse="class")
        found |= {key.replace("head.", "head_dist."): found[key] for key in found if key.startswith("head.")}
        notes.append("no distillation head in the file: the class head predicts alone, the other is its copy")
    found, resized = fit_vit(found, inferred, config)
    return ViTFile(name, config, found, notes + resized, headless)


def _with_empty_head(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Add class layers of zeros for one class. Layers that a model without classes has in their place are dropped."""
    others = ("head", "head_dist", "pooler")
    found = {key: tensor for key, tensor in tensors.items() if key.partition(".")[0] not in others}
    width = tensors["patch_embed.proj.weight"].shape[:1] if "patch_embed.proj.weight" in tensors else (1,)
    for head in ("head", "head_dist") if "dist_token" in tensors else ("head",):
        found |= {f"{head}.weight": torch.zeros(1, *width), f"{head}.bias": torch.zeros(1)}
    return found


def fit_vit(tensors: Mapping[str, Tensor], source: ViTConfig, target: ViTConfig) -> tuple[dict[str, Tensor], list[str]]:
    """Adapt the tensors of a vision transformer to another image size, or to a model with or without distillation.

    The position embeddings of the patches are resized as `target.resize` says. From a plain to a distilled model, the
    class token, its position embedding and its head are duplicated; from a distilled to a plain model, those of the
    distillation token are dropped. All other tensors stay unchanged, whether or not they fit.

    Args:
        tensors: our name -> tensor, of a model with the settings `source`.
        source: settings of the model that the tensors belong to.
        target: settings of the model that they are adapted to.

    Returns:
        The tensors, and notes on the changes for the user.
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
        places = positions_at((new, new), places.float(), target)
        notes.append(f"positions of {old} x {old} patches resized to {new} x {new}")
    found["pos_embed"] = torch.cat((front.to(places.dtype), places), dim=1)
    return found, notes


def _is_hugging_face(tensors: Mapping[str, Tensor]) -> bool:
    return any(_PATCHES.fullmatch(key) for key in tensors)


def _rename_tensors(tensors: Mapping[str, Tensor], where: str | Path) -> dict[str, Tensor]:
    rename = _hugging_face_to_ours if _is_hugging_face(tensors) else _authors_to_ours
    found = {rename(key): tensor for key, tensor in tensors.items()}
    if len(found) != len(tensors):
        raise CheckpointError("two tensors have one name in our layout", where=where, code="K10")
    return _merge_qkv(found)


def _authors_to_ours(key: str) -> str:
    """Return our name of a tensor. timm's names are ours; only the authors' DeiT III differs."""
    return re.sub(r"^(blocks\.\d+)\.gamma_([12])$", r"\1.ls\2.gamma", key)


def _hugging_face_to_ours(key: str) -> str:
    for pattern, ours in _HUGGING_FACE_NAMES:
        key = re.sub(pattern, ours, key)
    return key


def _merge_qkv(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Concatenate the query, key and value layers to one layer. Incomplete ones stay; loading them reports it."""
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


def _infer_config(tensors: Mapping[str, Tensor], where: str | Path) -> ViTConfig:
    """Return the settings that the tensors show. They do not show the number of heads, which is set to 1."""
    for key, dimensions in _REQUIRED_TENSORS.items():
        if key not in tensors or tensors[key].ndim != dimensions or not tensors[key].numel():
            shape = f"has the shape {tuple(tensors[key].shape)}" if key in tensors else "is missing"
            raise ArchitectureError(f"not weights of a vision transformer: {key} {shape}", where=where, code="K07")
    width, patch = len(tensors["patch_embed.proj.weight"]), tensors["patch_embed.proj.weight"].shape[-1]
    front, rows = 2 if "dist_token" in tensors else 1, tensors["pos_embed"].shape[1]
    class_position = rows > front and isqrt(rows - front) ** 2 == rows - front
    if not class_position and (front == 2 or isqrt(rows) ** 2 != rows):
        what = f"{rows} rows of pos_embed are no square of patches behind {counted(front, 'token')}"
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


def _differences(inferred: ViTConfig, config: ViTConfig) -> list[str]:
    differing = [name for name in _FIXED_SETTINGS if getattr(inferred, name) != getattr(config, name)]
    return differing + (["layer_scale"] if bool(inferred.layer_scale) != bool(config.layer_scale) else [])


def _check_settings(inferred: ViTConfig, config: ViTConfig, name: str, where: str | Path) -> None:
    if differing := _differences(inferred, config):
        theirs, ours = (", ".join(f"{key}={getattr(c, key)}" for key in differing) for c in (inferred, config))
        what = f"weights of a vision transformer with {theirs}, but {name} has {ours}"
        raise ArchitectureError(what, where=where, remedy="name the model that the file belongs to", code="K07")


def _match_preset(inferred: ViTConfig, num_heads: int | None, where: str | Path) -> tuple[str, ViTConfig]:
    """Return the name and settings of the first preset that agrees in all but the classes; else those of `vit`."""
    for name, config in VIT_PRESETS.items():
        fits = config.image_size == inferred.image_size and num_heads in (None, config.num_heads)
        if fits and not _differences(inferred, config):
            return name, replace(config, num_classes=inferred.num_classes)
    if num_heads is not None:
        return "vit", replace(inferred, num_heads=num_heads)
    heads, rest = divmod(inferred.embed_dim, 64)
    if inferred.embed_dim not in _HEADS_OF_WIDTH and rest:
        what = f"a vision transformer of width {inferred.embed_dim}, and nothing in the file tells its attention heads"
        raise ArchitectureError(what, where=where, remedy="name the model, or the run's folder", code="K07")
    return "vit", replace(inferred, num_heads=_HEADS_OF_WIDTH.get(inferred.embed_dim, heads))
