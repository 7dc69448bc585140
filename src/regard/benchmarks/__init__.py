"""Speed against other libraries: `regard benchmark NAME`, one comparison per file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from regard.errors import ConfigError, unknown_name
from regard.models.catalog import list_models
from regard.weights.source import check_source

BENCHMARKS = {
    "attention": "all attention mechanisms on maps of four sizes",
    "cost": "time and memory as images, batches and queries grow",
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
    """Run a benchmark, or measure a model of the user's, print its tables and return its rows.

    Args:
        name: a benchmark, or what `regard.load` takes.
        output: folder for pictures that a benchmark draws itself.
        threads: of torch, for `training`.

    Raises:
        ConfigError: no such benchmark or model (C01), fewer rounds or threads than 1 (C03), or data, a device or
            threads that it does not take (C09).
    """
    _check(name, data, rounds, device, threads)
    if name not in BENCHMARKS:
        return _own(name, data, rounds, device)
    if name == "attention":
        from regard.benchmarks.attention import main as compare_attention

        return compare_attention(rounds, output / "attention.png")
    if name == "cost":
        from regard.benchmarks.cost import main as measure_cost

        return measure_cost(rounds, output / "cost.png")
    if name == "detr":
        from regard.benchmarks.detr import main as compare_detr

        return compare_detr(rounds)
    if name == "distillation":
        from regard.benchmarks.distillation import main as compare_distillation

        return compare_distillation(rounds)
    if name == "export":
        from regard.benchmarks.export import main as compare_exports

        return compare_exports(rounds)
    if name == "loading":
        from regard.benchmarks.loading import main

        return main(data, rounds)
    if name == "losses":
        from regard.benchmarks.losses import main as compare_losses

        return compare_losses(rounds)
    if name == "masks":
        from regard.benchmarks.masks import main as compare_masks

        return compare_masks(rounds)
    if name == "predict":
        from regard.benchmarks.predict import main as measure_predict

        return measure_predict(data, rounds)
    if name == "training":
        from regard.benchmarks.training import main as compare_steps

        return compare_steps(rounds, threads)
    from regard.benchmarks.vit import main as compare_vit

    return compare_vit(rounds)


def _own(name: str, data: Path | None, rounds: int, device: str) -> Sequence[Any]:
    path = Path(name)
    if not (path.exists() or path.suffix or len(path.parts) > 1 or name in list_models()):
        raise unknown_name("benchmark", name, list(BENCHMARKS), code="C01")
    if data is not None:
        remedy = f"leave --data out, or score it by: regard evaluate {name} --data {data}"
        raise ConfigError("a model is measured without data", where=name, remedy=remedy, code="C09")
    check_source(name)
    from regard.benchmarks.networks import main

    return main(name, rounds, device)


def _check(name: str, data: Path | None, rounds: int, device: str, threads: int) -> None:
    """Check the options of a benchmark, with the errors of `run_benchmark`."""
    if rounds < 1:
        raise ConfigError(f"rounds={rounds}, expected at least 1", code="C03")
    if threads < 1:
        raise ConfigError(f"threads={threads}, expected at least 1", code="C03")
    if threads != 1 and name != "training":
        raise ConfigError(f"{name} is measured with one thread", remedy="leave --threads out", code="C09")
    if device != "cpu" and name in BENCHMARKS:
        remedy = "compare on a GPU by: python -m regard.benchmarks.gpu"
        raise ConfigError(f"{name} is measured on the CPU", where=f"--device {device}", remedy=remedy, code="C09")
    if data is not None and name in BENCHMARKS and name not in ("loading", "predict"):
        raise ConfigError(f"{name} is measured without data", remedy="leave --data out", code="C09")
