"""What attention and its position encodings do for a small ResNet: accuracy over several seeds.

    regard study attention --data cifar10/ --epochs 100

Bello et al. 2019 compare the encodings on ImageNet (section 4.4): relative ones gain most, and without any attention
gains next to nothing. The networks here are the 20 layers that He et al. 2016 trained on CIFAR-10.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, stdev

from rich.console import Console
from rich.table import Table

from regard.data.shapes import data_text
from regard.errors import ConfigError
from regard.folders import is_used, make_writable
from regard.training.distributed import choose_device
from regard.training.launch import launch_command, quiet_threads
from regard.training.reports import replace_text

# What is trained, and with which settings.
NETWORKS: dict[str, tuple[str, ...]] = {
    "ResNet-20": ("resnet20",),
    "augmented, no position": ("aa_resnet20", "model.position=none"),
    "augmented, sine": ("aa_resnet20", "model.position=sine"),
    "augmented, coordinates": ("aa_resnet20", "model.position=coord"),
    "augmented, relative": ("aa_resnet20", "model.position=relative"),
}


def attention(data: str, epochs: int, train_images: int | None, seeds: int, output: Path) -> None:
    """Train every network with every seed; print a table, write `scores.json` and `scores.png`.

    Runs go side by side on the CPU's cores, one process each, and one after the other on a GPU. A study that was
    stopped goes on where it was.

    Raises:
        ConfigError: a number out of range, or a folder with something else in it.
    """
    if epochs < 1 or seeds < 1:
        raise ConfigError(f"epochs={epochs} and seeds={seeds}, expected at least 1", code="C03")
    plan = {"data": data_text(data), "epochs": epochs, "train_images": train_images, "seeds": seeds}
    _claim(output, plan)
    device = choose_device("auto")
    at_once = (os.cpu_count() or 1) if device.type == "cpu" else 1
    runs = {(name, seed): output / f"{number}-{seed}" for number, name in enumerate(NETWORKS) for seed in range(seeds)}
    with ThreadPoolExecutor(at_once) as pool:
        codes = list(pool.map(lambda key: _train(runs[key], _words(plan, *key), at_once), runs))
    if any(codes):  # why has been printed
        raise SystemExit(next(code for code in codes if code))
    scores = {name: [_top1(runs[name, seed]) for seed in range(seeds)] for name in NETWORKS}
    replace_text(output / "scores.json", json.dumps({**plan, "top1": scores}, indent=2))
    _draw(scores, output / "scores.png")
    Console().print(table(scores))
    print(output / "scores.png")


def table(scores: dict[str, list[float]]) -> Table:
    """Mean and standard deviation over the seeds, in percent."""
    found = Table("network", "top-1", "std", "seeds")
    for name, values in scores.items():
        deviation = f"{100 * stdev(values):.2f}" if len(values) > 1 else ""
        found.add_row(name, f"{100 * mean(values):.2f}", deviation, str(len(values)))
    return found


def _claim(output: Path, plan: dict[str, object]) -> None:
    """The folder is new, or has the same study in it."""
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


def _words(plan: dict[str, object], name: str, seed: int) -> list[str]:
    """Arguments of `regard train`: the recipe for small images, with mirror images, judged at the end."""
    model, *settings = NETWORKS[name]
    words = [model, "--data", str(plan["data"]), "--epochs", str(plan["epochs"]), "--recipe", "small"]
    if plan["train_images"] is not None:
        settings.append(f"train_images={plan['train_images']}")
    flips = () if plan["data"] == "digits" else ("augmentation=cifar",)
    return [*words, *settings, *flips, f"seed={seed}", f"evaluate_every={plan['epochs']}", "workers=0"]


def _train(run: Path, words: Sequence[str], at_once: int) -> int:
    """Train, go on with training, or leave it at what is there; the exit code."""
    if (run / "metrics.json").is_file():
        return 0
    resume = (run / "config.yaml").is_file()
    arguments = ["--resume"] if resume else list(words)
    command = launch_command(["train", *arguments, "--output", str(run), "--quiet"], 1)
    return subprocess.run(command, env=quiet_threads(at_once)).returncode


def _top1(run: Path) -> float:
    return json.loads((run / "metrics.json").read_text())["stats"]["top1"]


def _draw(scores: dict[str, list[float]], path: Path) -> None:
    from regard.evaluation.figures import BLUE, INK, figure, save, style

    picture = figure(6.5, 0.6 + 0.4 * len(scores))
    axes = picture.add_subplot()
    for place, values in enumerate(reversed(scores.values())):
        axes.plot([100 * v for v in values], [place] * len(values), "o", color=BLUE, alpha=0.6)
        axes.plot([100 * mean(values)], [place], "|", color=INK, markersize=16)
    axes.set_yticks(range(len(scores)), list(reversed(scores)))
    axes.set(xlabel="top-1 in percent; a dot for each seed, a line at their mean")
    style(axes)
    save(picture, path)
