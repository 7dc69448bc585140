"""Open an ONNX file that `regard export` wrote. Its metadata hold the model's settings, classes and image sizes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from regard.errors import CheckpointError, ConfigError, MachineError, cause, install_command
from regard.models.exported import ExportedClassifier, ExportedDetector, ExportedNetwork, exported_network
from regard.structures.categories import Category, ModelCard
from regard.weights.model_state import config_of

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

STATE = "regard_state"  # the entry of the metadata that `open_onnx` reads; others are for other programs
REMEDY = "export it again: regard export CHECKPOINT"


def open_onnx(path: Path) -> ExportedDetector | ExportedClassifier:
    """Return the network of an ONNX file.

    Raises:
        CheckpointError: no such file (K01), an empty one (K03), one that ONNX Runtime cannot open or that Regard did
            not write (K06), or one of a newer version (K19).
        MachineError: onnxruntime is not installed.
    """
    session = _session(path)
    metadata = session.get_modelmeta().custom_metadata_map
    if STATE not in metadata:
        raise CheckpointError("an ONNX file that Regard did not write", where=path, remedy=REMEDY, code="K06")
    try:
        state = json.loads(metadata[STATE])
        config, card = config_of(state, path), _card(state)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        what = f"metadata that cannot be read: {cause(error)}"
        raise CheckpointError(what, where=path, remedy=REMEDY, code="K06") from error
    inputs = [value.name for value in session.get_inputs()]
    outputs = [value.name for value in session.get_outputs()]

    def run(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = session.run(outputs, {name: tensor.detach().numpy() for name, tensor in tensors.items()})
        return {name: torch.from_numpy(array) for name, array in zip(outputs, found, strict=True)}

    return exported_network(run, inputs, config, card)


def is_onnx(source: object) -> bool:
    """Return whether `source` is the network of an ONNX file, or the path of one."""
    is_path = isinstance(source, (str, Path)) and Path(source).suffix.lower() == ".onnx"
    return is_path or isinstance(source, ExportedNetwork)


def refuse_onnx(source: object, verb: str) -> None:
    """Refuse an ONNX file where a model with parameters and layers is needed.

    Args:
        verb: what cannot be done with it, such as `trained`.

    Raises:
        ConfigError: `source` is one (C09).
    """
    if is_onnx(source):
        where = source.card.name if isinstance(source, ExportedNetwork) else str(source)
        remedy = "name the run or the weights that it was exported from"
        raise ConfigError(f"an ONNX file cannot be {verb}", where=where, remedy=remedy, code="C09")


def _card(state: dict[str, Any]) -> ModelCard:
    categories = tuple(Category(*values) for values in state["categories"])
    short_side, max_size = state["sizes"]
    return ModelCard(
        state["model"], categories, short_side, max_size, crop_pct=state["crop_pct"], panoptic=state["panoptic"],
        threshold=state["threshold"], **state["resize"],
    )  # fmt: skip


def _session(path: Path) -> InferenceSession:
    if not path.is_file():
        raise CheckpointError("no such file", where=path, code="K01")
    if not path.stat().st_size:
        raise CheckpointError("the file is empty", where=path, remedy=REMEDY, code="K03")
    try:
        import onnxruntime
    except ImportError as error:
        remedy = install_command("onnxruntime")
        raise MachineError("ONNX files need the package onnxruntime", where=path, remedy=remedy) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors alone
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no common class
        what = f"ONNX Runtime cannot open it: {cause(error)}"
        raise CheckpointError(what, where=path, remedy=REMEDY, code="K06") from error
