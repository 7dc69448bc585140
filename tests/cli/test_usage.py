"""Errors of the parser, in our words: what is missing, with its meaning from the help."""

from __future__ import annotations

import pytest

from command_line import run


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["explain"], ("CHECKPOINT", "a weights file", "regard explain --help")),
        (["data", "convert", "x"], ("--to", "coco or yolo", "regard data convert --help")),
        (["distill", "cache", "deit_tiny"], ("--data", "folder of data")),
        (["train", "--data"], ("--data", "needs a value")),
        (["explain", "run", "a.jpg", "--point", "3"], ("--point", "x and y")),
        (["predict", "run", "a.jpg", "--threshold", "high"], ("--threshold high", "a number")),
        (["predict", "run", "a.jpg", "--top", "few"], ("--top few", "a whole number")),
        (["train", "detr_tiny", "--epochs=many"], ("--epochs many", "a whole number")),
        (["data", "convert", "x", "--to", "voc", "--output", "y"], ("--to", "yolo")),
        (["models", "a", "b"], ("'b'", "regard models --help")),
        (["report"], ("RUN",)),
    ],
)
def test_one_line(capsys, words, says):
    line = run(capsys, *words).refused(2, None, *says)
    assert "Parsed" not in line and "argument" not in line
