"""`regard quickstart`: train a detector on generated images and draw its predictions, in minutes on a CPU."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

from rich.console import Console

from regard.data.generated.shapes import data_folder
from regard.errors import ConfigError, counted
from regard.metrics.detection import DetectionScores
from regard.safe_files import first_free, is_used
from regard.training.distributed import choose_device
from regard.training.launch import run_processes

MODEL, DATA = "detr_tiny", "shapes:"  # with the colon: generated images even if a folder is called shapes
EPOCHS = 1000  # never reached: `minutes` ends the training


def quickstart(minutes: float, output: Path | None = None, device: str = "auto") -> tuple[str, ...]:
    """Train `detr_tiny` on generated images, print its scores and name its pictures.

    Args:
        minutes: training time, without generating the images and evaluating.
        output: the run's folder; if None the first that is free of runs/quickstart, runs/quickstart-2, ...
        device: `auto`, `cpu`, `cuda`, ...

    Returns:
        Commands to go on with.

    Raises:
        ConfigError: `minutes` is not above 0 (C03), or the folder is not empty (C11).
    """
    if not 0 < minutes < math.inf:
        raise ConfigError(f"minutes={minutes}, expected more than 0", code="C03")
    console = Console()
    output = first_free(Path("runs/quickstart"), is_used) if output is None else output
    if is_used(output):
        remedy = "leave --output out, or name another folder"
        raise ConfigError("the output folder is not empty", where=output, remedy=remedy, code="C11")
    where = choose_device(device)
    console.print("1. Generating images of coloured shapes (kept for the next time) ...")
    folder = data_folder(DATA)
    console.print(f"2. Training {MODEL}, a small DETR, for {counted(minutes, 'minute')} on {where} ...")
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
    run_processes(arguments, count)
    content = json.loads((output / "metrics.json").read_text())
    others = ("data", "losses", "best_threshold", "best_f1")
    scores = DetectionScores.from_dict({k: v for k, v in content.items() if k not in others})
    console.print(f"3. Scores on {counted(scores.images, 'image')} not used for training:")
    console.print(scores.table())
    console.print(f"4. The report, with all pictures: {output / 'report.html'}", highlight=False)
    return (
        f"regard predict {output} {folder / 'val'} --output {output}/drawn",
        "regard train detr_resnet50 --recipe finetune --data YOUR_FOLDER",
    )
