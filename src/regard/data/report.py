"""What a check of a data set found that is worth a line but does not stop the work."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from regard.errors import DataError, escape

# fix: repaired on reading. skip: left out of training. warn: used as it is.
Severity = Literal["fix", "skip", "warn"]


@dataclass(frozen=True)
class Issue:
    """One kind of finding: how often, and where first."""

    code: str
    severity: Severity
    what: str
    where: str
    count: int = 1

    def __str__(self) -> str:
        first = "" if self.count == 1 else "first: "
        return escape(f"{self.severity}[{self.code}]: {self.what} — {first}{self.where}")


class Report:
    """The findings of one file. `print(report)` gives one line per kind of finding."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.issues: list[Issue] = []

    def add(self, code: str, severity: Severity, what: str, *place: str | int, count: int = 1) -> None:
        """Note a finding. `place`: the keys and indices that lead to the first case in the JSON document."""
        self.issues.append(Issue(code, severity, what, self.at(*place), count))

    def error(self, code: str, what: str, *place: str | int, remedy: str | None = None) -> DataError:
        """The error to raise for something at `place` that cannot be used."""
        return DataError(what, where=self.at(*place), remedy=remedy, code=code)

    def at(self, *place: str | int) -> str:
        """`ann.json:/annotations/3/bbox`, the file and the JSON pointer (RFC 6901) in it."""
        keys = (str(key).replace("~", "~0").replace("/", "~1") for key in place)
        return f"{self.path}:" + "".join(f"/{key}" for key in keys) if place else str(self.path)

    def __str__(self) -> str:
        return "\n".join(str(issue) for issue in self.issues)
