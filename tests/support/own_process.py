"""Tests that are marked `own_process`: those of a file run in a pytest of their own, whose results this one tells."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

INSIDE = "REGARD_TESTS_OWN_PROCESS"


def run_in_own_process(item: pytest.Function) -> bool | None:
    """Run a marked test as `pytest_pyfunc_call` does. Returns None for others, which pytest then runs itself."""
    if item.get_closest_marker("own_process") is None or INSIDE in os.environ:
        return None
    chosen = tuple(
        other.nodeid
        for other in item.session.items
        if other.path == item.path and other.get_closest_marker("own_process")
    )
    result = _results(item.config.rootpath, chosen).get(item.name, ("failure", "its process did not run it"))
    if result[0] == "skipped":
        pytest.skip(result[1])
    if result[0] != "passed":
        pytest.fail(result[1], pytrace=False)
    return True


@functools.cache
def _results(root: Path, tests: tuple[str, ...]) -> dict[str, tuple[str, str]]:
    """Return how each test ended, `passed`, `failure`, `error` or `skipped`, and what it told."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        words = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--junitxml={report}", "-m", "own_process"]
        done = subprocess.run(
            [*words, *tests], cwd=root, env={**os.environ, INSIDE: "1"}, capture_output=True, text=True
        )
        if not report.exists():
            pytest.fail(f"its process ended with {done.returncode}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
        cases = ElementTree.parse(report).iter("testcase")
        return {case.get("name", ""): _result(case) for case in cases}


def _result(case: ElementTree.Element) -> tuple[str, str]:
    for kind in ("failure", "error", "skipped"):
        found = case.find(kind)
        if found is not None:
            return kind, (found.get("message") or "") if kind == "skipped" else (found.text or "")
    return "passed", ""
