"""`regard.load`: a model with weights from a name, a run, or a file of ours or of others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from regard.categories import Category
from regard.config import apply_mapping, to_mapping, unknown_name
from regard.errors import CheckpointError, ConfigError
from regard.models.catalog import WEIGHTS, Detector, build, list_models
from regard.models.detr import DETRConfig
from regard.models.download import download
from regard.models.files import load_exactly
from regard.models.weights import load_file
from regard.training.checkpoints import newest_checkpoint, read_checkpoint


def load(source: str | Path, *, model: str | None = None) -> Detector:
    """A model with weights, in evaluation mode.

    Args:
        source: a run's folder (its best checkpoint), a checkpoint's folder, a weights file (the DETR authors' `.pth`,
            or `.safetensors`), or a name of `list_models()`, whose released weights are downloaded once.
        model: which model a file is for, where the names of its tensors cannot tell (`detr_resnet50_dc5`).

    Raises:
        CheckpointError: the file is not what it should be.
        ConfigError: no such name and no such file.
        MachineError: the weights have to be downloaded and cannot be.
    """
    path = Path(source)
    if path.is_dir():
        return _load_folder(path)
    if path.is_file() and (path.parent / "manifest.json").exists():
        remedy = f"name its folder: {path.parent}"
        raise CheckpointError("a part of a checkpoint", where=path, remedy=remedy, code="K06")
    if path.is_file() or path.suffix:
        return load_file(path, model=model)
    name = str(source)
    if name not in list_models():
        raise unknown_name("model, run or file", name, list_models(), code="K01")
    if name not in WEIGHTS:
        raise ConfigError(
            f"there are no released weights of {name}",
            remedy=f"train it: regard train {name} --data DIR",
            code="K01",
        )
    weights = WEIGHTS[name]
    return load_file(download(weights.url, sha256_prefix=weights.sha256_prefix), model=name)


def model_state(net: Detector) -> dict[str, Any]:
    """What a checkpoint keeps beside the weights so that `load` can build the model again (JSON)."""
    card = net.card
    return {
        "model": card.name,
        "config": to_mapping(net.config),
        "categories": [[c.id, c.name, c.is_thing] for c in card.categories],
        "sizes": [card.short_side, card.max_size],
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


def _load_folder(path: Path) -> Detector:
    if not (path / "manifest.json").exists():
        path = best_checkpoint(path)
    state = read_checkpoint(path, parts=[]).state
    has_average = (path / "ema.safetensors").exists()
    part = "ema" if has_average else "model"
    tensors = read_checkpoint(path, parts=[part]).tensors[part]
    kept = state["model_state"]
    config = apply_mapping(DETRConfig(), kept["config"], where=str(path))
    categories = [Category(*values) for values in kept["categories"]]
    net = build(config, kept["model"], categories, tuple(kept["sizes"]))
    load_exactly(net, tensors, where=path)
    return net.eval()
