"""How tests check an error: its class, its code and the values it names, not its sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from regard.errors import RegardError


@contextmanager
def refused(
    kind: type[RegardError], *names: object, code: str | None = None
) -> Iterator[pytest.ExceptionInfo[RegardError]]:
    """Expect an error of class `kind`, on one line that contains each of `names`.

    Args:
        kind: the class of the error.
        names: values, files and settings that the line must contain; whole sentences stand in test_bad_input alone.
        code: its code, where it has one.
    """
    with pytest.raises(kind) as caught:
        yield caught
    error = caught.value
    assert code is None or error.code == code, error.line
    assert error.line.isprintable(), error.line
    for name in names:
        assert str(name) in error.line, f"{name!r} is not named: {error.line}"
