"""Commands in messages are those that the user's shell knows."""

from __future__ import annotations

import pytest

from command_line import run
from regard.cli import typed
from regard.cli.groups import app
from regard.errors import ConfigError


@pytest.fixture
def under_uv(monkeypatch):
    monkeypatch.setenv("UV", "/usr/bin/uv")


def test_the_shell_knows_regard(monkeypatch):
    monkeypatch.delenv("UV", raising=False)
    assert typed.as_typed("continue: regard train --resume") == "continue: regard train --resume"


@pytest.mark.usefixtures("under_uv")
def test_every_command_under_uv():
    commands = [name for name in app if not name.startswith("-")]
    assert {"train", "predict", "study"} <= set(commands)
    for name in commands:
        text = f"see: regard {name} --help, or uv run regard {name}"
        assert typed.as_typed(text) == f"see: uv run regard {name} --help, or uv run regard {name}"
    for text in ("regard 0.1", "train it with regard", "regard trainers", "disregard train"):
        assert typed.as_typed(text) == text


@pytest.mark.usefixtures("under_uv")
def test_only_the_remedy_holds_commands():
    error = ConfigError("odd", where="/photos/regard train/a.jpg", remedy="do: regard train", code="C01")
    assert typed.error_line(error) == "error C01: odd — /photos/regard train/a.jpg — do: uv run regard train"


@pytest.mark.usefixtures("under_uv")
def test_an_error_of_a_command(capsys):
    line = run(capsys, "predict", "run", "--zzz", "a.jpg").refused(2, "C01")
    assert line.endswith("see: uv run regard predict --help")
