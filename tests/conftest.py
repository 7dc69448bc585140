"""Fixtures for all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from charts import without_charts
from own_process import run_in_own_process

# The suite is started by `uv run`, which sets this; messages would then name `uv run regard`.
os.environ.pop("UV", None)
# With `-n` several processes share the cores: one thread each, or they would wait for each other's.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture
def blank_charts() -> Iterator[None]:
    """Charts of the test are one white pixel; those of fixtures of wider scope, which run before, are drawn."""
    with without_charts():
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give slow tests and those of a GPU as long as they take."""
    for item in items:
        if item.get_closest_marker("slow") or item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.timeout(0))


@pytest.fixture
def remote_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """For tests of data at addresses: a cache of its own, an empty memory, and short waits."""
    import fsspec

    from regard.data import remote

    monkeypatch.setenv("REGARD_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.001)
    yield
    fsspec.filesystem("memory").store.clear()
    fsspec.filesystem("memory").pseudo_dirs[:] = [""]


# Reasons for which a test may be skipped in CI. Anything else means that a peer or data to compare with is missing.
ALLOWED_SKIPS = ("there is a GPU", "root reads everything")


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    return run_in_own_process(pyfuncitem)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Iterator[None]:
    """With REGARD_NO_SKIPS=1 a test that is skipped for any other reason fails."""
    return without_skip((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[None]:
    """The same for a file that is skipped as a whole."""
    return without_skip((yield))


def without_skip(report: Any) -> Any:
    if report.skipped and os.environ.get("REGARD_NO_SKIPS") == "1" and not hasattr(report, "wasxfail"):
        reason = str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not any(allowed in reason for allowed in ALLOWED_SKIPS):
            report.outcome = "failed"
            report.longrepr = f"{reason}: CI skips no test but for {', '.join(ALLOWED_SKIPS)}"
    return report
