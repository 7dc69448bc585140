"""Time of models and of the files that `regard export` writes of them: ONNX Runtime, torch.export, OpenVINO.

The models have random weights. Each file is checked against its model before it is timed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from regard.benchmarks.networks import NetworkRow, measure, table
from regard.exporting.export import export
from regard.exporting.graph import graph_of
from regard.exporting.options import SUFFIXES, Format
from regard.exporting.readers import reopen
from regard.models.build import Model, create
from regard.models.engine import optimize

MODELS = (
    "detr_tiny", "detr_lite", "detr_resnet50", "retinanet_tiny", "deit_tiny_patch16_224", "deit_small_patch16_224",
    "resnet50", "efficientnet_lite0",
)  # fmt: skip
FORMS: dict[Format, str] = {"onnx": "ONNX Runtime", "torch": "torch.export", "openvino": "OpenVINO"}
BATCHES = (1,)


@dataclass(frozen=True)
class ExportRow(NetworkRow):
    """A row of a model. model: its name."""

    model: str = ""


def main(rounds: int) -> list[ExportRow]:
    """Measure and print a table for each model."""
    from rich.console import Console

    found = []
    for name in MODELS:
        rows = run(name, rounds)
        Console().print(table(rows, name))
        found += rows
    return found


def run(name: str, rounds: int = 10, *, batches: Sequence[int] = BATCHES) -> list[ExportRow]:
    """Measure a model, its engine and its files, in alternating rounds.

    Raises:
        CheckpointError: a file disagrees with its model (K21).
        MachineError: packages that `regard export` needs are missing.
    """
    torch.manual_seed(0)
    torch.set_num_threads(1)  # runtimes take their number from torch
    model = create(name).eval().requires_grad_(False)
    with TemporaryDirectory() as folder:
        forms: dict[str, Model] = {"model": model, "engine": optimize(model)}
        forms |= {FORMS[form]: _exported(model, form, Path(folder)) for form in _formats()}
        rows = measure(forms, rounds, batches=batches, memory=False)
    return [ExportRow(**vars(row), model=name) for row in rows]


def _formats() -> list[Format]:
    """Return the formats that can be written here; OpenVINO is optional."""
    return [form for form in FORMS if form != "openvino" or importlib.util.find_spec("openvino")]


def _exported(model: Model, form: Format, folder: Path) -> Model:
    path = export(model, form, output=folder / f"model{SUFFIXES[form]}", quiet=True)
    return reopen(path, form, model, graph_of(model))
