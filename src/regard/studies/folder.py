"""The folder of a study: whose it is, and that it is not another's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from regard.errors import ConfigError
from regard.safe_files import is_used, make_writable, replace_text

FORMAT = 2  # of study.json of the studies with tables; 1 had no such entry


def claim(output: Path, plan: Mapping[str, Any]) -> None:
    """Prepare the folder of a study: a new one, or that of the same study, which is then resumed.

    Raises:
        ConfigError: the folder holds something else (C11).
    """
    found = plan_of(output)
    if found is None:
        make_writable(output)
        replace_text(output / "study.json", json.dumps(plan, indent=2))
    elif _without_grant(found) != _without_grant(plan) or bool(found.get("budget")) != bool(plan.get("budget")):
        remedy = "name another folder, or repeat the command of the first time"
        if found.get("format") != plan.get("format"):
            raise ConfigError(
                "a study of another version is here", where=output, remedy="name another folder", code="C11"
            )
        names = [name for name in {**found, **plan} if found.get(name) != plan.get(name)]
        changed = ", ".join(f"{name}={found.get(name)}" for name in names)
        raise ConfigError(f"another study is here, with {changed}", where=output, remedy=remedy, code="C11")
    elif found != dict(plan):
        replace_text(output / "study.json", json.dumps(plan, indent=2))


def _without_grant(plan: Mapping[str, Any]) -> dict[str, Any]:
    """Return a plan without what a budget granted, which more seeds change."""
    return {name: value for name, value in plan.items() if name != "budget"}


def plan_of(output: Path) -> dict[str, Any] | None:
    """Return what a study wrote of itself, None for a folder that is not used.

    Raises:
        ConfigError: the folder holds something else (C11).
    """
    described = output / "study.json"
    try:
        found = json.loads(described.read_text())
    except (OSError, ValueError):
        found = None
    if isinstance(found, dict):
        return found
    if is_used(output):
        raise ConfigError("the output folder is not empty", where=output, remedy="name another folder", code="C11")
    return None
