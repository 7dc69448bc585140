"""Commands in messages, as the user's shell knows them."""

from __future__ import annotations

import os
import re

from regard.cli.groups import app
from regard.errors import RegardError, Stopped


def as_typed(text: str) -> str:
    """Return text with `uv run` before each `regard COMMAND`, or its `torchrun`, if `uv run` started this process.

    uv sets `UV` in the environment; the shell that called it does not know the name `regard`.
    """
    if "UV" not in os.environ:
        return text
    names = "|".join(name for name in app if not name.startswith("-"))
    launcher = r"((?:torchrun [^;]*?-m )?)"
    return re.sub(rf"(?<!uv run )\b{launcher}regard (?=(?:{names})\b)", r"uv run \1regard ", text)


def error_line(error: RegardError) -> str:
    """Return the line of an error with the commands of its remedy as they are typed; file names stay as they are."""
    if isinstance(error, Stopped):
        return as_typed(error.line)
    remedy = error.remedy and as_typed(error.remedy)
    return RegardError(error.what, where=error.where, remedy=remedy, code=error.code).line
