"""Commands and options of other programs are answered with ours."""

from __future__ import annotations

import pytest

from command_line import run
from refusals import refused
from regard.cli import commands, options_of
from regard.cli import serve as serving
from regard.cli.groups import app
from regard.cli.other_names import COMMANDS, OPTIONS, check_names
from regard.errors import ConfigError


@pytest.mark.parametrize(("typed", "meant"), COMMANDS.items())
def test_commands(capsys, typed, meant):
    assert typed not in app and meant in app
    run(capsys, typed, "x").refused(2, "C01", repr(typed), f"regard {meant}")


def test_our_own_options_are_not_refused():
    for command, answers in OPTIONS.items():
        own = {
            f"--{name.replace('_', '-')}"
            for name, _ in options_of(getattr(serving if command == "serve" else commands, command))
        }
        if command != "train":
            own -= {"--checkpoint"}  # the first word, never an option
        assert not own & set(answers), command
        for answer in answers.values():
            words = [word for word in answer.split() if word.startswith("--")]
            assert set(words) <= own, (command, answer)


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["predict", "run", "a.jpg", "--conf", "0.5"], "--threshold"),
        (["predict", "run", "a.jpg", "--conf=0.5"], "--threshold"),
        (["predict", "--weights", "run", "a.jpg"], "regard predict RUN IMAGES"),
        (["predict", "run", "a.jpg", "--save_dir", "x"], "--output"),
        (["evaluate", "--model", "run", "--data", "x"], "regard evaluate RUN"),
        (["train", "detr_tiny", "--imgsz", "64"], "short_side="),
        (["train", "detr_tiny", "--batch", "4"], "batch_size="),
        (["train", "detr_tiny", "--name", "mine"], "--output"),
        (["train", "detr_tiny", "--weights", "x.pt"], "start_from="),
    ],
)
def test_options(capsys, words, answer):
    typed = next(word.partition("=")[0] for word in words if word.startswith("--"))
    run(capsys, *words).refused(2, "C01", typed, answer)


def test_names_of_files_are_not_options():
    check_names(["predict", "run", "--", "--conf"])
    check_names([])
    with refused(ConfigError, "--conf", code="C01"):
        check_names(["predict", "run", "--conf"])
