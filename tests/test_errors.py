"""Remedies name packages that an index has."""

from __future__ import annotations

import ast
import importlib.util
import re
import tomllib
from pathlib import Path

import pytest

import regard
from regard.errors import HAS, IS, WAS, counted, install_command

WORD_CASES = [
    (counted(1, "image"), "1 image"), (counted(0, "image"), "0 images"), (counted(2, "image"), "2 images"),
    (counted(1, "class", "classes"), "1 class"), (counted(12345, "class", "classes"), "12,345 classes"),
    (counted(1, "image", of=3, verb=IS), "1 of 3 images is"), (counted(2, "image", of=3, verb=IS), "2 of 3 images are"),
    (counted(1.0, "minute"), "1 minute"), (counted(2.5, "minute"), "2.5 minutes"),
    (counted(1, "box", "boxes", of=1, verb=HAS), "1 of 1 box has"), (counted(2, "image", verb=WAS), "2 images were"),
]  # fmt: skip
ROOT = Path(regard.__file__).parent
SOURCES = list(ROOT.rglob("*.py"))
PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())


@pytest.mark.parametrize(("pip", "start"), [(object(), "pip install "), (None, "uv pip install ")])
def test_the_installer_of_this_environment(monkeypatch, pip, start):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: pip)
    assert install_command("scipy", "hotcoco") == f"{start}scipy hotcoco"


@pytest.mark.parametrize(("text", "expected"), WORD_CASES)
def test_nouns_and_verbs_agree_with_their_numbers(text, expected):
    assert text == expected


def test_remedies_install_packages_of_the_project():
    """Each literal package of `install_command` is one of the extras or of the development group."""
    groups = [*PROJECT["project"]["optional-dependencies"].values(), PROJECT["dependency-groups"]["dev"]]
    known = {re.match(r"[\w-]+", requirement)[0] for group in groups for requirement in group}
    named = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "install_command":
                words = [word.value for word in node.args if isinstance(word, ast.Constant)]
                named |= {re.match(r"'?([\w-]+)", word)[1] for word in words}
    assert {"scipy", "hotcoco", "matplotlib", "timm", "pandas", "supervision"} <= named <= known


def test_no_remedy_installs_regard_from_an_index():
    wrong = r"pip install (-U |--upgrade )?'?regard"
    places = [str(path) for path in SOURCES if re.search(wrong, path.read_text())]
    assert not places
