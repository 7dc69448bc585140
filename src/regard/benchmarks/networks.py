"""Time and memory of one network in several forms, such as a model, its engine and its exported files.

`regard benchmark SOURCE` measures a model of yours on this machine; `regard benchmark export` (`export.py`) uses the
same rows for models with random weights.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from regard.benchmarks.memory import peak_memory
from regard.benchmarks.timing import CPU, spreads
from regard.errors import MachineError
from regard.exporting.check import compare, outputs_of
from regard.exporting.images import example_batch
from regard.models.build import Detector, Model
from regard.models.engine import optimize
from regard.models.exported import ExportedNetwork
from regard.structures.image_batch import ImageBatch

if TYPE_CHECKING:
    from rich.table import Table

BATCHES = (1, 8)  # images
ALLOWED = 1e-3  # difference of an output of a float32 form, relative to the output where that is above 1


@dataclass(frozen=True)
class NetworkRow:
    """One form of a network with one size of batches.

    milliseconds, low, high: of an image, on one core or a GPU, median and quartiles. ratio: how many times as fast as
    the first form with the same batches. memory: MiB above weights and inputs; None on Windows. difference: of the
    outputs from those of the first form, relative where they are above 1; None for the first.
    """

    what: str
    batch_size: int
    height: int
    width: int
    milliseconds: float
    low: float
    high: float
    ratio: float
    memory: float | None = None
    difference: float | None = None


def main(model: Model, title: str, rounds: int, device: torch.device) -> list[NetworkRow]:
    """Measure a model and print the table."""
    from rich.console import Console

    rows = run(model, rounds, device=device)
    Console().print(table(rows, title))
    return rows


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Give torch, and runtimes that are opened meanwhile, one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def run(
    model: Model, rounds: int = 10, *, batches: Sequence[int] = BATCHES, device: torch.device = CPU
) -> list[NetworkRow]:
    """Measure a model and its engines, or an ONNX file in ONNX Runtime, on images of the model's own size.

    Args:
        model: on its device. An ONNX file is to be opened within `one_thread`.
        rounds: number of rounds; the forms alternate.
        batches: images per batch.
        device: of the model.

    Raises:
        MachineError: an engine disagrees with its model.
    """
    if isinstance(model, ExportedNetwork):
        return measure({"ONNX Runtime": model}, rounds, batches=batches)
    forms = {"model": model.eval(), "engine": optimize(model)}
    forms["engine, bfloat16"] = optimize(model, dtype=torch.bfloat16)
    return measure(forms, rounds, batches=batches, device=device)


def measure(
    forms: Mapping[str, Model],
    rounds: int,
    *,
    batches: Sequence[int] = BATCHES,
    memory: bool = True,
    device: torch.device = CPU,
) -> list[NetworkRow]:
    """Compare the outputs of forms of a network, then measure them in alternating rounds.

    Args:
        forms: by name; the others are compared with the first. Those with bfloat16 in their name may differ.
        memory: measure it too; on the CPU in forks, which runtimes with threads of their own do not survive.

    Raises:
        MachineError: a form disagrees with the first.
    """
    first, *_ = forms.values()
    rows: list[NetworkRow] = []
    for count in batches:
        batch = example_batch(first, count).to(device)
        with torch.inference_mode():
            differences = {name: _difference(name, first, form, batch) for name, form in list(forms.items())[1:]}
            ways = [_calling(form, batch) for form in forms.values()]
            peaks = [_memory(way, device) if memory else None for way in ways]
            found = spreads(ways, rounds, device)
        for name, spread, peak in zip(forms, found, peaks, strict=True):
            median, low, high = (1000 * seconds / count for seconds in (spread.median, spread.low, spread.high))
            ratio = found[0].median / spread.median
            height, width = batch.pixels.shape[-2:]
            row = NetworkRow(name, count, height, width, median, low, high, ratio, peak, differences.get(name))
            rows.append(row)
    return rows


def table(rows: Sequence[NetworkRow], title: str) -> Table:
    """Return a table of the rows."""
    from rich.table import Table

    sides = dict.fromkeys(f"{row.height} x {row.width}" for row in rows)
    found = Table(title=f"{title}: images of {', '.join(sides)} pixels", title_justify="left")
    found.add_column("form", no_wrap=True)
    for name in ("batch", "ms an image", "quartiles", "ratio", "MiB", "difference"):
        found.add_column(name, justify="right")
    for row in rows:
        memory = "" if row.memory is None else f"{row.memory:.0f}"
        difference = "" if row.difference is None else f"{row.difference:.0e}"
        spread = f"{_short(row.low)}-{_short(row.high)}"
        ratio = f"{row.ratio:.2f}x"
        found.add_row(row.what, str(row.batch_size), _short(row.milliseconds), spread, ratio, memory, difference)
    return found


def _difference(name: str, first: Model, form: Model, batch: ImageBatch) -> float:
    found = compare(first, lambda _: outputs_of(form, batch), [batch]).difference
    if found > ALLOWED and "bfloat16" not in name:
        raise MachineError(f"the outputs of the {name} differ by {found:.1e}", remedy="please report it with the model")
    return found


def _calling(form: Model, batch: ImageBatch) -> Callable[[int], object]:
    return lambda _: form(batch) if isinstance(form, Detector) else form(batch.pixels)


def _memory(way: Callable[[int], object], device: torch.device) -> float | None:
    """Return MiB; None where processes cannot be forked."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        way(0)
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    return peak_memory(way) / 2**20 if hasattr(os, "fork") else None


def _short(milliseconds: float) -> str:
    """Return a number with about three digits."""
    return f"{milliseconds:.0f}" if milliseconds >= 100 else f"{milliseconds:.3g}"
