"""`regard quickstart`: from nothing to a trained detector and pictures of what it finds, in minutes on a CPU."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

from rich.console import Console

from regard.data.shapes import data_folder
from regard.errors import ConfigError, RegardError
from regard.evaluation.detection import DetectionScores
from regard.training.distributed import choose_device
from regard.training.launch import quiet_threads, torchrun_command

MODEL, DATA = "detr_tiny", "shapes"
EPOCHS = 1000  # more than anybody waits for: the minutes end the training


def quickstart(minutes: float, output: Path, device: str = "auto") -> None:
    """Train `detr_tiny` on generated images for so many minutes and show what came of it.

    Args:
        minutes: training time; writing the images and judging come on top.
        output: the run's folder. One that an earlier quickstart made is replaced.
        device: `auto`, `cpu`, `cuda`, ...
    """
    if not 0 < minutes < math.inf:
        raise ConfigError(f"minutes={minutes}, expected more than 0", code="C03")
    console = Console()
    _check_room(output)
    where = choose_device(device)
    console.print(f"1. Generating images of coloured shapes ({DATA}; kept for the next time) ...")
    folder = data_folder(DATA)
    console.print(f"2. Training {MODEL}, a small DETR, for {minutes:g} minutes on {where} ...")
    # Small matrix products gain nothing from a second thread, but a second process has half of the images.
    count = min(2, os.cpu_count() or 1) if where.type == "cpu" else 1
    arguments = ["train", MODEL, "--data", DATA, "--output", str(output), f"minutes={minutes}", f"epochs={EPOCHS}"]
    arguments += [
        f"device={device}",
        f"batch_size={32 // count}",
        "evaluate_every=10",
        "workers=0",
        "augmentation=flip",
    ]
    command = torchrun_command(arguments, count) if count > 1 else [sys.executable, "-m", "regard", *arguments]
    shutil.rmtree(output, ignore_errors=True)
    finished = subprocess.run(command, env=quiet_threads(count))
    if finished.returncode:
        raise RegardError("training did not finish; its own message stands above", where=output)
    content = json.loads((output / "metrics.json").read_text())
    scores = DetectionScores.from_dict({k: v for k, v in content.items() if k not in ("data", "losses")})
    console.print(f"3. Scores on {scores.images} images that were not trained on:")
    console.print(scores.table())
    console.print("4. What it sees:")
    for picture in sorted((output / "pictures").iterdir()):
        console.print(f"   {picture}", highlight=False)
    console.print(f"\nNext:  regard predict {output} {folder / 'val'} --output {output}/drawn", highlight=False)
    console.print("       regard train detr_resnet50 --data YOUR_COCO_FOLDER", highlight=False)


def _check_room(output: Path) -> None:
    """Only the folder of an earlier quickstart is replaced, never anything else."""
    if not output.exists() or (output.is_dir() and not any(path.name[0] != "." for path in output.iterdir())):
        return
    ours = output / "config.yaml"
    marks = (f"name: {MODEL}\n", f"data: {DATA}\n", f"epochs: {EPOCHS}\n")
    if not (ours.is_file() and all(mark in ours.read_text() for mark in marks)):
        raise ConfigError("the output folder is not empty", where=output, remedy="name another one", code="C11")
