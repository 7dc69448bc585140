"""Errors of the parser of command lines, in the words of ours."""

from __future__ import annotations

import re
from collections.abc import Sequence

from cyclopts.exceptions import CoercionError, CycloptsError, MissingArgumentError, UnusedCliTokensError

from regard.cli.groups import app
from regard.errors import ConfigError

_KINDS = {int: "a whole number", float: "a number", bool: "true or false"}


def as_usage_error(error: CycloptsError, words: Sequence[str]) -> ConfigError:
    """Return an error of the parser as one of ours: what is missing or wrong, and what it should be.

    words: of the command line.
    """
    command = " ".join(["regard", *(error.command_chain or ())])
    help_of = f"see: {command} --help"
    if isinstance(error, MissingArgumentError) and error.argument is not None:
        name, meaning = error.argument.name, _meaning(error.argument.name, words)
        if error.keyword is not None or error.argument.tokens:
            return ConfigError(f"{error.keyword or name} needs a value: {meaning}", remedy=help_of)
        name = name.lstrip("-").upper() if error.argument.field_info.is_positional else name
        return ConfigError(f"{command} needs {name}: {meaning}", remedy=help_of)
    if isinstance(error, CoercionError) and error.argument is not None and error.token is not None:
        kind = next((text for kind, text in _KINDS.items() if error.target_type in (kind, kind | None)), None)
        if kind is not None:
            what = f"{error.token.keyword or error.argument.name} {error.token.value}, expected {kind}"
            return ConfigError(what, remedy=help_of)
    if isinstance(error, UnusedCliTokensError) and error.unused_tokens:
        return ConfigError(f"one word too many: {error.unused_tokens[0]!r}", remedy=help_of)
    return ConfigError(" ".join(str(error).split()))


def _meaning(name: str, words: Sequence[str]) -> str:
    """Return the first sentence of the help about an argument of a command."""
    _, apps, _ = app.parse_commands(list(words))
    arguments = apps[-1].assemble_argument_collection(parse_docstring=True)
    text = next((argument.parameter.help for argument in arguments if argument.name == name), None)
    return re.split(r"\.(?: |$)|; ", " ".join((text or "a value").split()))[0]
