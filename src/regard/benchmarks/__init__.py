"""Speed next to the peers: `regard benchmark NAME`. One file, one comparison."""

from __future__ import annotations

from pathlib import Path

from regard.config import unknown_name


def run_benchmark(name: str, data: Path | None, rounds: int) -> None:
    """Run a benchmark by name and print its table."""
    names = ("loading", "losses")
    if name == "loading":
        from regard.benchmarks.loading import main

        main(data, rounds)
    elif name == "losses":
        from regard.benchmarks.losses import main as compare_losses

        compare_losses(rounds)
    else:
        raise unknown_name("benchmark", name, names, code="C01")
