"""`regard quickstart`: train a detector on generated images and draw its predictions, in minutes on a CPU."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path

from rich.console import Console

from regard.config import read_yaml
from regard.data.generated.shapes import data_folder
from regard.errors import ConfigError
from regard.metrics.detection import DetectionScores
from regard.safe_files import is_used
from regard.training.distributed import choose_device
from regard.training.launch import run_processes

MODEL, DATA = "detr_tiny", "shapes:"  # with the colon: generated images even if a folder is called shapes
EPOCHS = 1000  # never reached: `minutes` ends the training


def quickstart(minutes: float, output: Path, device: str = "auto") -> None:
    """Train `detr_tiny` on generated images, print its scores and name its pictures.

    Args:
        minutes: training time, without generating the images and evaluating.
        output: the run's folder. A folder of an earlier quickstart is replaced.
        device: `auto`, `cpu`, `cuda`, ...
    """
    if not 0 < minutes < math.inf:
        raise ConfigError(f"minutes={minutes}, expected more than 0", code="C03")
    console = Console()
    is_earlier = _is_earlier(output)
    where = choose_device(device)
    console.print("1. Generating images of coloured shapes (kept for the next time) ...")
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
    if is_earlier:  # not before all else is in order
        shutil.rmtree(output)
    run_processes(arguments, count)
    content = json.loads((output / "metrics.json").read_text())
    others = ("data", "losses", "best_threshold", "best_f1")
    scores = DetectionScores.from_dict({k: v for k, v in content.items() if k not in others})
    console.print(f"3. Scores on {scores.images} images that were not used for training:")
    console.print(scores.table())
    console.print(f"4. The report, with all pictures: {output / 'report.html'}", highlight=False)
    console.print("5. Next, one command a line:")
    following = (
        f"predict {output} {folder / 'val'} --output {output}/drawn",
        "train detr_resnet50 --recipe finetune --data YOUR_FOLDER",
    )
    for command in following:
        console.print(f"regard {command}", highlight=False, soft_wrap=True)


def _is_earlier(output: Path) -> bool:
    """Whether an earlier quickstart made this folder, which may be replaced; one with anything else is an error."""
    if not is_used(output):
        return False
    settings = read_yaml(output / "config.yaml") if (output / "config.yaml").is_file() else {}
    if [settings.get(key) for key in ("name", "data", "epochs")] != [MODEL, DATA, EPOCHS]:
        raise ConfigError("the output folder is not empty", where=output, remedy="name another one", code="C11")
    return True
