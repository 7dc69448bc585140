"""Settings: frozen dataclasses from YAML files and `key=value` words, every key and value checked.

A setting is named by its path: `lr`, `model.num_queries`. Unknown names are answered with the nearest known one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import itertools
import math
import os
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from regard.errors import ConfigError, unknown_name

T = TypeVar("T")
MAX_WHOLE = 2**63 - 1  # of a setting: that of 64 bits
MAX_BYTES = 1_000_000  # bytes of YAML
MAX_ENTRIES = 10_000  # of a folder, among which a missing name is looked for
MAX_NODES = 10_000  # values of YAML, aliases counted as often as they are used

# Settings of earlier versions and their names now. Old config.yaml files and checkpoints keep loading.
RENAMED = {
    "least_lr": "min_lr",
    "drop_at": "milestones",
    "clip_norm": "max_norm",
    "repeats": "repeated_augmentation",
    "crop_ratio": "crop_pct",
}


def apply_overrides(config: T, overrides: Sequence[str], where: str | None = None) -> T:
    """Return `config` with settings replaced by words such as `lr=1e-4` or `model.num_queries=300`.

    All are applied at once, so settings that must fit each other may come in any order. The last word for a setting
    wins.
    """
    values: dict[str, Any] = {}
    for word in overrides:
        key, equals, text = word.partition("=")
        key = key.removeprefix("--")
        if not (key and equals):
            raise ConfigError(f"expected key=value, got {word!r}", where=where, code="C01")
        *groups, name = key.split(".")
        place = values
        for group in groups:
            place = place.setdefault(group, {})
            if not isinstance(place, dict):
                raise ConfigError(f"{group} is a group of settings, got {place!r}", where=where, code="C02")
        place[name] = text
    return apply_mapping(config, values, where=where)


def as_words(overrides: Mapping[str, Any] | Sequence[str]) -> tuple[str, ...]:
    """Return overrides as words: `{"lr": 1e-3, "model": {"num_queries": 50}}` as `lr=0.001`, `model.num_queries=50`.

    Raises:
        ConfigError: they are neither a mapping nor words (C01).
    """
    if isinstance(overrides, Mapping):
        return tuple(word for name, value in overrides.items() for word in _words_of(str(name), value))
    if isinstance(overrides, str) or not all(isinstance(word, str) for word in overrides):
        what = f"overrides={overrides!r:.80}, expected a mapping or a list of words"
        raise ConfigError(what, remedy='write overrides={"lr": 0.001}, or overrides=["lr=0.001"]', code="C01")
    return tuple(overrides)


def _words_of(name: str, value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return [word for inner, one in value.items() for word in _words_of(f"{name}.{inner}", one)]
    if isinstance(value, (list, tuple)):
        value = ",".join(map(str, value)) or None  # an empty list is none, as in words
    return [f"{name}={value}"]


def apply_mapping(config: T, values: Mapping[str, Any], where: str | None = None, prefix: str = "") -> T:
    """Return `config` with settings replaced by those of a nested mapping.

    Raises:
        ConfigError: an unknown key, a value of the wrong type, or one that the dataclass refuses.
    """
    known = {f.name: f for f in dataclasses.fields(config) if f.init}  # type: ignore[arg-type]
    hints = get_type_hints(type(config))
    changes: dict[str, Any] = {}
    for old, value in values.items():
        key = old if old in known else RENAMED.get(old, old)
        path = f"{prefix}{key}"
        if key != old and key in values:
            what = f"{prefix}{old} is the earlier name of {path}, and both are set"
            raise ConfigError(what, where=where, remedy=f"set {path} alone", code="C12")
        if key not in known:
            raise _unknown_setting(config, str(key), prefix, where)  # YAML has keys such as `on`, a boolean
        present = getattr(config, key)
        if dataclasses.is_dataclass(present):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{path} is a group of settings, got {value!r}", where=where, code="C02")
            changes[key] = apply_mapping(present, value, where, f"{path}.")
        else:
            changes[key] = _convert(value, hints[key], path, where)
    return dataclasses.replace(config, **changes)  # type: ignore[type-var]


# What other programs call a setting.
OTHER_NAMES = {
    "learning_rate": "lr", "batch": "batch_size", "imgsz": "short_side", "d_model": "embed_dim",
    "hidden_dim": "embed_dim", "nheads": "num_heads", "enc_layers": "encoder_layers", "dec_layers": "decoder_layers",
    "dim_feedforward": "feedforward_dim", "lr_drop": "milestones", "clip_max_norm": "max_norm",
}  # fmt: skip


def _unknown_setting(config: Any, name: str, prefix: str, where: str | None) -> ConfigError:
    """Return the error for a setting that a dataclass lacks. It offers one with this name in a group first."""
    paths: dict[str, str] = {}  # last part of a path -> path, of the dataclass's own settings first
    for field in dataclasses.fields(config):
        group = getattr(config, field.name)
        if dataclasses.is_dataclass(group):
            for inner in dataclasses.fields(group):
                paths.setdefault(inner.name, f"{prefix}{field.name}.{inner.name}")
    paths |= {field.name: f"{prefix}{field.name}" for field in dataclasses.fields(config)}
    wanted = name.lower()
    wanted = OTHER_NAMES.get(next(iter(difflib.get_close_matches(wanted, OTHER_NAMES, 1, 0.85)), ""), wanted)
    near = difflib.get_close_matches(wanted, paths, n=1, cutoff=0.6)
    if wanted in paths or near:
        remedy = f"did you mean {paths[wanted if wanted in paths else near[0]]!r}?"
    else:
        own_first = sorted(paths.values(), key=lambda path: path.removeprefix(prefix).count("."))
        remedy = f"known: {', '.join(own_first)}"
    return ConfigError(f"unknown key {prefix + name!r}", where=where, remedy=remedy, code="C01")


def check_choices(config: Any) -> None:
    """Check the values of settings made in Python against the `Literal` of their fields.

    Raises:
        ConfigError: a value that is not among those of the `Literal` (C02).
    """
    for name, kind in get_type_hints(type(config)).items():
        value = getattr(config, name)
        values: tuple[Any, ...] = (value,)
        inner = next((part for part in get_args(kind) if get_origin(part) is tuple), None)
        if inner is not None:  # several values, or None
            kind, values = get_args(inner)[0], value or ()
        for one in values if get_origin(kind) is Literal else ():
            if one not in get_args(kind):
                raise unknown_name(f"value of {name}", str(one), [str(a) for a in get_args(kind)], code="C02")


def to_mapping(config: Any) -> dict[str, Any]:
    """Return settings as plain nested dictionaries, for YAML and JSON."""
    return {
        f.name: to_mapping(value) if dataclasses.is_dataclass(value := getattr(config, f.name)) else _plain(value)
        for f in dataclasses.fields(config)
    }


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read the mapping in a YAML file. Tags, duplicate keys and expanding aliases are refused."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        remedy = near_path(path) if isinstance(error, FileNotFoundError) else None
        raise ConfigError(f"cannot read the settings: {_reason(error)}", where=path, remedy=remedy) from error
    if len(text) > MAX_BYTES:
        raise ConfigError(f"{len(text)} bytes of settings, expected at most {MAX_BYTES}", where=path, code="C12")
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        _check_node(node, path)
        content = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: an impossible date, a number of 5,000 digits
        if isinstance(error, ConfigError):
            raise
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or f"not YAML ({error})"
        raise ConfigError(f"{problem}", where=f"{path}{line}", remedy="correct the file", code="C12") from error
    except RecursionError as error:
        raise ConfigError("settings are nested too deeply", where=path, code="C12") from error
    if not isinstance(content, dict):
        raise ConfigError("expected settings as `key: value` lines", where=path, code="C12")
    return content


def line_of(path: str | Path, key: str) -> str:
    """Return `file:line` of a dotted key in a YAML file, or the file alone if the key is not found."""
    node = yaml.compose(Path(path).read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    line = None
    for part in key.split("."):
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        found = [(k, v) for k, v in pairs if k.value == part]
        if not found:
            break
        line, node = found[0][0].start_mark.line + 1, found[0][1]
    return f"{path}:{line}" if line else str(path)


def near_path(path: Path, names: Sequence[str] = (), otherwise: str = "check the path") -> str:
    """Return the remedy for a missing path: the nearest existing path or the nearest of `names`, else `otherwise`.

    A folder on the way is corrected too: `photo/a.jpg` is answered with `photos/a.jpg`. Capitals do not count.
    """
    found = None
    with contextlib.suppress(OSError, ValueError):  # too long for a path, a folder that cannot be read, a NUL
        found = _nearest(path, names)
    return f"did you mean {found}?" if found else otherwise


def _nearest(path: Path, names: Sequence[str] = ()) -> Path | str | None:
    missing = path  # the first part that is not there, and what is before it
    while not missing.parent.is_dir():
        missing = missing.parent
    with os.scandir(missing.parent) as entries:
        beside = [entry.name for entry in itertools.islice(entries, MAX_ENTRIES) if not entry.name.startswith(".")]
    beside = [name for name in beside if name != missing.name]  # a file, where a folder is expected
    known = {name.casefold(): name for name in [*beside, *(names if missing == path else ())]}
    near = difflib.get_close_matches(missing.name.casefold(), known, n=1)
    if not near:
        return None
    name = known[near[0]]
    corrected = missing.parent / name
    if missing == path:
        return name if name in names else corrected
    whole = corrected / path.relative_to(missing)
    return whole if whole.exists() else _nearest(whole) or corrected


def _convert(value: Any, kind: Any, path: str, where: str | None) -> Any:
    """Convert `value` to the type of its setting if nothing is lost."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        if value is None or (isinstance(value, str) and value.lower() in ("none", "null")):
            return None
        (kind,) = [a for a in arguments if a is not type(None)]
        return _convert(value, kind, path, where)
    if origin is tuple:  # of any length: `0.3,0.6` or `[0.3,0.6]` in words, or a single value
        parts = value if isinstance(value, (list, tuple)) else [value]
        if isinstance(value, str):
            parts = [part.strip() for part in value.strip("[] ").split(",")]
        return tuple(_convert(part, arguments[0], path, where) for part in parts)
    if origin is Literal:
        # YAML 1.1 reads the words on and off as booleans.
        value = {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value
        if value not in arguments:
            raise unknown_name(f"value of {path}", str(value), [str(a) for a in arguments], where=where, code="C02")
        return value
    converted = _to_number(value, kind) if kind in (int, float, bool) else value
    if isinstance(converted, int) and abs(converted) > MAX_WHOLE:  # arithmetic with floats would fail
        raise ConfigError(f"{path}={value!r:.40}, expected at most 2^63 - 1", where=where, code="C03")
    if kind is Any or isinstance(converted, kind):
        return converted
    wanted = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[kind]
    raise ConfigError(f"{path}={value!r:.80}, expected {wanted}", where=where, code="C02")


def _to_number(value: Any, kind: type) -> Any:
    if kind is bool:
        words = {"true": True, "false": False, "yes": True, "no": False, "on": True, "off": False}
        return words.get(value.lower(), value) if isinstance(value, str) else value
    if isinstance(value, bool):
        return value if kind is bool else None
    try:
        number = float(value) if kind is float or isinstance(value, float) else int(value)
    except (TypeError, ValueError, OverflowError):
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            return None
    if kind is float:
        return number if math.isfinite(number) else None
    return int(number) if isinstance(number, int) or number.is_integer() else None


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _check_node(node: yaml.Node | None, path: Path) -> None:
    """Refuse duplicate keys, tags of Python objects, and files that grow when aliases are followed."""
    count = 0
    waiting = [node]
    while waiting:
        node = waiting.pop()
        count += 1
        if node is None:
            continue
        at = f"{path}:{node.start_mark.line + 1}"
        if count > MAX_NODES:
            raise ConfigError(f"more than {MAX_NODES} values, aliases followed", where=path, code="C12")
        if not node.tag.startswith("tag:yaml.org,2002:") or "python" in node.tag:
            raise ConfigError(f"tag {node.tag!r} is not allowed", where=at, remedy="use plain values", code="C12")
        if isinstance(node, yaml.MappingNode):
            keys = [key.value if isinstance(key.value, str) else None for key, _ in node.value]
            twice = {key for key in keys if keys.count(key) > 1}
            if twice:
                raise ConfigError(f"duplicate key {min(map(str, twice))!r}", where=at, code="C12")
            waiting += [value for _, value in node.value]
        elif isinstance(node, yaml.SequenceNode):
            waiting += node.value


def _reason(error: Exception) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else "it is not UTF-8 text"
