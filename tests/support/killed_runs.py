"""Trainings that can be killed: each is forked from a process that has imported everything already."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from charts import without_charts
from regard.cli import main

# Imported once, for all trainings.
PRELOADED = ["regard.runs.classification", "regard.runs.detection", "regard.runs.run", "killed_runs"]
torch.optim.AdamW([torch.zeros(1, requires_grad=True)])  # imports more of torch


def train(words: Sequence[str], log: Path) -> None:
    """Run `regard train WORDS` in this process and end it; what it prints goes to `log`."""
    with log.open("a") as sys.stderr, redirect_stdout(sys.stderr), without_charts():
        main(["train", *words, "--quiet"])


def start(words: Sequence[str], log: Path) -> BaseProcess:
    """Start `train` in a process of its own."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=train, args=(words, log))
    process.start()
    return process
