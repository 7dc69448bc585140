"""Comparison of networks by accuracy over several seeds: trained by `regard train`, in parallel on a CPU."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from rich.console import Console
from rich.table import Table

from regard.errors import ConfigError
from regard.safe_files import is_used, make_writable, replace_text
from regard.training.distributed import choose_device
from regard.training.launch import launch_command, thread_environment


def claim(output: Path, plan: Mapping[str, Any]) -> None:
    """Prepare the folder of a study: a new one, or that of the same study, which is then resumed.

    Raises:
        ConfigError: the folder holds something else (C11).
    """
    described = output / "study.json"
    if described.is_file():
        if json.loads(described.read_text()) != plan:
            remedy = "name another folder, or repeat the command of the first time"
            raise ConfigError("another study is here", where=output, remedy=remedy, code="C11")
        return
    if is_used(output):
        raise ConfigError("the output folder is not empty", where=output, remedy="name another folder", code="C11")
    make_writable(output)
    replace_text(described, json.dumps(plan, indent=2))


def train_all(rows: Mapping[str, Sequence[str]], seeds: int, output: Path) -> dict[str, list[Path]]:
    """Train each row with each seed; finished runs are kept and stopped ones resumed.

    Args:
        rows: words of `regard train` by the row's name, without seed and folder.

    Returns:
        Folders of the runs, `ROW-SEED`, for each row.

    Raises:
        SystemExit: a run failed and printed why; with its exit code.
    """
    at_once = (os.cpu_count() or 1) if choose_device("auto").type == "cpu" else 1
    folders = {name: [output / f"{_folder(name)}-{seed}" for seed in range(seeds)] for name in rows}
    jobs = [(folders[name][seed], [*words, f"seed={seed}"]) for name, words in rows.items() for seed in range(seeds)]
    with ThreadPoolExecutor(at_once) as pool:
        codes = list(pool.map(lambda job: _train(job[0], job[1], at_once), jobs))
    if any(codes):
        raise SystemExit(next(code for code in codes if code))
    return folders


def report(scores: Mapping[str, Sequence[float]], plan: Mapping[str, Any], output: Path) -> None:
    """Write `scores.json` and `scores.png`, print the table. scores: top-1 of each seed, 0..1."""
    replace_text(output / "scores.json", json.dumps({**plan, "top1": scores}, indent=2))
    _draw(scores, output / "scores.png")
    Console().print(table(scores))
    print(output / "scores.png")


def table(scores: Mapping[str, Sequence[float]]) -> Table:
    """Mean and standard deviation over the seeds, in percent."""
    found = Table("", "top-1", "std", "seeds")
    for name, values in scores.items():
        deviation = f"{100 * stdev(values):.2f}" if len(values) > 1 else ""
        found.add_row(name, f"{100 * mean(values):.2f}", deviation, str(len(values)))
    return found


def top1(run: Path) -> float:
    """Of a finished run, 0..1."""
    return json.loads((run / "metrics.json").read_text())["stats"]["top1"]


def _folder(name: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in name)


def _train(run: Path, words: Sequence[str], at_once: int) -> int:
    """Train or resume a run unless it is finished; return the exit code."""
    if (run / "metrics.json").is_file():
        return 0
    arguments = ["--resume"] if (run / "config.yaml").is_file() else list(words)
    command = launch_command(["train", *arguments, "--output", str(run), "--quiet"], 1)
    return subprocess.run(command, env=thread_environment(at_once)).returncode


def _draw(scores: Mapping[str, Sequence[float]], path: Path) -> None:
    from regard.metrics.charts.style import BLUE, INK, apply, figure, save

    picture = figure(6.5, 0.6 + 0.4 * len(scores))
    axes = picture.add_subplot()
    names = list(scores)[::-1]
    for place, name in enumerate(names):
        values = [100 * value for value in scores[name]]
        axes.plot(values, [place] * len(values), "o", color=BLUE, alpha=0.6)
        axes.plot([mean(values)], [place], "|", color=INK, markersize=16)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="top-1 in percent; a dot for each seed, a line at their mean")
    apply(axes)
    save(picture, path)
