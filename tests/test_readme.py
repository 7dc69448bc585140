"""What the README says can be typed."""

import ast
import re
import shlex
from pathlib import Path

import pytest

import regard
from regard.cli import app

README = (Path(__file__).parents[1] / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def commands() -> list[str]:
    lines = [line.split("#")[0].strip() for block in blocks("console") for line in block.splitlines()]
    inline = re.findall(r"`((?:torchrun|regard) [^`]+)`", README)
    return [line[line.index("regard ") :] for line in lines + inline if "regard " in line and "pytest" not in line]


@pytest.mark.parametrize("command", commands())
def test_commands_are_understood(command):
    words = [word for word in shlex.split(command)[1:] if word != "..."]
    app.parse_args(words, exit_on_error=False, print_error=False)


def test_there_are_commands():
    assert len(commands()) >= 10


@pytest.mark.parametrize("block", blocks("python"))
def test_python_names_exist(block):
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "regard":
            assert callable(getattr(regard, node.attr))
    from regard.results.detections import Detections

    for name in re.findall(r"result\.(\w+)|(to_\w+)\(", block):
        assert hasattr(Detections, name[0] or name[1])


def test_inline_names_exist():
    for name in re.findall(r"`regard\.(\w+)\(", README):
        assert callable(getattr(regard, name))


def test_files_exist():
    root = Path(__file__).parents[1]
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (root / target).exists(), target
