"""The progress of an evaluation: on stderr, for people, and switched off."""

from __future__ import annotations

import re
import sys

import pytest

from regard.evaluation import progress
from regard.evaluation.progress import show_progress, watch


@pytest.mark.parametrize(("count", "lines"), [(1, 1), (3, 3), (10, 10), (200, 10)])
def test_a_line_for_each_tenth(capsys, count, lines):
    with show_progress(True):
        assert list(watch(range(count), [2] * count)) == list(range(count))
    out, err = capsys.readouterr()
    shares = [int(re.match(r"evaluation: +(\d+)%", line)[1]) for line in err.splitlines()]
    assert out == "" and len(shares) == lines and shares == sorted(set(shares)) and shares[-1] == 100
    assert f" {2 * count} of {2 * count} images " in err.splitlines()[-1]


def test_one_line_that_is_gone_at_the_end(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(progress, "SECONDS_BETWEEN", 0.0)
    with show_progress(True):
        list(watch("abcd", [8, 8, 8, 1]))
    err = capsys.readouterr().err
    assert "\n" not in err and err.endswith("\r\x1b[K")
    assert re.findall(r"(\d+) of 25 images", err) == ["8", "16", "24", "25"]
    assert all(len(line) < 80 for line in err.replace("\x1b[K", "").split("\r"))


def test_silence(capsys):
    assert list(watch("ab", [1, 1])) == ["a", "b"]  # as in a training
    with show_progress(False):
        assert list(watch("ab", [1, 1])) == ["a", "b"]
    assert list(watch("", [])) == []
    assert capsys.readouterr() == ("", "")
