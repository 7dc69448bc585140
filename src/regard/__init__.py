"""Regard: vision models built on attention. Importing it is cheap: torch comes with the first name that needs it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from regard.errors import RegardError as RegardError
    from regard.evaluation import evaluate as evaluate
    from regard.explanations.explain import explain as explain
    from regard.exporting.export import export as export
    from regard.models.augment import augment as augment
    from regard.models.build import create as create
    from regard.models.catalog import list_models as list_models
    from regard.models.engine import optimize as optimize
    from regard.prediction.predict import predict as predict
    from regard.results.classification import Classification as Classification
    from regard.results.detections import Detections as Detections
    from regard.results.segmentation import Segmentation as Segmentation
    from regard.runs import train as train
    from regard.weights.load import load as load

__version__ = "0.1.0"

_HOMES = {
    "Classification": "regard.results.classification",
    "Detections": "regard.results.detections",
    "RegardError": "regard.errors",
    "Segmentation": "regard.results.segmentation",
    "augment": "regard.models.augment",
    "create": "regard.models.build",
    "evaluate": "regard.evaluation",
    "explain": "regard.explanations.explain",
    "export": "regard.exporting.export",
    "list_models": "regard.models.catalog",
    "load": "regard.weights.load",
    "optimize": "regard.models.engine",
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
