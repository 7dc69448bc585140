"""Check the name or path of a model with weights, without importing torch, so that a typo is reported at once."""

from __future__ import annotations

from pathlib import Path

from regard.config import near_path
from regard.errors import CheckpointError, ConfigError
from regard.models.catalog import LIST_THEM, WEIGHTS, list_models

EXAMPLE = "example"  # the name of the model in this package


def example_model() -> Path:
    """Return the run in this package: a small detector of generated images, to look at without a download."""
    return Path(__file__).parent / "example"


def check_source(source: str | Path) -> None:
    """Check that `source` is an existing run or file, a file name, `example`, or a model with released weights.

    Raises:
        CheckpointError: a file name, but no such file (K01).
        ConfigError: no such run, an unknown name, or a model without released weights (K01).
    """
    path = Path(source)
    if path.exists() or str(source) == EXAMPLE:
        return
    if path.suffix and path.name not in list_models():
        raise CheckpointError("no such file", where=path, remedy=near_path(path), code="K01")
    name = str(source)
    if name not in list_models() and len(path.parts) > 1:
        raise ConfigError("no such run or file", where=name, remedy=near_path(path), code="K01")
    if name not in list_models():
        remedy = near_path(path, list_models(), otherwise=LIST_THEM)
        raise ConfigError(f"unknown model, run or file {name!r}", remedy=remedy, code="K01")
    if name not in WEIGHTS:
        what = f"there are no released weights of {name}"
        raise ConfigError(what, remedy=f"train it: regard train {name} --data DIR", code="K01")
