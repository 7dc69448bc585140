"""`regard.export`: trace a model, write it as a file, check the file against the model, and only then keep it."""

from __future__ import annotations

import copy
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import torch

from regard.data.paths import check_data, data_text
from regard.errors import ConfigError, unknown_name
from regard.evaluation import evaluate
from regard.exporting.check import compare, require_agreement
from regard.exporting.graph import Graph, graph_of
from regard.exporting.images import CHECKED, check_batches, generated_images, read_images
from regard.exporting.int8 import IMAGES, check_convolutions, quantize, require_score
from regard.exporting.metadata import metadata_of
from regard.exporting.options import MAX_DROP, SUFFIXES, Format
from regard.exporting.readers import reopen
from regard.exporting.writers import check_packages, check_size, trace, write_onnx, write_openvino, write_torch
from regard.models.build import Model
from regard.models.engine.engines import Optimized
from regard.safe_files import first_free, make_writable
from regard.weights.load import load_on
from regard.weights.onnx_file import refuse_onnx
from regard.weights.source import check_source

SCORES = ("PQ", "AP", "top1")  # the first that an evaluation has is the one that counts


def export(
    source: str | Path | Model,
    format: Format = "onnx",
    *,
    output: str | Path | None = None,
    data: str | Path | None = None,
    int8: bool = False,
    max_drop: float = MAX_DROP,
    quiet: bool = False,
) -> Path:
    """Write a model as a file that runs without Regard, and check it against the model before it gets its name.

    Args:
        source: a model, or what `regard.load` takes.
        format: `onnx`, for ONNX Runtime and `regard.load`; `torch`, a `.pt2` file for `torch.export.load`; `openvino`,
            an `.xml` file and a `.bin` file next to it. Detectors take images of any size, with padding; classifiers
            of any size that the model takes; batches have any size.
        output: the file; NAME.onnx, NAME.pt2 or NAME.xml here if None, with a number if that exists.
        data: as for `regard.train`. Its validation images check the file, and model and file are scored on them;
            without it generated images check the file.
        int8: quantise the convolutions of an ONNX file to 8 bits, calibrated on 64 to 128 training images of `data`.
        max_drop: points (of 100) of AP, PQ or top-1 accuracy that int8 may lose.
        quiet: print no progress.

    Returns:
        The file.

    Raises:
        ConfigError: options that do not go together (C09), an unknown format (C02), a file that exists (C11), or a
            negative `max_drop` (C03).
        CheckpointError: outputs differ by more than 1e-4, or int8 scores too low (K21): then there is no file.
        DataError: fewer than 64 training images for int8 (A48), or images that cannot be read.
        MachineError: a package is missing.
    """
    target = _checked(source, format, output, data, int8, max_drop)
    started = time.monotonic()

    def tell(line: str) -> None:
        if not quiet:
            print(f"{time.monotonic() - started:6.1f} s  {line}", file=sys.stderr, flush=True)

    loaded = load_on(source, "cpu")[0] if isinstance(source, (str, Path)) else source
    net = copy.deepcopy(loaded).to(device="cpu", dtype=torch.float32).eval()
    graph = graph_of(net)
    check_size(graph.network, format)
    if int8:
        check_convolutions(net)
    make_writable(target.parent)
    job = _Job(net, graph, format, None if data is None else data_text(data), target, tell, quiet)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".export-") as folder:
        file = job.write(Path(folder))
        before = job.check(file)
        if int8:
            file = job.quantized(file, before, max_drop)
        for part in (file.with_suffix(".bin"), file):
            if part.exists():
                part.replace(target.with_suffix(part.suffix))
    tell(f"{target}: {target.stat().st_size / 1e6:.1f} MB")
    return target


