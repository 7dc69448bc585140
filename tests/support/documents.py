"""What a reader can paste from a page in Markdown."""

import re
import shlex


def blocks(text: str, language: str) -> list[str]:
    """The blocks of code in a language."""
    return re.findall(rf"```{language}\n(.*?)```", text, re.S)


def console_lines(text: str) -> list[str]:
    """The lines of all consoles, without comments, and `uv run ...` within sentences and tables."""
    lines = [line.split(" #")[0].strip() for block in blocks(text, "console") for line in block.splitlines()]
    return [line for line in lines if line] + re.findall(r"`(uv run [^`]+)`", text)


def regard_commands(text: str) -> list[list[str]]:
    """The words after `regard` of each command."""
    found = (re.search(r"(?:uv run|-m) regard (.+)", line) for line in console_lines(text))
    return [shlex.split(command[1]) for command in found if command and command[1] != "..."]
