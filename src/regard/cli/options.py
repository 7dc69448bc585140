"""The options of a command, and its settings `key=value`: mistyped ones are answered before anything runs."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

from cyclopts.exceptions import CycloptsError

from regard.cli.groups import app
from regard.config import OTHER_NAMES, RENAMED
from regard.errors import ConfigError

OF_ALL = ("--help", "--version")


def options_of(command: Callable[..., None]) -> list[tuple[str, type | None]]:
    """Return the options of a command: their names, and the dataclass of those that are the fields of one."""
    found: list[tuple[str, type | None]] = []
    for name, hint in get_type_hints(command).items():
        group = next((kind for kind in get_args(hint) if dataclasses.is_dataclass(kind)), None)
        fields = [(field.name, group) for field in dataclasses.fields(group)] if group else [(name, None)]
        found += [(field, kind if isinstance(kind, type) else None) for field, kind in fields if field != "return"]
    return found


def command_of(words: Sequence[str]) -> tuple[str, Callable[..., Any] | None, list[str]]:
    """Return the name of the command, its function, and the words that follow; no function if there is no such one."""
    try:
        chain, apps, rest = app.parse_commands(list(words))
    except CycloptsError:
        return "", None, list(words)
    command = apps[-1].default_command
    is_ours = command is not None and command.__module__.startswith("regard.")  # not that of --help
    return " ".join(chain), command if is_ours else None, list(rest)


def check_options(words: Sequence[str]) -> None:
    """Check that each word that begins with a hyphen is an option or a setting of the command.

    Words such as `threshold=0.3` and `output=runs/mine`, which mean an option, are answered too.

    Raises:
        ConfigError: a word is neither (C01); it offers the nearest.
    """
    name, command, rest = command_of(words)
    if command is None:
        return
    settings = set(_settings_of(name))
    options = [f"--{option.replace('_', '-')}" for option in _named(command)]
    before = ""
    for word in rest[: rest.index("--") if "--" in rest else None]:
        before, previous = word, before
        if previous in options and not word.startswith("-"):
            continue  # the value of an option
        key = word.partition("=")[0]
        option = f"--{key.lstrip('-').replace('_', '-')}"
        plain = key.lstrip("-").replace("-", "_")
        if name == "serve" and not word.startswith("-") and is_there(word.partition("=")[2]):
            continue  # a model by name: NAME=PATH
        is_option = key.startswith("--") and option in (*options, *OF_ALL)
        if is_option or plain in settings or not _is_about_an_option(word) or is_there(word):
            continue
        near = _nearest(key, plain, options, settings)
        if near is None and (not key.startswith("-") or (settings and key.startswith("--"))):
            continue  # settings are compared with those of the model, later
        remedy = f"did you mean {near!r}?" if near else f"see: regard {name} --help"
        raise ConfigError(f"unknown option {key!r}", remedy=remedy, code="C01")


def plain_settings(words: Sequence[str]) -> list[str]:
    """Rewrite `--lr=1e-4` and `--lr 1e-4` as `lr=1e-4` if the command takes settings and has no such option."""
    name, command, _ = command_of(words)
    if command is None or not any(True for _ in _settings_of(name)):
        return list(words)
    options = {f"--{option.replace('_', '-')}" for option in _named(command)} | {*OF_ALL}
    plain = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        key, equals, value = word.partition("=")
        if not key.startswith("--") or key == "--" or key in options:
            plain.append(word)
            continue
        if not equals:  # a negative number is a value, another option is not
            value = rest.pop(0) if rest and not rest[0].startswith("--") else ""
        plain.append(f"{key[2:].replace('-', '_')}={value}")
    return plain


def is_there(word: str) -> bool:
    """Return whether a word is an existing path. One that is too long for a path is not."""
    try:
        return Path(word).exists()
    except OSError:
        return False


def _named(command: Callable[..., Any]) -> list[str]:
    """Return the names of the arguments of a command that may be given by name."""
    parameters = inspect.signature(command).parameters
    plain = [name for name, one in parameters.items() if one.kind is one.VAR_POSITIONAL]
    return [name for name, _ in options_of(command) if name not in plain]


def _settings_of(name: str) -> Iterator[str]:
    """Yield the settings that a command takes, of all models: `lr`, `model.num_queries`, and `num_queries` too."""
    if name == "data shapes":
        from regard.data.generated.shapes import ShapesConfig

        yield from (field.name for field in dataclasses.fields(ShapesConfig))
    elif name in ("train", "distill cache"):
        from regard.models.configs import FAMILIES
        from regard.recipes.classification import ClassificationRecipe
        from regard.recipes.detection import DetectionRecipe
        from regard.recipes.retinanet import RetinaNetRecipe

        yield from (*OTHER_NAMES, *RENAMED)
        for recipe in (DetectionRecipe, RetinaNetRecipe, ClassificationRecipe):
            yield from (field.name for field in dataclasses.fields(recipe))
        for family in FAMILIES.values():
            for field in dataclasses.fields(family):
                yield from (field.name, f"model.{field.name}")


def _is_about_an_option(word: str) -> bool:
    """Return whether a word is `--name`, `-x` or `name=value`, and not `-`, a negative number or a path."""
    return re.fullmatch(r"--.+|-[^-\d.].*|[\w.-]+=.*", word, re.DOTALL) is not None


def _nearest(key: str, plain: str, options: Sequence[str], settings: set[str]) -> str | None:
    """Return the option that a mistyped one is nearest to; None if a setting is nearer, or nothing is near."""
    if re.fullmatch(r"-\w", key):
        begin = [option for option in options if option[2] == key[1]]
        return begin[0] if len(begin) == 1 else None
    by_name = {option[2:].replace("-", "_"): option for option in options}
    near = difflib.get_close_matches(plain.lower(), [*by_name, *settings], n=1, cutoff=0.6)
    # Of two that are as near, such as the setting `epochs` and the option, the spelling decides.
    if not near or (near[0] in settings and (near[0] not in by_name or not key.startswith("-"))):
        return None
    return by_name[near[0]]
