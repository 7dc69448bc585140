"""`regard.load`: a model with weights, from a name, a run, or a weights file."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

import torch
from torch import nn

from regard.config import read_yaml
from regard.errors import ArchitectureError, CheckpointError, MachineError
from regard.models.build import Model, build
from regard.models.catalog import WEIGHTS
from regard.models.configs import CONFIGS, ClassifierConfig
from regard.models.configs.retinanet import RetinaNetConfig
from regard.models.detr import DETR
from regard.models.vit import VisionTransformer
from regard.structures.categories import Category
from regard.training.checkpoints import newest_checkpoint, read_checkpoint
from regard.training.distributed import choose_device
from regard.weights.class_names import name_classes
from regard.weights.classifiers import load_classifier
from regard.weights.detr import load_file
from regard.weights.hub_folder import HubFolder, find_weights, fold_normalisation, read_hub_folder, update_card
from regard.weights.model_state import config_of
from regard.weights.onnx_file import is_onnx, open_onnx, refuse_onnx
from regard.weights.packages import released_file
from regard.weights.retinanet import is_retinanet, load_retinanet
from regard.weights.source import EXAMPLE, check_source, example_model
from regard.weights.state_dict import load_exactly, read_weights
from regard.weights.vit import is_vit


def load(source: str | Path, *, model: str | None = None, classes: str | Path | Sequence[str] | None = None) -> Model:
    """Return a model with weights, in evaluation mode.

    Args:
        source: a run folder (its best checkpoint is loaded), a checkpoint folder, an `.onnx` file of `regard export`,
            which ONNX Runtime computes, a weights file, a model folder of the Hugging Face hub, `example`, a small
            detector that is part of this package, or a name of `list_models()`, whose released weights are downloaded
            once. A weights file is `.pth` or `.safetensors` with the tensor names of the DETR authors, of torchvision
            (convolutional classifiers, RetinaNet), or of the DeiT authors, timm or Hugging Face (vision transformers).
            The `config.json` and `preprocessor_config.json` of a hub folder give the classes, the normalisation and
            the crop of a vision transformer.
        model: the name of the model in a weights file, where neither the file name nor the tensors determine it
            (`detr_resnet50_dc5`). Convolutional classifiers always need it. It may name a vision transformer with
            another image size than the file: the position embeddings are resized, with a warning.
        classes: names of the classes, for files of other projects, which hold none: a text file with one name a line,
            or a list. A detector takes one name less than it has classes if its label 0 is unused (`name_classes`).

    Raises:
        CheckpointError: the file is missing, damaged, unsafe, or does not fit the model, or the number of names does
            not (K01 to K20).
        DataError: two classes have one name (A25).
        ConfigError: no model, run or file has this name, or the model has no released weights (K01).
        MachineError: the download failed.
    """
    net = _load(source, model, to_train=False)
    if classes is not None:
        name_classes(net, classes)
    return net


def load_to_train(source: str | Path, *, model: str | None = None) -> Model:
    """Return a model to start training from: as `load`, but a weights file may lack the class layer.

    The card of a model without class layer has no categories, so no row of that layer is copied (`transfer`).
    """
    return _load(source, model, to_train=True)


def _load(source: str | Path, model: str | None, *, to_train: bool) -> Model:
    path = Path(source)
    if str(source) == EXAMPLE and not path.exists():
        return _load_folder(example_model())
    if path.is_dir():
        file = None if (path / "manifest.json").exists() else find_weights(path)
        return _load_folder(path) if file is None else _load_weights(file, model, to_train)
    if path.is_file() and (path.parent / "manifest.json").exists():
        remedy = f"name its folder: {path.parent}"
        raise CheckpointError("a part of a checkpoint", where=path, remedy=remedy, code="K06")
    if path.is_file() or path.suffix:
        return _load_weights(path, model, to_train)
    check_source(source)
    name = str(source)
    return _load_weights(released_file(WEIGHTS[name]), name, to_train)


@overload
def load_on(model: Model | str | Path, device: str = "auto") -> tuple[Model, torch.device]: ...


@overload
def load_on(model: nn.Module | str | Path, device: str = "auto") -> tuple[nn.Module, torch.device]: ...


def load_on(model: nn.Module | str | Path, device: str = "auto") -> tuple[nn.Module, torch.device]:
    """Return a model on a device, and the device. A name or path is loaded first.

    Args:
        model: a model, or what `load` takes.
        device: `cpu`, `cuda`, ...; `auto` leaves a model where it is and takes the best device for one that is loaded.

    Raises:
        ConfigError, MachineError: no such device (C10); see also `load`.
    """
    if is_onnx(model):
        if choose_device("cpu" if device == "auto" else device).type != "cpu":
            remedy = "leave the device out, or take the run that the file was exported from"
            raise MachineError("ONNX files run on the CPU", where=f"device={device}", remedy=remedy, code="C10")
        return load(model) if isinstance(model, (str, Path)) else model, torch.device("cpu")
    if isinstance(model, (str, Path)):
        place = choose_device(device)
        return load(model).to(place), place
    parameter = next(model.parameters(), None)
    place = choose_device(device) if parameter is None or device != "auto" else parameter.device
    return model.to(place), place


def _load_weights(path: Path, model: str | None, to_train: bool) -> Model:
    if is_onnx(path):
        if to_train:
            refuse_onnx(path, "trained")
        return open_onnx(path)
    name = model or next((name for name, weights in WEIGHTS.items() if weights.file_name == path.name), None)
    known = None if name is None else CONFIGS.get(name)
    if name is None or isinstance(known, ClassifierConfig | RetinaNetConfig):
        tensors = read_weights(path).tensors
        if is_retinanet(tensors) and not isinstance(known, ClassifierConfig):
            return load_retinanet(tensors, path, model=name)
        if isinstance(known, ClassifierConfig) or (known is None and is_vit(tensors)):
            folder = read_hub_folder(path)
            net = load_classifier(tensors, name, num_heads=folder.num_heads, to_train=to_train, where=path)
            return _apply_folder(net, folder, path, model) if isinstance(net, VisionTransformer) else net
    return load_file(path, model=name, to_train=to_train)


def _apply_folder(net: VisionTransformer, folder: HubFolder, path: Path, model: str | None) -> VisionTransformer:
    """Return the vision transformer of a file with the settings of the JSON files next to it."""
    images = folder.preprocessing
    if images is not None:
        size, key = images.size
        if model is None and size not in (None, net.config.image_size):  # a named model may have another size
            what = f"{key} is {size}, but the tensors are for images of {net.config.image_size} pixels"
            raise ArchitectureError(what, where=path.parent, remedy="correct it in the JSON file", code="K07")
        fold_normalisation(net, images.mean, images.std)
    elif net.card.name.startswith("vit_"):
        remedy = "put its config.json or preprocessor_config.json next to model.safetensors"
        warnings.warn(
            f"{path}: images are normalised with ImageNet's mean and standard deviation, but Google's and timm's ViT "
            f"weights expect 0.5; {remedy}",
            stacklevel=5,
        )
    net.card = update_card(net.card, folder)
    return net


def best_checkpoint(run: Path) -> Path:
    """Return the checkpoint of a run with the best score; the newest if there is no score.

    Raises:
        CheckpointError: the folder has no intact checkpoint (K02).
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


