"""Errors that a user can act on.

Every message is one line: what was found, where, and what to do. The command line prints that line alone and
leaves with `exit_code`; `regard --debug` shows the traceback as well.
"""

from __future__ import annotations

from pathlib import Path


class RegardError(Exception):
    """A failure with a known cause.

    Args:
        what: what was found and what was expected, without a full stop.
        where: the file, and the place in it (`ann.json:/annotations/3/bbox`, `cfg.yaml:12`, `lr`).
        remedy: what the user can do.
        code: short stable name of the case, shown as `error[I04]`, for people who search for it.
    """

    exit_code = 1

    def __init__(
        self,
        what: str,
        *,
        where: str | Path | None = None,
        remedy: str | None = None,
        code: str | None = None,
    ) -> None:
        self.what = what
        self.where = None if where is None else str(where)
        self.remedy = remedy
        self.code = code
        parts = [part for part in (what, self.where, remedy) if part]
        super().__init__(escape(" — ".join(parts)))

    @property
    def line(self) -> str:
        """The line that the command line prints."""
        return f"error[{self.code}]: {self}" if self.code else f"error: {self}"

    def __reduce__(self) -> tuple:
        # Exceptions cross process borders (data-loader workers), and the default recipe drops keyword arguments.
        return _rebuild, (type(self), self.what, self.where, self.remedy, self.code)


class ConfigError(RegardError, ValueError):
    """A setting, a name or a combination of them is wrong."""

    exit_code = 2


class DataError(RegardError, ValueError):
    """An image, an annotation or a data set is wrong."""

    exit_code = 3


class ImageError(DataError):
    """One image file cannot be used; the rest of its data set may be fine."""


class CheckpointError(RegardError):
    """A file with weights or training state is wrong."""

    exit_code = 4


class DivergedError(RegardError, FloatingPointError):
    """A prediction, a loss or a gradient is no longer finite."""

    exit_code = 5


class MachineError(RegardError, OSError):
    """The machine cannot do it: device, disk, port, network or missing package."""

    exit_code = 6


def escape(text: str) -> str:
    """`text` on one line and free of control characters: file names may hold newlines and terminal codes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _rebuild(
    kind: type[RegardError], what: str, where: str | None, remedy: str | None, code: str | None
) -> RegardError:
    return kind(what, where=where, remedy=remedy, code=code)
