"""Speed against other libraries: `regard benchmark NAME`, one comparison per file."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from regard.errors import ConfigError

BENCHMARKS = {
    "attention": "all attention mechanisms on maps of four sizes",
    "cost": "time and memory as images, batches and queries grow",
    "data": "opening large data: COCO files, class folders",
    "detr": "inference of DETR-R50: model, engines, transformers",
    "distillation": "training with stored answers of a teacher next to a live one",
    "export": "models, their engines and their exported files",
    "loading": "decoding and augmentation of images",
    "losses": "matching and losses of DETR",
    "masks": "the mask head of DETR",
    "predict": "regard predict over photographs, next to its model alone",
    "training": "training steps of DETR-R50 and DeiT-S: seconds and memory",
    "vit": "vision transformers, and with merged tokens",
}
OWN = "regard benchmark RUN"  # or a file of weights, or an ONNX file


def run_benchmark(
    name: str, data: Path | None, rounds: int, device: str, output: Path, threads: int = 1
) -> Sequence[Any]:
    """Run a benchmark, print its tables and return its rows.

    Args:
        name: one of `BENCHMARKS`.
        output: folder for pictures that a benchmark draws itself.
        threads: of torch, for `training`.

    Raises:
        ConfigError: fewer rounds or threads than 1 (C03), or data, a device or threads that it does not take (C09).
    """
    check_benchmark(name, data, rounds, device, threads)
    if name in ("detr", "losses", "masks"):
        return list(import_module(f"regard.benchmarks.{name}").main(rounds))
    if name == "attention":
        from regard.benchmarks.attention import main as compare_attention

        return compare_attention(rounds, output / "attention.png")
    if name == "cost":
        from regard.benchmarks.cost import main as measure_cost

        return measure_cost(rounds, output / "cost.png")
    if name == "data":
        from regard.benchmarks.data import main as compare_opening

        return compare_opening(rounds)
    if name == "distillation":
        from regard.benchmarks.distillation import main as compare_distillation

        return compare_distillation(rounds)
    if name == "export":
        from regard.benchmarks.export import main as compare_exports

        return compare_exports(rounds)
    if name == "loading":
        from regard.benchmarks.loading import main

        return main(data, rounds)
    if name == "predict":
        from regard.benchmarks.predict import main as measure_predict

        return measure_predict(data, rounds)
    if name == "training":
        from regard.benchmarks.training import main as compare_steps

        return compare_steps(rounds, threads)
    from regard.benchmarks.vit import main as compare_vit

    return compare_vit(rounds)


def check_numbers(name: str, rounds: int, threads: int) -> None:
    """Check the options that every benchmark and model has.

    Raises:
        ConfigError: a number below 1 (C03), or several threads where one is measured (C09).
    """
    if rounds < 1:
        raise ConfigError(f"rounds={rounds}, expected at least 1", code="C03")
    if threads < 1:
        raise ConfigError(f"threads={threads}, expected at least 1", code="C03")
    if threads != 1 and name != "training":
        raise ConfigError(f"{name} is measured with one thread", remedy="leave --threads out", code="C09")


def check_benchmark(name: str, data: Path | None, rounds: int, device: str, threads: int) -> None:
    """Check the options of one of `BENCHMARKS`; errors as for `run_benchmark`."""
    check_numbers(name, rounds, threads)
    if device != "cpu":
        remedy = "compare on a GPU by: python -m regard.benchmarks.gpu"
        raise ConfigError(f"{name} is measured on the CPU", where=f"--device {device}", remedy=remedy, code="C09")
    if data is not None and name not in ("loading", "predict"):
        raise ConfigError(f"{name} is measured without data", remedy="leave --data out", code="C09")
