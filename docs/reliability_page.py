"""The page of faults and of claims about numbers: what must happen or hold, and whether its tests show it.

    uv run python docs/reliability_page.py I A C K T S N   # runs the tests of all ids that begin so, minutes
    uv run python docs/reliability_page.py N17             # forks, so that it needs a process without other tests
    uv run python docs/reliability_page.py T01 --slow      # tests marked slow too

docs/results/reliability.toml has the faults, docs/results/reliability.json what their tests gave when they last ran.
Without ids the page is made again. The page is docs/results/reliability.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "results" / "reliability.md"
GROUPS = {
    "images": "Images",
    "annotations": "Annotations",
    "settings": "Settings",
    "checkpoints": "Checkpoints and weights",
    "training": "Training",
    "serving": "Serving",
    "numbers": "Numbers",
}
CLAIMS = "numbers"  # the group whose rows are not faults but claims, with a tolerance
INTRODUCTION = """# Faults and their outcomes

What goes wrong with files, machines and clients, what Regard does then, and the tests that show it. An error is one
line that says what, where and what to do, with an exit code: 2 settings, 3 data, 4 checkpoints, 5 numbers that are not
finite, 6 the machine. No file of the user's is changed. The last table has what is claimed of numbers, and how nearly
it holds.
"""
END = """## How this page is made

```console
uv run python docs/reliability_page.py I A C K T S N
uv run python docs/reliability_page.py N17
uv run python docs/reliability_page.py T01 --slow
```

`docs/results/reliability.toml` lists the faults and claims, their outcomes or tolerances, and their tests.
"""
Given = dict[str, Counter[str]]  # test of the table -> outcome -> number of tests


@dataclass(frozen=True)
class Fault:
    """A fault, what must happen, and the tests that show it: beginnings of their names, below `tests/`."""

    id: str
    what: str
    outcome: str
    tests: tuple[str, ...]


@dataclass(eq=False)  # pytest puts plugins into sets
class Recorder:
    """A plugin of pytest that runs the tests whose names begin with one of `wanted`, and counts their outcomes."""

    wanted: Sequence[str]
    given: Given = field(default_factory=dict)

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        kept = [item for item in items if self._of(item.nodeid)]
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            for test in self._of(report.nodeid):
                self.given.setdefault(test, Counter())[report.outcome] += 1

    def _of(self, name: str) -> list[str]:
        return [test for test in self.wanted if name.removeprefix("tests/").startswith(test)]


def read_faults() -> dict[str, list[Fault]]:
    """Read the faults of each group."""
    groups = tomllib.loads(PAGE.with_suffix(".toml").read_text(encoding="utf-8"))
    return {
        group: [Fault(name, what, outcome, tuple(tests)) for name, (what, outcome, tests) in rows.items()]
        for group, rows in groups.items()
    }


def run_tests(tests: Iterable[str], slow: bool) -> Given:
    """Run tests in this process and return their outcomes."""
    recorder = Recorder(sorted(set(tests)))
    files = sorted({f"tests/{test.partition('::')[0]}" for test in recorder.wanted})
    options = ["-q", "-p", "no:cacheprovider", f"--rootdir={ROOT}"]
    pytest.main([*options, "-m", "not gpu" if slow else "not slow and not gpu", *files], plugins=[recorder])
    return recorder.given


def result_of(fault: Fault, kept: Mapping[str, Mapping[str, object]]) -> str:
    """Return what the tests of a fault gave, in words."""
    count: Counter[str] = Counter()
    for test in fault.tests:
        outcomes = {name: number for name, number in kept.get(test, {}).items() if isinstance(number, int)}
        count.update(outcomes or {"not run": 1})
    words = [f"{count[name]} {name}" for name in ("failed", "passed", "skipped") if count[name]]
    return ", ".join([*words, *(["not run: " + str(count["not run"])] if count["not run"] else [])])


def page(groups: Mapping[str, Sequence[Fault]], kept: Mapping[str, Mapping[str, object]]) -> str:
    """Return the page: the sums, then a table of each group."""
    faults = [fault for group in groups.values() for fault in group]
    results = {fault.id: result_of(fault, kept) for fault in faults}
    failed = [name for name, result in results.items() if "failed" in result]
    missing = [name for name, result in results.items() if "passed" not in result and name not in failed]
    shown = len(faults) - len(failed) - len(missing)
    claims = len(groups.get(CLAIMS, ()))
    sums = f"{len(faults) - claims} faults, each with its outcome"
    sums += f", and {claims} claims about numbers, each with its tolerance" if claims else ""
    sums += f"; tests that passed show {shown} of them."
    sums += f" Failed: {', '.join(failed)}." if failed else ""
    if missing:
        sums += f" Not run: {', '.join(missing) if len(missing) <= 12 else len(missing)}."
    dates = sorted(str(one["date"]) for one in kept.values())
    sums += f" Last run: {dates[-1]}.\n" if dates else "\n"
    parts = [INTRODUCTION, sums]
    for group, rows in groups.items():
        columns = "claim | tolerance" if group == CLAIMS else "fault | outcome"
        lines = [f"| id | {columns} | tests below `tests/` | result |", "| --- | --- | --- | --- | --- |"]
        for fault in rows:
            tests = "<br>".join(f"`{test}`" for test in fault.tests)
            lines.append(f"| {fault.id} | {fault.what} | {fault.outcome} | {tests} | {results[fault.id]} |")
        parts.append("\n".join([f"## {GROUPS[group]}\n", *lines, ""]))
    return "\n".join([*parts, END])


def main() -> None:
    """Run the tests of the ids that are named, keep what they gave, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("ids", nargs="*", help="of faults, or how they begin, such as T")
    parser.add_argument("--slow", action="store_true", help="run tests marked slow too")
    given = parser.parse_args()
    groups, path = read_faults(), PAGE.with_suffix(".json")
    tests = [t for rows in groups.values() for f in rows if f.id.startswith(tuple(given.ids)) for t in f.tests]
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    outcomes = run_tests(tests, given.slow) if tests else {}
    kept |= {test: {**count, "date": datetime.now(UTC).date().isoformat()} for test, count in outcomes.items()}
    known = {test for rows in groups.values() for fault in rows for test in fault.tests}
    kept = {test: kept[test] for test in sorted(kept) if test in known}
    path.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(groups, kept), encoding="utf-8")
    print(PAGE)
    sys.exit(any("failed" in count for count in outcomes.values()))


if __name__ == "__main__":
    main()
