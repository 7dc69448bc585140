"""Regard: vision models built on attention. Importing it is cheap: torch comes with the first name that needs it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from regard.explanations.explain import explain as explain
    from regard.models.augment import augment as augment
    from regard.models.build import create as create
    from regard.models.catalog import list_models as list_models
    from regard.prediction.predict import predict as predict
    from regard.runs import train as train
    from regard.runs.run import evaluate as evaluate
    from regard.weights.load import load as load

__version__ = "0.1.0"

_HOMES = {
    "augment": "regard.models.augment",
    "create": "regard.models.build",
    "evaluate": "regard.runs.run",
    "explain": "regard.explanations.explain",
    "list_models": "regard.models.catalog",
    "load": "regard.weights.load",
    "predict": "regard.prediction.predict",
    "train": "regard.runs",
}
__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'regard' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
