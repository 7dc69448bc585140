"""Whether a run can go on from its checkpoint: what differs, in the words of the user's settings."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from regard.config import RENAMED, read_yaml, to_mapping
from regard.errors import ConfigError

# Settings that no run can change, beside those of the model: the units of its epochs, and what the model is for.
_KEPT = ("data", "train_images", "annotations", "batch_size", "accumulate", "short_side", "max_size", "crop_pct")
_MAX_TEXT = 60  # characters of a value


def check_same_run(before: Mapping[str, Any], now: Mapping[str, Any], config: Any, run: Path) -> None:
    """Check that the state of a checkpoint is that of the run as it is set now.

    Args:
        before: values of the checkpoint, nested; those of `now` that it lacks came later, and had their default.
        now: the same values of this training. `data` are fingerprints of the splits.
        config: the settings of this training.
        run: the run's folder, whose config.yaml has the settings of before.

    Raises:
        ConfigError: they differ (C13), or the data do and `data_may_change` is not set (T19).
    """
    may_change = {"data"} if config.data_may_change else set()
    kept = {key: value for key, value in before.items() if key in now and key not in may_change}
    differences = _differences(kept, now)
    if not differences:
        return
    changed: list[tuple[str, Any, Any]] = []
    with suppress(ConfigError):  # no file, or one that was spoiled
        changed = _changed_settings(read_yaml(run / "config.yaml"), to_mapping(config))
    if changed:
        raise _refusal(changed, run)
    splits = [path.removeprefix("data.") for path, _, _ in differences if path.startswith("data.")]
    if len(splits) == len(differences):
        what = f"annotations, names or sizes of images changed since the run began: {' and '.join(splits)}"
        remedy = f"restore them, or accept the change: {_going_on(run)}"
        raise ConfigError(what, where=run, remedy=remedy, code="T19")
    found = "; ".join(f"{_in_words(path)} {_text(old)}, now {_text(new)}" for path, old, new in differences)[:300]
    remedy = _other_batch(before, now, config) or "resume with the same data and as many processes as before"
    raise ConfigError(f"another training than before: {found}", where=run, remedy=remedy, code="C13")


def _going_on(run: Path) -> str:
    return shlex.join(["regard", "train", "--output", str(run), "--resume", "data_may_change=true"])


def _other_batch(before: Mapping[str, Any], now: Mapping[str, Any], config: Any) -> str | None:
    """Return the setting with which these processes see as many images in a batch as those of before; None if none."""
    images, ours = (values.get("units", {}).get("images_per_batch") for values in (before, now))
    if not images or not ours or images == ours:
        return None
    processes = ours // config.batch_size
    return None if images % processes else f"add batch_size={images // processes}, or resume with as many processes"


def _refusal(changed: Sequence[tuple[str, Any, Any]], run: Path) -> ConfigError:
    settings = "; ".join(f"{name} was {_text(old)}, is {_text(new)}" for name, old, new in changed)
    words = [f"{name}={_text(new)}" for name, _, new in changed]
    if not any(name.startswith("model.") for name, _, _ in changed):  # else its weights may not fit
        words.append(f"start_from={run}")
    command = shlex.join(["regard", "train", "--config", str(run / "config.yaml"), *words])
    names = ", ".join(name for name, _, _ in changed)
    return ConfigError(f"{settings}", where=run, remedy=f"leave out {names}, or start a new run: {command}", code="C13")


def _changed_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return the settings that a run keeps and that differ: name, value before, value now."""
    old = _flat({RENAMED.get(name, name): value for name, value in before.items()})
    changed = [
        (name, old[name], value)
        for name, value in _flat(now).items()
        if name in old and old[name] != value and (name in _KEPT or name.startswith("model."))
    ]
    if any(name == "data" for name, _, _ in changed):  # which decide the number of classes
        changed = [row for row in changed if row[0] != "model.num_classes"]
    return changed


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found


def _differences(old: Any, new: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    """Return path and both values of all that differs between two nested dictionaries, if the old one has it."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return [found for key in old for found in _differences(old.get(key), new.get(key), f"{path}.{key}")]
    return [] if old == new else [(path.strip("."), old, new)]


def _in_words(path: str) -> str:
    known = {
        "units.batches_per_epoch": "batches of an epoch:",
        "units.images_per_batch": "images of a batch:",
        "model_state.categories": "classes:",
    }
    return known.get(path, f"{path.replace('model_state.config.', 'model.').removeprefix('units.')}:")


def _text(value: Any) -> str:
    """Return a value as it is written in a setting; of categories their names."""
    if isinstance(value, (list, tuple)):
        names = [str(one[1]) if isinstance(one, (list, tuple)) and len(one) > 1 else str(one) for one in value]
        text = ",".join(names)
    else:
        text = "none" if value is None else str(value)
    return text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}..."
