"""Fixtures for all tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from charts import without_charts


@pytest.fixture
def blank_charts() -> Iterator[None]:
    """Charts of the test are one white pixel; those of fixtures of wider scope, which run before, are drawn."""
    with without_charts():
        yield
