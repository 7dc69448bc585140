"""Files without a class layer, as people make them to fine-tune: training can start from them, and nothing else."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

from regard.errors import ArchitectureError
from regard.models.build import Model
from regard.models.configs import CONFIGS


def mark_headless(net: Model, to_train: bool, where: str | Path) -> None:
    """Mark a model whose file has no class layer: its card gets no categories.

    Args:
        net: the model.
        to_train: whether training starts from it; otherwise that is an error.
        where: the file, for the error.

    Raises:
        CheckpointError: the model is not loaded to train (K07).
    """
    if not to_train:
        name = net.card.name if net.card.name in CONFIGS else "MODEL"
        what = f"weights of {net.card.name} without its class layer"
        start = shlex.quote(f"start_from={where}")
        remedy = f"train a new one: regard train {name} --data DIR {start}"
        raise ArchitectureError(what, where=where, remedy=remedy, code="K07")
    net.card = replace(net.card, categories=())