@dataclass(frozen=True)
class _Job:
    """The steps of an export."""

    net: Model
    graph: Graph
    form: Format
    data: str | None
    target: Path
    tell: Callable[[str], None]
    quiet: bool

    def write(self, folder: Path) -> Path:
        """Trace and write. Returns the file in `folder`."""
        metadata, path = metadata_of(self.net), folder / f"model{SUFFIXES[self.form]}"
        self.tell(f"tracing {self.net.card.name}")
        program = trace(self.graph)
        if self.form == "torch":
            write_torch(program, path, metadata)
            return path
        self.tell("converting to ONNX")
        onnx = folder / "model.onnx"
        write_onnx(program, self.graph, onnx, metadata)
        if self.form == "openvino":
            self.tell("converting to OpenVINO")
            write_openvino(onnx, path, metadata)
        return path

    def check(self, file: Path) -> tuple[str, float] | None:
        """Compare the file with the model. With data return name and value of the model's score, after the file's."""
        self.tell("checking the file against the model")
        images = generated_images(CHECKED) if self.data is None else read_images(self.net, self.data, "val", CHECKED)
        exported = reopen(file, self.form, self.net, self.graph)
        agreement = compare(self.net, exported.run, check_batches(self.net, images))
        require_agreement(agreement, self.target)
        self.tell(f"checked: {agreement}")
        if self.data is None:
            return None
        score = self.score("model", self.net)
        self.score("file", exported)
        return score

    def quantized(self, file: Path, before: tuple[str, float] | None, max_drop: float) -> Path:
        """Return an int8 version of an ONNX file that scores about what the model does."""
        assert self.data is not None and before is not None
        self.tell("calibrating int8")
        small = file.with_name("int8.onnx")
        quantize(file, small, self.net, read_images(self.net, self.data, "train", IMAGES), self.data)
        name, after = self.score("int8 file", reopen(small, self.form, self.net, self.graph))
        require_score(name, before[1], after, max_drop)
        return small

    def score(self, what: str, net: Model) -> tuple[str, float]:
        """Score a model or a file; return name and value, in points of 100."""
        assert self.data is not None
        stats = evaluate(net, self.data, device="cpu", quiet=self.quiet).stats
        name = next(name for name in SCORES if name in stats)
        value = 100 * (stats[name] or 0.0)
        self.tell(f"{name} of the {what}: {value:.1f}")
        return name, value


def _checked(
    source: str | Path | Model,
    form: Format,
    output: str | Path | None,
    data: str | Path | None,
    int8: bool,
    drop: float,
) -> Path:
    """Check the arguments before anything is loaded; return the file to write."""
    if form not in get_args(Format):
        raise unknown_name("format", form, get_args(Format), code="C02")
    if not drop >= 0:
        raise ConfigError(f"max_drop={drop}, expected at least 0", code="C03")
    if int8 and form != "onnx":
        raise ConfigError(f"int8 is for ONNX, not for {form}", remedy="use --format onnx", code="C09")
    if int8 and data is None:
        what = "int8 is calibrated and scored on images, and there are none"
        raise ConfigError(what, remedy="name their folder: --data DIR", code="C09")
    refuse_onnx(source, "exported again")
    if isinstance(source, Optimized):
        remedy = "export the model it was made of"
        raise ConfigError("an optimised model cannot be exported", where="source", remedy=remedy, code="C09")
    if isinstance(source, (str, Path)):
        check_source(source)
    if data is not None:
        check_data(data_text(data))
    suffix = SUFFIXES[form]
    name = f"{_name_of(source)}{'-int8' if int8 else ''}{suffix}"
    target = first_free(Path(name)) if output is None else Path(output)
    if target.suffix.lower() != suffix:
        raise ConfigError(f"a file of the format {form} ends with {suffix}", where=target, code="C09")
    beside = target.with_suffix(".bin")  # OpenVINO's weights
    for file in (target, beside) if form == "openvino" else (target,):
        if file.exists():
            raise ConfigError("the file exists", where=file, remedy="name another one", code="C11")
    check_packages(form)
    return target


def _name_of(source: str | Path | Model) -> str:
    """Return the name of a model, or of a run or file without its suffix."""
    if not isinstance(source, (str, Path)):
        return source.card.name
    path = Path(source)
    return path.resolve().name if path.is_dir() or not path.exists() else path.stem
