"""What the README says can be typed where the reader stands: in a checkout."""

import ast
import re
from pathlib import Path

import pytest

import regard
from documents import blocks, console_lines, regard_commands
from regard.cli import app
from regard.models.catalog import list_models
from regard.results.detections import Detections
from regard.runs.settings import resolve

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = regard_commands(README)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_commands_are_understood(words):
    app.parse_args(words, exit_on_error=False, print_error=False)


@pytest.mark.parametrize("words", [w for w in COMMANDS if w[0] == "train" and "--resume" not in w], ids=" ".join)
def test_models_recipes_and_settings_exist(words):
    settings = [word for word in words if "=" in word]
    model = None if words[1].startswith("--") else words[1]
    if model is None:  # The data choose it; the folders of the README do not exist.
        assert words[1] == "--data" and not settings
        return
    assert model in list_models()
    recipe = words[words.index("--recipe") + 1] if "--recipe" in words else None
    resolve(model, words[words.index("--data") + 1], None, None, False, recipe, None, settings)


def test_commands_can_be_pasted_in_a_checkout():
    assert len(COMMANDS) >= 25
    assert not [line for line in console_lines(README) if not re.match(r"(OMP_\w+=1 )?(uv |pip install )", line)]


def test_the_first_screen_shows_picture_commands_and_python():
    screen = "\n".join(README.splitlines()[:32])
    assert "uv run regard quickstart" in screen and "regard.predict(" in screen and "![" in screen
    assert len(README.splitlines()) < 200


@pytest.mark.parametrize("block", blocks(README, "python"))
def test_python_names_exist(block):
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "regard":
            assert callable(getattr(regard, node.attr))
    for name in re.findall(r"result\.(\w+)|(to_\w+)\(", block):
        assert hasattr(Detections, name[0] or name[1])


def test_inline_names_exist():
    for name in re.findall(r"`regard\.(\w+)\(", README):
        assert callable(getattr(regard, name))


def test_files_exist():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
