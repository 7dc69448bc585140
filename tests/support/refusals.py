"""Errors that a test expects, held to what a user acts on: class, code and the values they name, not the sentence."""

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
        names: values, files and settings that the message must contain; exact sentences stand in test_bad_input alone.
        code: its code, where it has one.
    """
    with pytest.raises(kind) as caught:
        yield caught
    error = caught.value
    assert code is None or error.code == code, error.line
    assert error.line.isprintable(), error.line
    for name in names:
        assert str(name) in error.line, error.line
