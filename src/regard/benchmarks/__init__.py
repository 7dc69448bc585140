"""Speed next to the peers: `regard benchmark NAME`. One file, one comparison."""

from __future__ import annotations

from pathlib import Path

from regard.config import unknown_name
from regard.errors import ConfigError


def run_benchmark(name: str, data: Path | None, rounds: int) -> None:
    """Run a benchmark by name and print its table."""
    if rounds < 1:
        raise ConfigError(f"rounds={rounds}, expected at least 1", code="C03")
    names = ("loading", "losses")
    if name == "loading":
        from regard.benchmarks.loading import main

        main(data, rounds)
    elif name == "losses":
        if data is not None:
            raise ConfigError("losses are measured without data", remedy="leave --data out", code="C09")
        from regard.benchmarks.losses import main as compare_losses

        compare_losses(rounds)
    else:
        raise unknown_name("benchmark", name, names, code="C01")