def best_threshold_of(run: Path) -> float | None:
    """Return the score threshold that the last evaluation of a run found best, 0..1.

    None if there is none, or if that evaluation was on other data than the run's own.
    """
    return _fraction(_own_metrics(run).get("best_threshold"))


def _measure_of(metrics: dict[str, Any]) -> tuple[str, float] | None:
    """Return what is highest at the best threshold of an evaluation, F1 of boxes or PQ of segments, and its value."""
    stats = metrics.get("stats")
    known = {"F1": metrics.get("best_f1"), "PQ": stats.get("PQ") if isinstance(stats, dict) else None}
    return next(((name, value) for name, found in known.items() if (value := _fraction(found)) is not None), None)


def _own_metrics(run: Path) -> dict[str, Any]:
    """Return what the last evaluation of a run wrote; nothing if it was on other data than the run's own."""
    try:
        content = json.loads((run / "metrics.json").read_text())
        settings = run / "config.yaml"
        if settings.is_file() and not _is_same_folder(content["data"], read_yaml(settings)["data"]):
            return {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):  # no evaluation yet, or a file that was changed
        return {}
    return content if isinstance(content, dict) else {}


def _fraction(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and 0 <= value <= 1 else None


def _is_same_folder(one: str, other: str) -> bool:
    return one == other or Path(one).resolve() == Path(other).resolve()


def _load_folder(path: Path) -> Model:
    metrics: dict[str, Any] = {}
    if not (path / "manifest.json").exists():
        metrics = _own_metrics(path)
        path = best_checkpoint(path)
    threshold = _fraction(metrics.get("best_threshold"))
    state = read_checkpoint(path, parts=[]).state
    has_average = (path / "ema.safetensors").exists()
    part = "ema" if has_average else "model"
    tensors = read_checkpoint(path, parts=[part]).tensors[part]
    kept = state["model_state"]
    config = config_of(kept, path)
    categories = [Category(*values) for values in kept["categories"]]
    net = build(config, kept["model"], categories, tuple(kept["sizes"]))
    panoptic = kept.get("panoptic", net.card.panoptic)
    crop_pct = kept["crop_pct"] if "crop_pct" in kept else kept["crop_ratio"]
    resize = kept.get("resize", {})
    net.card = replace(net.card, crop_pct=crop_pct, panoptic=panoptic, **resize)
    if threshold is not None:
        net.card = replace(net.card, threshold=threshold, threshold_measure=_measure_of(metrics))
    if isinstance(net, DETR):  # of the training: timm's numbers may have changed since
        net.backbone.normalization = kept.get("normalization")
    load_exactly(net, tensors, where=path)
    return net.eval()
