"""Write a traced network: an ONNX file, a file of torch.export, OpenVINO's pair of files."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch.export import Dim, ExportedProgram

from regard.errors import ConfigError, MachineError, install_command
from regard.exporting.graph import Graph
from regard.exporting.options import Format

# Below 18 `Resize` knows no antialias; 23 has an Attention whose bool masks were inverted in torch's exporter.
OPSET = 18
LARGEST = 2**31 - 2**24  # bytes of weights in one ONNX file: protobuf's limit is 2 GiB

PACKAGES: dict[Format, tuple[str, ...]] = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "torch": (),
    "openvino": ("onnx", "onnxscript", "onnxruntime", "openvino"),
}


def check_packages(form: Format) -> None:
    """Check that the packages that write a format are there.

    Raises:
        MachineError: they are not; the remedy installs them.
    """
    missing = [name for name in PACKAGES[form] if importlib.util.find_spec(name) is None]
    if missing:
        names = " and ".join(missing)
        raise MachineError(f"--format {form} needs {names}", remedy=install_command(*missing))


def check_size(network: torch.nn.Module, form: Format) -> None:
    """Check that the weights fit into one file.

    Raises:
        ConfigError: more than 2 GB of weights for an ONNX file (C09).
    """
    size = sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())
    if form != "torch" and size > LARGEST:
        what = f"{size / 1e9:.1f} GB of weights, and one ONNX file holds 2 GB"
        raise ConfigError(what, where=f"--format {form}", remedy="use --format torch", code="C09")


@torch.no_grad()
def trace(graph: Graph) -> ExportedProgram:
    """Return the network as torch.export's program, for any sizes of the free dimensions."""
    free = [dict.fromkeys(graph.free[name], Dim.DYNAMIC) for name in graph.inputs]
    with _quiet():
        return torch.export.export(graph.network, tuple(graph.inputs.values()), dynamic_shapes=free, strict=False)


def write_onnx(program: ExportedProgram, graph: Graph, path: Path, metadata: Mapping[str, str]) -> None:
    """Write a program as one ONNX file with named inputs, outputs and free dimensions."""
    with _quiet():
        converted = torch.onnx.export(
            program, dynamo=True, opset_version=OPSET, input_names=list(graph.inputs),
            output_names=list(graph.outputs), verbose=False,
        )  # fmt: skip
        assert converted is not None
        converted.model.metadata_props.update(metadata)
        converted.save(path, external_data=False)
    _name_dimensions(path, graph)


def _name_dimensions(path: Path, graph: Graph) -> None:
    """Give the free dimensions of an ONNX file, `s34` and the like, their names."""
    import onnx

    model = onnx.load(path)
    values = [*model.graph.input, *model.graph.output, *model.graph.value_info]
    dims = [dim for value in values for dim in value.type.tensor_type.shape.dim if dim.dim_param]
    names = {
        value.type.tensor_type.shape.dim[number].dim_param: name
        for value in model.graph.input
        for number, name in graph.free[value.name].items()
    }
    pattern = re.compile("|".join(rf"\b{re.escape(old)}\b" for old in names))
    for dim in dims:
        dim.dim_param = pattern.sub(lambda found: names[found[0]], dim.dim_param)
    onnx.save(model, path)


def write_torch(program: ExportedProgram, path: Path, metadata: Mapping[str, str]) -> None:
    """Write a program for `torch.export.load`. The metadata are extra files, each of its name."""
    with _quiet():
        torch.export.save(program, path, extra_files=dict(metadata))


def write_openvino(onnx: Path, path: Path, metadata: Mapping[str, str]) -> None:
    """Convert an ONNX file to `path`, .xml, and a .bin of weights next to it. The metadata are its `rt_info`."""
    import openvino

    model = openvino.convert_model(onnx)
    for name, value in metadata.items():
        model.set_rt_info(value, ["regard", name])
    openvino.save_model(model, path, compress_to_fp16=False)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the notes of torch's exporters to their developers."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
