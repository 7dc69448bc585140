"""Tables 2 and 3 of the DeiT paper in small: teachers and kinds of distillation for a small transformer.

    regard study distillation --data cifar10/ --epochs 100

Touvron et al. 2021 find on ImageNet that the first choice of the teacher teaches more than its probabilities, that a
token for it adds a little, and that a convolutional teacher is better than a transformer of the same kind.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

from regard.data.paths import data_text
from regard.errors import ConfigError
from regard.evaluation import evaluate
from regard.models.vit import VisionTransformer
from regard.studies.attention import small_training
from regard.studies.seeds import claim, report, top1, train_all
from regard.weights.load import load

TEACHER, PLAIN, DISTILLED = "resnet20", "deit_nano_patch4_32", "deit_nano_distilled_patch4_32"
ALONE, TOKEN = "no distillation", "token, hard"
Head = Literal["class", "distillation"]
HEADS: tuple[Head, ...] = ("class", "distillation")
# The paper's numbers of soft distillation: lambda 0.1, tau 3, and its formula.
SOFT = ("distillation=soft", "alpha=0.1", "tau=3", "reduction=batchmean")


def distillation(data: str, epochs: int, train_images: int | None, seeds: int, output: Path) -> None:
    """Train a teacher, then students of it and of one of their own kind; print a table, write `scores.json` and a
    picture.

    The same call resumes a stopped study.

    Raises:
        ConfigError: a number is out of range, or the folder holds something else.
    """
    if epochs < 1 or seeds < 1:
        raise ConfigError(f"epochs={epochs} and seeds={seeds}, expected at least 1", code="C03")
    text = data_text(data)
    plan = {"data": text, "epochs": epochs, "train_images": train_images, "seeds": seeds, "teacher": TEACHER}
    claim(output, plan)
    words = small_training(text, epochs, train_images)
    (teacher,) = train_all({"teacher": [TEACHER, *words]}, 1, output)["teacher"]
    alone = train_all({ALONE: [PLAIN, *words]}, seeds, output)[ALONE]
    students = {
        "soft": [PLAIN, *words, f"teacher={teacher}", *SOFT],
        "hard": [PLAIN, *words, f"teacher={teacher}"],
        TOKEN: [DISTILLED, *words, f"teacher={teacher}"],
        "token, hard, teacher of its kind": [DISTILLED, *words, f"teacher={alone[0]}"],
    }
    runs = {ALONE: alone, **train_all(students, seeds, output)}
    scores = {f"teacher: {TEACHER}": [top1(teacher)]}
    for name, folders in runs.items():
        scores[name] = [top1(run) for run in folders]
        if name == TOKEN:
            for head in HEADS:
                scores[f"{name}, {head} head only"] = [_of_head(run, head, text) for run in folders]
    report(scores, plan, output)


def _of_head(run: Path, head: Head, data: str) -> float:
    """Return the top-1 accuracy of one head of a distilled run."""
    net = load(run)
    assert isinstance(net, VisionTransformer)
    net.config = replace(net.config, fuse=head)
    return evaluate(net, data, workers=0).stats["top1"] or 0.0
