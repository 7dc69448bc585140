"""Read the settings in a model folder of the Hugging Face hub: preparation of images, class names and heads.

timm writes `config.json` with `pretrained_cfg`; transformers writes `config.json` and `preprocessor_config.json`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from regard.errors import ArchitectureError, CheckpointError
from regard.models.vit import VisionTransformer
from regard.structures.categories import Category, ModelCard
from regard.structures.image_batch import IMAGENET_MEAN, IMAGENET_STD
from regard.weights.preprocessing import Preprocessing, of_timm, of_transformers

FILES = ("model.safetensors", "pytorch_model.bin")  # names of weights files on the hub


class HubFolder(NamedTuple):
    """The settings in the JSON files of a model folder; None where a file does not state one.

    Attributes:
        preprocessing: how images are prepared.
        names: class names in the order of the outputs.
        num_heads: number of attention heads, which the tensors do not show.
    """

    preprocessing: Preprocessing | None
    names: list[str] | None
    num_heads: int | None


def find_weights(folder: Path) -> Path | None:
    """Return the weights file of a hub folder, or None."""
    return next((folder / name for name in FILES if (folder / name).is_file()), None)


def read_hub_folder(weights: Path) -> HubFolder:
    """Return the settings in the JSON files next to a weights file; none unless it has one of the names in `FILES`.

    Args:
        weights: the weights file.

    Raises:
        CheckpointError: not a JSON object, a value out of range (K06), or something that is not followed (K07): an
            activation other than GELU, or a way to prepare images (the key is named).
    """
    if weights.name not in FILES:
        return HubFolder(None, None, None)
    config, images = (_read(weights.parent / name) for name in ("config.json", "preprocessor_config.json"))
    arguments = config.get("model_args")
    heads = config.get("num_attention_heads", arguments.get("num_heads") if isinstance(arguments, dict) else None)
    heads = heads if type(heads) is int and heads > 0 else None
    if config.get("hidden_act", "gelu") != "gelu":
        what = f"a model with hidden_act {config['hidden_act']!r:.30}, not gelu"
        raise ArchitectureError(what, where=weights.parent / "config.json", code="K07")
    timm = config.get("pretrained_cfg", config if "architecture" in config else None)  # old files have one level
    if isinstance(timm, dict):
        return HubFolder(of_timm(timm, weights.parent / "config.json"), _names(config), heads)
    where = weights.parent / "preprocessor_config.json"
    return HubFolder(of_transformers(images, where) if where.is_file() else None, _names(config), heads)


def update_card(card: ModelCard, folder: HubFolder) -> ModelCard:
    """Return the card with the class names, the resize and the crop of the folder."""
    if folder.names is not None and len(folder.names) == len(card.categories):
        card = replace(card, categories=tuple(Category(i, name) for i, name in enumerate(folder.names)))
    if folder.preprocessing is None:
        return card
    _, _, _, crop_pct, squash, interpolation, rounding = folder.preprocessing
    return replace(card, crop_pct=crop_pct, squash=squash, interpolation=interpolation, crop_rounding=rounding)


@torch.no_grad()
def fold_normalisation(net: VisionTransformer, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """Fold the normalisation of the training images into the patch embedding of a vision transformer, in place.

    All models of this library get images normalised with ImageNet's mean m and standard deviation s. The patch
    embedding is linear and has no padding, so the change is exact: with u = (x - m) / s and v = (x - mean) / std,
    W v + b = W' u + b' where W' = W s / std and b' = b + sum(W (m - mean) / std).

    Args:
        net: a vision transformer that was trained with `mean` and `std`.
        mean: mean of red, green and blue, 0..1.
        std: standard deviation of red, green and blue, 0..1.
    """
    our_mean, our_std, their_mean, their_std = (
        torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD, mean, std)
    )
    weight, bias = net.patch_embed.proj.weight, net.patch_embed.proj.bias
    assert bias is not None
    shift = (weight.double() * ((our_mean - their_mean) / their_std)).sum(dim=(1, 2, 3))
    bias.copy_(bias.double() + shift)
    weight.copy_(weight.double() * (our_std / their_std))


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:  # invalid UTF-8 is a ValueError too
        raise CheckpointError("no JSON", where=path, remedy="download it again", code="K06") from error
    if not isinstance(content, dict):
        raise CheckpointError("no JSON object", where=path, remedy="download it again", code="K06")
    return content


def _names(config: Mapping[str, Any]) -> list[str] | None:
    """Return the class names; None if there are none or if they are ImageNet's, for which we use torchvision's."""
    listed, by_number = config.get("label_names"), config.get("id2label")
    if isinstance(listed, list) and len(listed) != 1000:
        return [str(name) for name in listed]
    if not isinstance(by_number, dict) or set(by_number) != {str(i) for i in range(len(by_number))}:
        return None
    names = [str(by_number[str(i)]) for i in range(len(by_number))]
    placeholders = names == [f"LABEL_{i}" for i in range(len(names))]
    imagenet = len(names) == 1000 and names[0].startswith("tench")
    return None if placeholders or imagenet else names
