"""What files keep of a model besides its weights: enough to build it again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from regard.config import apply_mapping, to_mapping
from regard.errors import NewerVersionError
from regard.models.build import Model
from regard.models.configs import FAMILIES, ModelConfig
from regard.models.detr import DETR


def model_state(net: Model) -> dict[str, Any]:
    """Return the JSON values from which `load` rebuilds the model; checkpoints store them with the weights."""
    card = net.card
    pixels = net.backbone.normalization if isinstance(net, DETR) else None
    return {
        "model": card.name,
        "family": type(net.config).__name__,
        "config": to_mapping(net.config),
        "categories": [[c.id, c.name, c.is_thing] for c in card.categories],
        "sizes": [card.short_side, card.max_size],
        "crop_pct": card.crop_pct,
        "resize": {"squash": card.squash, "interpolation": card.interpolation, "crop_rounding": card.crop_rounding},
        "panoptic": card.panoptic,
        "normalization": None if pixels is None else [[*values] for values in pixels],
    }


def config_of(state: Mapping[str, Any], where: Path) -> ModelConfig:
    """Return the settings of a model from its state.

    Raises:
        NewerVersionError: this version does not know the family (K19).
        ConfigError: it does not know a setting, or a value is wrong.
    """
    if state.get("family") not in FAMILIES:
        what = f"a model of the family {state.get('family')!r:.60}, which this version does not know"
        raise NewerVersionError(what, where=where, remedy="upgrade Regard: git pull in its clone", code="K19")
    return apply_mapping(FAMILIES[state["family"]], state["config"], where=str(where))
