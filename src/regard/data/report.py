"""Issues that a check of a data set found and that do not stop the work, one line each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from regard.errors import DataError, escape

# fix: repaired on reading. skip: left out of training. warn: used as it is.
Severity = Literal["fix", "skip", "warn"]


@dataclass(frozen=True)
class Issue:
    """One kind of problem in a data set.

    Args:
        code: short stable name, such as `A46`.
        what: the problem and what was done about it.
        where: file and place of the first case.
        count: number of cases.
    """

    code: str
    severity: Severity
    what: str
    where: str
    count: int = 1

    def __str__(self) -> str:
        first = "" if self.count == 1 else "first: "
        return escape(f"{self.severity}[{self.code}]: {self.what} — {first}{self.where}")


class Report:
    """The issues of one file. `print(report)` gives one line for each.

    Args:
        path: the annotation file, or what names the data set where each image has a file of its own.
        places: where the user finds a value of COCO's tables that were made from another format, such as
            `labels/train/a.txt:3`. Without it places are JSON pointers in `path`.
    """

    def __init__(self, path: str | Path, places: Callable[[tuple[str | int, ...]], str] | None = None) -> None:
        self.path = Path(path)
        self.places = places
        self.issues: list[Issue] = []

    def add(self, code: str, severity: Severity, what: str, *place: str | int, count: int = 1) -> None:
        """Add an issue. `place`: keys and indices of the first case in the JSON document."""
        self.issues.append(Issue(code, severity, what, self.at(*place), count))

    def add_at(self, code: str, severity: Severity, what: str, where: str, count: int = 1) -> None:
        """Add an issue. `where`: the place of the first case as it is shown, such as `labels/train/a.txt:3`."""
        self.issues.append(Issue(code, severity, what, where, count))

    def error(self, code: str, what: str, *place: str | int, remedy: str | None = None) -> DataError:
        """Return the error to raise for a value at `place` that cannot be used."""
        return DataError(what, where=self.at(*place), remedy=remedy, code=code)

    def at(self, *place: str | int) -> str:
        """Return the file and the place in it, as a JSON pointer (RFC 6901): `ann.json:/annotations/3/bbox`."""
        if place and self.places is not None:
            return self.places(place)
        keys = (str(key).replace("~", "~0").replace("/", "~1") for key in place)
        return f"{self.path}:" + "".join(f"/{key}" for key in keys) if place else str(self.path)

    def __str__(self) -> str:
        return "\n".join(str(issue) for issue in self.issues)


def listed(names: Sequence[object], maximum: int = 5) -> str:
    """Return the first names, with `...` if there are more."""
    return ", ".join(f"{name!s:.60}" for name in names[:maximum]) + (", ..." if len(names) > maximum else "")


def folder_entries(folder: Path) -> str:
    """Return the first names in a folder, for errors about its layout."""
    names = sorted(entry.name + "/" * entry.is_dir() for entry in folder.iterdir())
    return listed(names, maximum=8) or "nothing"
