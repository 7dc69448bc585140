"""The models that a user names to be served. No torch, so that a mistyped name is answered at once."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from regard.errors import ConfigError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def named_sources(words: Sequence[str]) -> dict[str, str]:
    """Return the models to serve by name: `name=path`, or a path or model whose name is that of its file or folder.

    Raises:
        ConfigError: a name is used twice (C09), or cannot be part of an address (C02).
    """
    found: dict[str, str] = {}
    for word in words:
        name, equals, source = word.partition("=")
        if not equals or Path(word).exists() or "/" in name:
            path = Path(word)
            name, source = (path.stem if path.is_file() else path.name or path.resolve().name), word
        if not NAME.fullmatch(name):
            what = f"name of a model {name!r}, expected letters, digits, '.', '_' and '-'"
            remedy = f"name it: regard serve {shlex.quote(f'model={source}')}"
            raise ConfigError(what, where=word, remedy=remedy, code="C02")
        if name in found:
            remedy = f"name it: regard serve {shlex.quote(f'{name}-2={source}')}"
            raise ConfigError(f"two models have the name {name!r}", where=word, remedy=remedy, code="C09")
        found[name] = source
    return found
