"""Issues that a check of a data set found, one line each, and errors for what stops the work."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from regard.errors import DataError, RegardError, escape

# error: stops a training. skip: left out of training. fix: repaired on reading. warn: used as it is. note: to know.
Severity = Literal["error", "skip", "fix", "warn", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "skip", "fix", "warn", "note")  # most serious first
MAX_PLACES = 5  # that a line shows
WORDS = {"error": "error", "skip": "skipped", "fix": "fixed", "warn": "warning", "note": "note"}  # of a line


@dataclass(frozen=True)
class Issue:
    """One kind of problem in a data set.

    Args:
        code: short stable name, such as `A46`.
        what: the problem and what was done about it.
        where: file and place of the first case.
        count: number of cases.
        more: places of other cases, maybe not of all.
        remedy: what the user can do.
    """

    code: str | None
    severity: Severity
    what: str
    where: str
    count: int = 1
    more: tuple[str, ...] = ()
    remedy: str | None = None

    @property
    def places(self) -> tuple[str, ...]:
        """The places that are known: that of the first case, then others."""
        return (self.where, *self.more)

    @property
    def sentence(self) -> str:
        """What, where and the remedy, without severity and code."""
        first = "" if self.count == 1 else "first: "
        places = f"{first}{', '.join(self.places[:MAX_PLACES])}" if self.where else ""
        return escape(" — ".join(part for part in (self.what, places, self.remedy) if part))

    def __str__(self) -> str:
        kind = WORDS[self.severity]
        return f"{kind} {self.code}: {self.sentence}" if self.code else f"{kind}: {self.sentence}"


class IssueWarning(UserWarning):
    """A Python warning about a data file. issue: the same for a list of issues."""

    def __init__(self, issue: Issue) -> None:
        super().__init__(issue)  # its argument, with which another process makes it again
        self.issue = issue

    def __str__(self) -> str:
        return self.issue.sentence


def issue_of(error: RegardError) -> Issue:
    """Return an error as an issue."""
    return Issue(error.code, "error", error.what, error.where or "", remedy=error.remedy)


def merged(issues: Iterable[Issue]) -> list[Issue]:
    """Return issues without repetitions, most serious first. Those that differ only in numbers and names become one."""
    kinds: dict[tuple, dict[Issue, None]] = {}
    for issue in issues:
        pattern = re.sub(r"'.*'|\".*\"|[0-9][0-9.,x]*", "#", issue.what)
        kinds.setdefault((SEVERITIES.index(issue.severity), issue.code or "", pattern), {})[issue] = None
    found = []
    for _, alike in sorted(kinds.items(), key=lambda item: item[0][0]):
        first, *others = alike
        # A text that begins with a number counts its cases itself, such as those of one split.
        if others and not first.what[:1].isdigit() and all(issue.count == 1 for issue in alike):
            places = tuple(dict.fromkeys(place for issue in alike for place in issue.places))
            what = f"{first.what} ({len(alike)} cases)"
            found.append(replace(first, what=what, count=len(alike), more=places[1:]))
        else:
            found += alike
    return found


class Report:
    """The issues of one file. `print(report)` gives one line for each.

    Args:
        path: the annotation file, or what names the data set where each image has a file of its own.
        places: where the user finds a value of COCO's tables that were made from another format, such as
            `labels/train/a.txt:3`. Without it places are JSON pointers in `path`.
        gathers: whether faults become issues where the checks that follow can go on, instead of being raised.
    """

    def __init__(
        self,
        path: str | Path,
        places: Callable[[tuple[str | int, ...]], str] | None = None,
        *,
        gathers: bool = False,
    ) -> None:
        self.path = Path(path)
        self.shown = str(path)
        self.places = places
        self.gathers = gathers
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

    def fail(self, code: str, what: str, *place: str | int, remedy: str | None = None) -> None:
        """Raise the error for a value that cannot be used, or add it to the issues if the report gathers faults."""
        self.fail_at(code, what, [place], remedy=remedy)

    def fail_at(
        self, code: str, what: str, places: Sequence[tuple[str | int, ...]], *, remedy: str | None = None
    ) -> None:
        """Do the same for values at several places. what: describes the first one."""
        error = self.error(code, what, *places[0], remedy=remedy)
        if not self.gathers:
            raise error
        more = tuple(self.at(*place) for place in places[1:100])
        what = what if len(places) == 1 else f"{what} ({len(places)} cases)"
        self.issues.append(Issue(code, "error", what, error.where or "", len(places), more, remedy))

    @property
    def errors(self) -> int:
        """The number of errors among the issues."""
        return sum(issue.severity == "error" for issue in self.issues)

    def at(self, *place: str | int) -> str:
        """Return the file and the place in it, as a JSON pointer (RFC 6901): `ann.json:/annotations/3/bbox`."""
        if place and self.places is not None:
            return self.places(place)
        keys = (str(key).replace("~", "~0").replace("/", "~1") for key in place)
        return f"{self.shown}:" + "".join(f"/{key}" for key in keys) if place else self.shown

    def __str__(self) -> str:
        return "\n".join(str(issue) for issue in self.issues)


def listed(names: Sequence[object], maximum: int = 5) -> str:
    """Return the first names, with `...` if there are more."""
    return ", ".join(f"{name!s:.60}" for name in names[:maximum]) + (", ..." if len(names) > maximum else "")


def folder_entries(folder: Path) -> str:
    """Return the first names in a folder, for errors about its layout."""
    names = sorted(entry.name + "/" * entry.is_dir() for entry in folder.iterdir())
    return listed(names, maximum=8) or "nothing"
