"""Open what was just written, to compare and to score it as its users will run it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from regard.exporting.graph import Graph
from regard.exporting.options import Format
from regard.models.build import Model
from regard.models.exported import ExportedClassifier, ExportedDetector, Run, exported_network
from regard.weights.onnx_file import open_onnx


def reopen(path: Path, form: Format, model: Model, graph: Graph) -> ExportedDetector | ExportedClassifier:
    """Return the network of a file that was exported from `model`."""
    if form == "onnx":
        return open_onnx(path)
    run = _torch_run(path, graph) if form == "torch" else _openvino_run(path, graph)
    return exported_network(run, list(graph.inputs), model.config, model.card)


def _torch_run(path: Path, graph: Graph) -> Run:
    program = torch.export.load(path).module()

    def run(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = program(*(inputs[name] for name in graph.inputs))
        return dict(zip(graph.outputs, [found] if isinstance(found, Tensor) else found, strict=True))

    return run


def _openvino_run(path: Path, graph: Graph) -> Run:
    import openvino

    # By default it computes in bf16 where the CPU can: 4e-2 away from the model.
    network = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = network({name: tensor.contiguous().numpy() for name, tensor in inputs.items()})
        return {name: torch.from_numpy(found[name].copy()) for name in graph.outputs}

    return run
