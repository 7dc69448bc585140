"""`regard.load`: a model with weights from a name, a run, or a file of ours or of others."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

import torch
from torch import nn

from regard.config import apply_mapping, to_mapping
from regard.errors import CheckpointError, NewerVersionError
from regard.models.build import Model, build
from regard.models.catalog import WEIGHTS
from regard.models.configs import CONFIGS, FAMILIES, ClassifierConfig
from regard.models.vit import VisionTransformer
from regard.structures.categories import Category
from regard.training.checkpoints import newest_checkpoint, read_checkpoint
from regard.training.distributed import choose_device
from regard.weights.classifiers import load_classifier
from regard.weights.detr import load_file
from regard.weights.hub_folder import HubFolder, described, read_hub_folder, take_normalisation, weights_in
from regard.weights.packages import released_file
from regard.weights.source import check_source
from regard.weights.state_dict import load_exactly, read_weights
from regard.weights.vit import is_vit


def load(source: str | Path, *, model: str | None = None) -> Model:
    """A model with weights, in evaluation mode.

    Args:
        source: a run's folder (its best checkpoint), a checkpoint's folder, a weights file (`.pth` or `.safetensors`
            with the names of the DETR authors; for classifiers of torchvision; for vision transformers of the DeiT
            authors, of timm or of Hugging Face), a model's folder from the Hugging Face hub (its `config.json` and
            `preprocessor_config.json` tell the classes of a vision transformer and how images are normalised and
            cropped), or a name of `list_models()`, whose released weights are downloaded once.
        model: which model a file is for, where neither a released file's name nor its tensors can tell
            (`detr_resnet50_dc5`); convolutional classifiers need it. A vision transformer may be named that has
            another image size than the file: positions are resized, with a warning.

    Raises:
        CheckpointError: the file is not what it should be.
        ConfigError: no such name and no such file.
        MachineError: the weights have to be downloaded and cannot be.
    """
    path = Path(source)
    if path.is_dir():
        file = None if (path / "manifest.json").exists() else weights_in(path)
        return _load_folder(path) if file is None else _load_weights(file, model)
    if path.is_file() and (path.parent / "manifest.json").exists():
        remedy = f"name its folder: {path.parent}"
        raise CheckpointError("a part of a checkpoint", where=path, remedy=remedy, code="K06")
    if path.is_file() or path.suffix:
        return _load_weights(path, model)
    check_source(source)
    name = str(source)
    return _load_weights(released_file(WEIGHTS[name]), name)


@overload
def load_on(model: Model | str | Path, device: str = "auto") -> tuple[Model, torch.device]: ...


@overload
def load_on(model: nn.Module | str | Path, device: str = "auto") -> tuple[nn.Module, torch.device]: ...


def load_on(model: nn.Module | str | Path, device: str = "auto") -> tuple[nn.Module, torch.device]:
    """Return a model on its device, and the device. A model given by name or path is loaded.

    Args:
        model: a model, or what `load` takes.
        device: `cpu`, `cuda`, ...; `auto` leaves a model where it is and takes the best device for one that is loaded.

    Raises:
        ConfigError, MachineError: no such device (C10); see also `load`.
    """
    if isinstance(model, (str, Path)):
        place = choose_device(device)
        return load(model).to(place), place
    parameter = next(model.parameters(), None)
    place = choose_device(device) if parameter is None or device != "auto" else parameter.device
    return model.to(place), place


def _load_weights(path: Path, model: str | None) -> Model:
    name = model or next((name for name, weights in WEIGHTS.items() if weights.file_name == path.name), None)
    known = None if name is None else CONFIGS.get(name)
    if name is None or isinstance(known, ClassifierConfig):
        tensors = read_weights(path).tensors
        if known is not None or is_vit(tensors):
            folder = read_hub_folder(path)
            net = load_classifier(tensors, name, num_heads=folder.num_heads, where=path)
            return _as_described(net, folder, path) if isinstance(net, VisionTransformer) else net
    return load_file(path, model=name)


def _as_described(net: VisionTransformer, folder: HubFolder, path: Path) -> VisionTransformer:
    """The vision transformer of a file, with what stands beside the file."""
    if folder.normalisation is not None:
        take_normalisation(net, *folder.normalisation)
    elif net.card.name.startswith("vit_"):
        remedy = "beside its config.json or preprocessor_config.json, model.safetensors is loaded as they say"
        warnings.warn(
            f"{path}: images are normalised by ImageNet's mean and deviation, while Google's and timm's ViT weights "
            f"want 0.5; {remedy}",
            stacklevel=4,
        )
    net.card = described(net.card, folder)
    return net


def model_state(net: Model) -> dict[str, Any]:
    """What a checkpoint keeps beside the weights so that `load` can build the model again (JSON)."""
    card = net.card
    return {
        "model": card.name,
        "family": type(net.config).__name__,
        "config": to_mapping(net.config),
        "categories": [[c.id, c.name, c.is_thing] for c in card.categories],
        "sizes": [card.short_side, card.max_size],
        "crop_pct": card.crop_pct,
        "panoptic": card.panoptic,
    }


def best_checkpoint(run: Path) -> Path:
    """The checkpoint of a run that scored best; the newest if none was scored.

    Raises:
        CheckpointError: the folder is no run, or has no checkpoint yet.
    """
    folder = run / "checkpoints"
    newest = newest_checkpoint(folder) if folder.is_dir() else None
    if newest is None:
        raise CheckpointError(
            "no checkpoint in this folder", where=run, remedy="give a run made by regard train", code="K02"
        )
    step = read_checkpoint(newest, parts=[]).state["progress"]["best_step"]
    best = folder / f"step_{step}"
    return best if step is not None and best.is_dir() else newest


def _load_folder(path: Path) -> Model:
    if not (path / "manifest.json").exists():
        path = best_checkpoint(path)
    state = read_checkpoint(path, parts=[]).state
    has_average = (path / "ema.safetensors").exists()
    part = "ema" if has_average else "model"
    tensors = read_checkpoint(path, parts=[part]).tensors[part]
    kept = state["model_state"]
    if kept.get("family") not in FAMILIES:
        what = f"a model of the family {kept.get('family')!r:.60}, which this version does not know"
        raise NewerVersionError(what, where=path, remedy="upgrade: pip install -U regard", code="K19")
    config = apply_mapping(FAMILIES[kept["family"]], kept["config"], where=str(path))
    categories = [Category(*values) for values in kept["categories"]]
    net = build(config, kept["model"], categories, tuple(kept["sizes"]))
    panoptic = kept.get("panoptic", net.card.panoptic)
    net.card = replace(
        net.card, crop_pct=kept["crop_pct"] if "crop_pct" in kept else kept["crop_ratio"], panoptic=panoptic
    )
    load_exactly(net, tensors, where=path)
    return net.eval()
