"""Mistyped options of every command are answered with the nearest, before anything runs."""

from __future__ import annotations

import difflib
import inspect

import pytest

from command_line import run
from refusals import refused
from regard.cli.groups import app
from regard.cli.options import check_options, options_of, plain_settings
from regard.config import to_mapping
from regard.errors import ConfigError
from regard.models.catalog import list_models
from regard.recipes import recipe_for


def commands(group=app, chain=()):
    """The words and the function of every command."""
    for name in group:
        if not name.startswith("-"):
            if group[name].default_command is not None:
                yield [*chain, name], group[name].default_command
            yield from commands(group[name], (*chain, name))


def test_values_of_options_are_no_mistyped_options():
    for words in ("predict RUN photos --output threshold=0.3", "evaluate RUN --data output=runs"):
        check_options(words.split())


def test_a_setting_without_a_value_leaves_the_next_option_alone():
    words = ["train", "detr_tiny", "--masks", "--output", "r"]
    assert plain_settings(words) == ["train", "detr_tiny", "masks=", "--output", "r"]
    assert plain_settings(["train", "detr_tiny", "--lr", "1e-4", "--seed", "-1"])[-2:] == ["lr=1e-4", "seed=-1"]


COMMANDS = [(words, command) for words, command in commands() if command.__module__.startswith("regard.")]


def flags(command) -> list[str]:
    plain = [n for n, p in inspect.signature(command).parameters.items() if p.kind is p.VAR_POSITIONAL]
    return [f"--{name.replace('_', '-')}" for name, _ in options_of(command) if name not in plain]


@pytest.mark.parametrize(("words", "command"), COMMANDS, ids=[" ".join(words) for words, _ in COMMANDS])
def test_every_option_is_accepted_and_found_from_a_slip(words, command):
    """Two letters swapped, one left out, one twice: the option itself is offered, or another that is as near."""
    known = flags(command)
    for option in known:
        check_options([*words, option, "x"])
        check_options([*words, option.replace("-", "_").replace("__", "--"), "x"])
        if len(option) < 6:
            continue
        for slip in (option[:3] + option[4] + option[3] + option[5:], option[:-1], f"{option}{option[-1]}"):
            if slip in known or f"{slip[2:]}=" in "lr= data= size=":
                continue
            with pytest.raises(ConfigError) as caught:
                check_options([*words, slip])
            offered = (caught.value.remedy or "").partition("'")[2].partition("'")[0]
            nearest = difflib.SequenceMatcher(None, slip, option).ratio()
            assert caught.value.code == "C01" and slip in caught.value.what
            assert offered == option or difflib.SequenceMatcher(None, slip, offered).ratio() >= nearest, (slip, offered)


def test_every_setting_of_every_model_is_accepted():
    def paths(values, prefix=""):
        for name, value in values.items():
            yield from paths(value, f"{prefix}{name}.") if isinstance(value, dict) else [f"{prefix}{name}"]

    for model in list_models():
        try:
            settings = recipe_for(model)
        except ConfigError:  # such as detr_demo, which cannot be trained
            continue
        for path in paths(to_mapping(settings)):
            for word in (f"{path}=1", f"--{path}=1", f"--{path.replace('_', '-')}"):
                check_options(["train", model, word])
                check_options(["distill", "cache", model, word])


@pytest.mark.parametrize(
    ("words", "typed", "offered"),
    [
        (["train", "--data", "D", "--ouput", "X"], "--ouput", "--output"),
        (["train", "--data", "D", "--resum"], "--resum", "--resume"),
        (["train", "detr_tiny", "output=runs/mine"], "output", "--output"),
        (["train", "detr_tiny", "recipee=fast"], "recipee", "--recipe"),
        (["predict", "run", "a.jpg", "threshold=0.3"], "threshold", "--threshold"),
        (["evaluate", "run", "data=shapes"], "data", "--data"),
        (["predict", "run", "a.jpg", "-o", "x"], "-o", "--output"),
        (["predict", "run", "a.jpg", "--zzz"], "--zzz", "regard predict --help"),
        (["train", "detr_tiny", "-x"], "-x", "regard train --help"),
        (["study", "convergence", "--minute", "3"], "--minute", "--minutes"),
        (["distill", "cache", "deit_tiny", "--dta", "x"], "--dta", "--data"),
    ],
)
def test_what_is_offered(capsys, words, typed, offered):
    run(capsys, *words).refused(2, "C01", repr(typed), offered)


@pytest.mark.parametrize(
    "words",
    [
        ["explain", "run", "a.jpg", "--point", "-3", "4"],  # a number
        ["predict", "run", "-"],  # the standard input
        ["predict", "run", "--", "--zzz"],
        ["predict", "run", "a b=c/d.jpg"],
        ["train", "detr_tiny", "learning_rat=1"],  # nearest to a setting, which is told with those of the model
        ["train", "detr_tiny", "--zzz", "1"],
        ["nothing", "--zzz"],
        ["--help"],
        [],
    ],
)
def test_other_words_are_no_options(words):
    check_options(words)


def test_a_file_may_be_called_like_an_option(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("threshold=0.3", "-o"):
        with refused(ConfigError, code="C01"):
            check_options(["predict", "run", name])
        (tmp_path / name).touch()
        check_options(["predict", "run", name])
    with refused(ConfigError, code="C01"):
        check_options(["predict", "run", f"-{'x' * 300}"])


def test_settings_become_plain():
    assert plain_settings(["train", "a", "--lr=1", "--model.num-queries", "3", "--epochs", "2"]) == [
        "train", "a", "lr=1", "model.num_queries=3", "--epochs", "2",
    ]  # fmt: skip
    assert plain_settings(["data", "shapes", "x", "--size=3"]) == ["data", "shapes", "x", "size=3"]
    assert plain_settings(["data", "check", "x", "--size=3"]) == ["data", "check", "x", "--size=3"]
