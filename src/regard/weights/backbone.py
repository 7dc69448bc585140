"""Fit the tensors of any classifier's file to the backbone of a detector.

Files hold whole classifiers under torchvision's or timm's names, sometimes with a prefix. A backbone lacks the last
layers, and timm's feature extractors join two parts of a name: `stages.0.weight` becomes `stages_0.weight`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn

from regard.errors import ArchitectureError
from regard.models.backbone import create_backbone
from regard.models.classifiers import HEADS, build_classifier
from regard.models.configs import CLASSIFIER_PRESETS, SMALL_BACKBONES
from regard.models.configs.detr import DETRConfig
from regard.models.configs.retinanet import RetinaNetConfig
from regard.weights.hub_folder import find_weights
from regard.weights.retinanet import is_retinanet
from regard.weights.state_dict import read_weights

_PREFIXES = ("", "module.", "model.", "backbone.", "backbone.body.", "backbone.0.body.", "body.", "encoder.", "net.")
_COUNTER = "num_batches_tracked"


def is_detector(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether a file holds a detector, ours, the DETR authors' or torchvision's, by the names of its tensors."""
    if is_retinanet(tensors):
        return True
    names = {key.removeprefix("detr.").partition(".")[0] for key in tensors}
    return bool(names & {"transformer", "query_embed", "query_pos", "class_embed", "bbox_embed", "linear_class"})


def classifier_file(source: str) -> Path | None:
    """Return the weights file that `start_from` names, alone or in a folder, if it holds no detector; else None."""
    path = Path(source)
    file = find_weights(path) if path.is_dir() else path
    if file is None or not file.is_file() or (file.parent / "manifest.json").exists():
        return None
    return None if is_detector(read_weights(file).tensors) else file


def fit_backbone(
    config: DETRConfig | RetinaNetConfig, tensors: Mapping[str, Tensor], where: str | Path
) -> dict[str, Tensor]:
    """Return the tensors of the backbone of a detector, under the names of its `body`, from a file of a classifier.

    Args:
        config: the detector.
        tensors: name -> tensor of a classifier: of torchvision, timm, or ours. Its last layers are left out.
        where: the file, for errors.

    Raises:
        CheckpointError: tensors of the backbone are missing, have another shape, or the file has tensors that neither
            the backbone nor its whole classifier has (K07).
        ConfigError, MachineError: there is no such backbone, or timm is missing.
    """
    name = config.backbone
    dilation, image_size = False, None
    if isinstance(config, DETRConfig):
        dilation = config.dilation
    else:
        image_size = config.image_size
    body = create_backbone(name, dilation=dilation, norm=config.backbone_norm, image_size=image_size).body
    wanted = body.state_dict()
    bare = _without_prefix(tensors, wanted)
    found = _match(bare, wanted)
    missing = [key for key, other in found.items() if other is None and not key.endswith(_COUNTER)]
    fitted = {key: bare[other] for key, other in found.items() if other is not None}
    unequal = [key for key, tensor in fitted.items() if tensor.shape != wanted[key].shape]
    rest = set(bare) - {other for other in found.values() if other is not None}
    whole = _whole_names(name) if rest else set()
    unexpected = [key for key in bare if key in rest and key not in whole and not _is_left_out(key)]
    if missing or unequal or unexpected:
        raise _misfit(name, where, len(wanted), missing, unexpected, unequal)
    return fitted


def _without_prefix(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove the prefix without which most tensors of the backbone are found."""
    cut = {
        prefix: {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}
        for prefix in _PREFIXES
        if any(key.startswith(prefix) for key in tensors)
    }
    return max(cut.values(), key=lambda bare: sum(name is not None for name in _match(bare, wanted).values()))


def _match(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, str | None]:
    """Return the name in the file of each tensor of a backbone, None where there is none.

    timm's feature extractors wrap the network (`model.`, `body.`), or join the first two parts of its names.
    """
    joined = {key.replace(".", "_", 1): key for key in tensors} | {key: key for key in tensors}
    names = {key: (key, key.removeprefix("model."), key.removeprefix("body.")) for key in wanted}
    return {key: next((joined[name] for name in tried if name in joined), None) for key, tried in names.items()}


def _whole_names(name: str) -> set[str]:
    """Return the names of the tensors of the whole classifier that a backbone is cut from."""
    with torch.device("meta"):
        return set(_whole(name).state_dict())


def _whole(name: str) -> nn.Module:
    if name.startswith("timm/"):
        import timm

        return timm.create_model(name.removeprefix("timm/"), pretrained=False)
    if name in CLASSIFIER_PRESETS:
        return build_classifier(CLASSIFIER_PRESETS[name])
    return nn.Module() if name in SMALL_BACKBONES else torchvision.models.get_model(name, weights=None)


def _is_left_out(key: str) -> bool:
    """Return whether a tensor is a counter of batch norm or belongs to a classification layer."""
    return key.endswith(_COUNTER) or key.partition(".")[0] in HEADS


def _misfit(
    name: str, where: str | Path, count: int, missing: list[str], unexpected: list[str], unequal: list[str]
) -> ArchitectureError:
    listed = (("missing", missing), ("not in the backbone", unexpected), ("of another shape", unequal))
    parts = [f"{len(keys)} {what} ({_first_few(keys)})" for what, keys in listed if keys]
    what = f"not weights of the backbone {name} with its {count} tensors: {', '.join(parts)}"
    return ArchitectureError(what, where=where, remedy="set model.backbone to the network of the file", code="K07")


def _first_few(keys: list[str]) -> str:
    return ", ".join(key[:80] for key in keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
