"""Read the settings in a model folder of the Hugging Face hub: normalisation, crop, class names and heads.

timm writes `config.json` with `pretrained_cfg`; transformers writes `config.json` and `preprocessor_config.json`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

import torch

from regard.errors import ArchitectureError, CheckpointError
from regard.models.vit import VisionTransformer
from regard.structures.categories import Category, ModelCard
from regard.structures.image_batch import IMAGENET_MEAN, IMAGENET_STD

FILES = ("model.safetensors", "pytorch_model.bin")  # names of weights files on the hub


class HubFolder(NamedTuple):
    """The settings in the JSON files of a model folder; None where a file does not state one.

    Attributes:
        normalisation: mean and standard deviation of red, green and blue, for pixel values 0..1.
        crop_pct: (ratio,) as in `ModelCard.crop_pct`.
        names: class names in the order of the outputs.
        num_heads: number of attention heads, which the tensors do not show.
    """

    normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None
    crop_pct: tuple[float | None] | None
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
        CheckpointError: not a JSON object, a value out of range (K06), or an activation other than GELU (K07).
    """
    if weights.name not in FILES:
        return HubFolder(None, None, None, None)
    config, images = (_read(weights.parent / name) for name in ("config.json", "preprocessor_config.json"))
    arguments = config.get("model_args")
    heads = config.get("num_attention_heads", arguments.get("num_heads") if isinstance(arguments, dict) else None)
    heads = heads if type(heads) is int and heads > 0 else None
    if config.get("hidden_act", "gelu") != "gelu":
        what = f"a model with hidden_act {config['hidden_act']!r:.30}, not gelu"
        raise ArchitectureError(what, where=weights.parent / "config.json", code="K07")
    timm = config.get("pretrained_cfg")
    if isinstance(timm, dict):
        mean, std, crop = timm.get("mean"), timm.get("std"), timm.get("crop_pct")
        ratio = (float(crop),) if isinstance(crop, (int, float)) and 0 < crop <= 1 else None
        return HubFolder(_normalisation(mean, std, weights.parent / "config.json"), ratio, _names(config), heads)
    where = weights.parent / "preprocessor_config.json"
    whole = images.get("do_resize", False) and not images.get("do_center_crop", False)
    normalisation = _normalisation(images.get("image_mean"), images.get("image_std"), where)
    return HubFolder(normalisation, (None,) if whole else None, _names(config), heads)


def update_card(card: ModelCard, folder: HubFolder) -> ModelCard:
    """Return the card with the class names and the crop of the folder."""
    if folder.names is not None and len(folder.names) == len(card.categories):
        card = replace(card, categories=tuple(Category(i, name) for i, name in enumerate(folder.names)))
    return card if folder.crop_pct is None else replace(card, crop_pct=folder.crop_pct[0])


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
    except (OSError, ValueError) as error:  # invalid UTF-8 is a ValueError too
        raise CheckpointError("no JSON", where=path, remedy="download it again", code="K06") from error
    if not isinstance(content, dict):
        raise CheckpointError("no JSON object", where=path, remedy="download it again", code="K06")
    return content


def _normalisation(mean: Any, std: Any, where: Path) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    if mean is None and std is None:
        return None
    for values, least in ((mean, -1e3), (std, 1e-6)):
        right = isinstance(values, list) and len(values) == 3
        if not right or not all(isinstance(v, (int, float)) and isfinite(v) and v >= least for v in values):
            what = f"mean {mean!r:.60} and deviation {std!r:.60}, expected three numbers each"
            raise CheckpointError(what, where=where, remedy="download it again", code="K06")
    return tuple(map(float, mean)), tuple(map(float, std))


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
