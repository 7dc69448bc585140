"""Comparisons as commands: `regard study NAME`. One file, one study."""

from __future__ import annotations

import math
from pathlib import Path

from regard.config import unknown_name
from regard.errors import ConfigError


def run_study(name: str, minutes: float, output: Path) -> None:
    """Run a study by name; tables and pictures go to `output`."""
    from regard.studies.convergence import convergence

    studies = {"convergence": convergence}
    if name not in studies:
        raise unknown_name("study", name, list(studies), code="C01")
    if not 0 < minutes < math.inf:
        raise ConfigError(f"minutes={minutes}, expected more than 0", code="C03")
    studies[name](minutes, output)
