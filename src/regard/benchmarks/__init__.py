"""Speed against other libraries: `regard benchmark NAME`, one comparison per file."""

from __future__ import annotations

from pathlib import Path

from regard.errors import ConfigError, unknown_name

BENCHMARKS = {
    "attention": "all attention mechanisms on maps of four sizes",
    "detr": "inference of DETR-R50: model, engines, transformers",
    "distillation": "training with stored answers of a teacher next to a live one",
    "loading": "decoding and augmentation of images",
    "losses": "matching and losses of DETR",
    "masks": "the mask head of DETR",
    "training": "training steps of DETR-R50 and DeiT-S: seconds and memory",
    "vit": "vision transformers, and with merged tokens",
}


def run_benchmark(name: str, data: Path | None, rounds: int, threads: int = 1) -> None:
    """Run a benchmark by name and print its table. `threads`: of torch, for `training`."""
    if rounds < 1:
        raise ConfigError(f"rounds={rounds}, expected at least 1", code="C03")
    if data is not None and name in BENCHMARKS and name != "loading":
        raise ConfigError(f"{name} is measured without data", remedy="leave --data out", code="C09")
    if threads < 1:
        raise ConfigError(f"threads={threads}, expected at least 1", code="C03")
    if threads != 1 and name in BENCHMARKS and name != "training":
        raise ConfigError(f"{name} is measured with one thread", remedy="leave --threads out", code="C09")
    if name == "attention":
        from regard.benchmarks.attention import main as compare_attention

        compare_attention(rounds, Path("runs/benchmark-attention/attention.png"))
    elif name == "detr":
        from regard.benchmarks.detr import main as compare_detr

        compare_detr(rounds)
    elif name == "distillation":
        from regard.benchmarks.distillation import main as compare_distillation

        compare_distillation(rounds)
    elif name == "loading":
        from regard.benchmarks.loading import main

        main(data, rounds)
    elif name == "losses":
        from regard.benchmarks.losses import main as compare_losses

        compare_losses(rounds)
    elif name == "masks":
        from regard.benchmarks.masks import main as compare_masks

        compare_masks(rounds)
    elif name == "training":
        from regard.benchmarks.training import main as compare_training

        compare_training(rounds, threads)
    elif name == "vit":
        from regard.benchmarks.vit import main as compare_vit

        compare_vit(rounds)
    else:
        raise unknown_name("benchmark", name, list(BENCHMARKS), code="C01")
