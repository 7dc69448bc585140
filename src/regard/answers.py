"""A teacher's answers on disk: it answers once for some views of every image, and students train on just these.

A folder with `answers.npy`, logits (views, images, classes), and `answers.json`, which says for what: data, seed and
augmentation. Both are what they were when a student is trained, or training does not start.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from regard.batches import ImageBatch
from regard.data.classification import ClassSample
from regard.errors import CheckpointError, ConfigError
from regard.folders import is_used, make_writable
from regard.teachers import Teacher
from regard.training.batches import Augmented, Caught, raising
from regard.training.reports import replace_text

DTYPES = {"float16": np.float16, "float32": np.float32}
FLUSH_EVERY = 20  # batches; a stopped run has to repeat at most these


class StoredAnswers:
    """Answers of a finished folder. Holds no open file until it is read, and can be sent to loader processes.

    Attributes:
        views: of each image. Training comes back to the first after the last.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.about = _about(self.folder)
        self.views = int(self.about["views"])
        if self.about["done"] < self.views * self.about["images"]:
            what = f"{self.about['done']} of {self.views * self.about['images']} answers are there"
            remedy = "repeat the command of the first time: it goes on"
            raise CheckpointError(what, where=self.folder, remedy=remedy, code="K02")
        self._logits: np.ndarray | None = None

    def __getitem__(self, place: tuple[int, int]) -> Tensor:
        """Logits (C,) float32 for (view, image)."""
        if self._logits is None:
            self._logits = np.load(self.folder / "answers.npy", mmap_mode="r")
        return torch.from_numpy(self._logits[place].astype(np.float32))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_logits": None}

    def check(self, wanted: Mapping[str, Any]) -> None:
        """Raises ConfigError if these are not the answers for the data, seed and augmentation `wanted`."""
        differing = [key for key, value in wanted.items() if self.about.get(key) != value]
        if differing:
            parts = ", ".join(f"{key} {_short(self.about.get(key))} is {_short(wanted[key])} here" for key in differing)
            remedy = "train with the settings of the answers, or store new ones: regard distill cache"
            raise ConfigError(f"answers for something else: {parts}", where=self.folder, remedy=remedy, code="C07")


def has_answers(folder: str | Path) -> bool:
    """Whether a folder is one of stored answers."""
    return (Path(folder) / "answers.json").is_file()


def store_answers(
    data: Augmented,
    teacher: Teacher,
    folder: Path,
    about: Mapping[str, Any],
    *,
    views: int,
    classes: int,
    device: torch.device,
    batch_size: int,
    workers: int,
    dtype: str = "float16",
) -> Iterator[float]:
    """Ask a teacher for `views` views of every image; gives the share that is done, again and again.

    Args:
        data: the images as a student would see them.
        about: what the answers are for; they are only gone on with, and trained on, where it is the same.
        dtype: of the file: `float16` or `float32`.

    Raises:
        ConfigError: a number out of range, or a folder with something else in it.
    """
    if views < 1 or batch_size < 1 or dtype not in DTYPES:
        what = f"views={views}, batch_size={batch_size}, dtype={dtype}"
        raise ConfigError(f"{what}, expected at least 1, 1 and float16 or float32", code="C03")
    count = len(data.dataset)
    plan = {**about, "views": views, "images": count, "dtype": dtype}
    logits, done = _open(folder, plan, (views, count, classes))
    places = [divmod(number, count) for number in range(done, views * count)]
    loader = DataLoader(
        Caught(data), batch_size, sampler=places, collate_fn=_collate, num_workers=workers,
        pin_memory=device.type == "cuda",
    )  # fmt: skip
    flat = logits.reshape(-1, classes)
    for number, batch in enumerate(raising(loader), start=1):
        found = teacher(batch.to(device).normalized().pixels).cpu().numpy()
        flat[done : done + len(found)] = found
        done += len(found)
        if number % FLUSH_EVERY == 0 or done == views * count:
            logits.flush()
            replace_text(folder / "answers.json", json.dumps({**plan, "done": done}, indent=2))
        yield done / (views * count)


def _open(folder: Path, plan: dict[str, Any], shape: tuple[int, int, int]) -> tuple[np.memmap, int]:
    """The file of logits, and how many of them are there already."""
    if has_answers(folder):
        about = _about(folder)
        differing = sorted(key for key in {*plan, *about} - {"done"} if plan.get(key) != about.get(key))
        if differing:
            what = f"answers with another {', '.join(differing)} are here"
            raise ConfigError(what, where=folder, remedy="name another folder", code="C11")
        return np.lib.format.open_memmap(folder / "answers.npy", mode="r+"), int(about["done"])
    if is_used(folder):
        raise ConfigError("the output folder is not empty", where=folder, remedy="name another folder", code="C11")
    make_writable(folder)
    logits = np.lib.format.open_memmap(folder / "answers.npy", mode="w+", dtype=DTYPES[plan["dtype"]], shape=shape)
    replace_text(folder / "answers.json", json.dumps({**plan, "done": 0}, indent=2))
    return logits, 0


def _about(folder: Path) -> dict[str, Any]:
    try:
        about = json.loads((folder / "answers.json").read_text())
        return {**about, "views": int(about["views"]), "images": int(about["images"]), "done": int(about["done"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        remedy = "make them with: regard distill cache"
        raise CheckpointError("no stored answers", where=folder, remedy=remedy, code="K02") from error


def _collate(samples: list[Any]) -> Any:
    error = next((sample for sample in samples if not isinstance(sample, ClassSample)), None)
    return error or ImageBatch.from_images([sample.image for sample in samples])


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 24 else f"{text[:12]}..."
