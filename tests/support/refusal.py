"""How tests check an error of ours: its class, its code, and what its line must name; the wording is free."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from regard.errors import RegardError


@contextmanager
def refused(kind: type[RegardError], code: str | None, *names: object) -> Iterator[pytest.ExceptionInfo]:
    """The block raises `kind` with `code`, on one line that names each of `names`: a value, a file, a place."""
    with pytest.raises(kind) as caught:
        yield caught
    error = caught.value
    assert error.code == code, error.line
    assert "\n" not in error.line
    for name in names:
        assert str(name) in error.line, f"{name!r} is not named: {error.line}"
