"""A teacher's answers on disk: it answers once for some views of every image, and students train on just these.

A folder with `answers.npy`, logits (views, images, classes), and `answers.json`, which says for what: data, seed and
augmentation. Both are what they were when a student is trained, or training does not start.

With `top=k` only the k likeliest classes are kept, in `classes.npy` (views, images, k), with their logits and, as one
more, what all others have on average: the probabilities of the k are then the teacher's, and the rest is shared evenly
(Shen and Xing 2022, section 3.3, marginal smoothing).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from regard.data.class_images.dataset import ClassificationDataset
from regard.data.samples import ClassSample
from regard.data.transforms.image import ImagePipeline
from regard.distillation.teachers import Teacher
from regard.errors import CheckpointError, ConfigError
from regard.safe_files import is_used, make_writable, replace_text
from regard.structures.image_batch import ImageBatch
from regard.training.data_loader import Augmented, Caught, raising, worker_count

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
        _files(self.folder, self.about, "r")  # not an error in the middle of training
        self._opened: list[np.memmap] = []  # logits, and classes where only some are kept

    def __getitem__(self, place: tuple[int, int]) -> Tensor:
        """Logits (C,) float32 for (view, image)."""
        if not self._opened:
            self._opened = _files(self.folder, self.about, "r")
        logits = torch.from_numpy(self._opened[0][place].astype(np.float32))
        if len(self._opened) == 1:
            return logits
        answer = logits[-1].repeat(len(self.about["classes"]))
        answer[torch.from_numpy(self._opened[1][place].astype(np.int64))] = logits[:-1]
        return answer

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": []}

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
    top: int | None = None,
    device: torch.device,
    batch_size: int,
    workers: int,
    dtype: str = "float16",
) -> Iterator[float]:
    """Ask a teacher for `views` views of every image; gives the share that is done, again and again.

    Args:
        data: the images as a student would see them.
        about: what the answers are for, with the names of the `classes`; they are only gone on with, and trained on,
            where it is the same.
        top: keep so many classes of each answer; all if None.
        dtype: of the file: `float16` or `float32`.

    Raises:
        ConfigError: a number out of range, or a folder with something else in it.
    """
    if views < 1 or batch_size < 1 or dtype not in DTYPES:
        what = f"views={views}, batch_size={batch_size}, dtype={dtype}"
        raise ConfigError(f"{what}, expected at least 1, 1 and float16 or float32", code="C03")
    classes, count = len(about["classes"]), len(data.dataset)
    if top is not None and not 0 < top < classes:
        raise ConfigError(f"top={top}, expected 1 to {classes - 1}, or none for all {classes} classes", code="C03")
    plan = {**about, "views": views, "images": count, "dtype": dtype, "top": top}
    files, done = _open(folder, plan)
    places = [divmod(number, count) for number in range(done, views * count)]
    loader = DataLoader(
        Caught(data), batch_size, sampler=places, collate_fn=_collate, num_workers=worker_count(workers),
        pin_memory=device.type == "cuda",
    )  # fmt: skip
    for number, batch in enumerate(raising(loader), start=1):
        found = teacher(batch.to(device).normalized().pixels).cpu()
        for file, part in zip(files, [found] if top is None else _likeliest(found, top), strict=True):
            file.reshape(views * count, -1)[done : done + len(found)] = part.numpy()
        done += len(found)
        if number % FLUSH_EVERY == 0 or done == views * count:
            for file in files:
                file.flush()
            replace_text(folder / "answers.json", json.dumps({**plan, "done": done}, indent=2))
        yield done / (views * count)


def _likeliest(logits: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """Logits (B, top + 1), best first and then the others' logarithm of the mean exponential; classes (B, top)."""
    best, classes = logits.topk(top, dim=1)
    others = logits.scatter(1, classes, -torch.inf).logsumexp(1, keepdim=True)
    return torch.cat((best, others - math.log(logits.shape[1] - top)), dim=1), classes


def _open(folder: Path, plan: dict[str, Any]) -> tuple[list[np.memmap], int]:
    """The file of logits, and that of classes if only some are kept; how many answers are there already."""
    if has_answers(folder):
        about = _about(folder)
        differing = sorted(key for key in {*plan, *about} - {"done"} if plan.get(key) != about.get(key))
        if differing:
            what = f"answers with another {', '.join(differing)} are here"
            raise ConfigError(what, where=folder, remedy="name another folder", code="C11")
        return _files(folder, about, "r+"), about["done"]
    if is_used(folder):
        raise ConfigError("the output folder is not empty", where=folder, remedy="name another folder", code="C11")
    make_writable(folder)
    files = [
        np.lib.format.open_memmap(folder / name, mode="w+", dtype=dtype, shape=shape)
        for name, dtype, shape in _layout(plan)
    ]
    replace_text(folder / "answers.json", json.dumps({**plan, "done": 0}, indent=2))
    return files, 0


def _layout(about: Mapping[str, Any]) -> list[tuple[str, Any, tuple[int, ...]]]:
    """Name, type and shape of each file."""
    top, classes = about["top"], len(about["classes"])
    places = (about["views"], about["images"])
    found: list[tuple[str, Any, tuple[int, ...]]] = [
        ("answers.npy", DTYPES[about["dtype"]], (*places, top + 1 if top else classes))
    ]
    if top:
        found.append(("classes.npy", np.uint16 if classes <= 2**16 else np.uint32, (*places, top)))
    return found


def _files(folder: Path, about: Mapping[str, Any], mode: Literal["r", "r+"]) -> list[np.memmap]:
    """The files of a folder, opened.

    Raises:
        CheckpointError: one is missing, cut, or not what `answers.json` says (K02).
    """
    files = []
    for name, dtype, shape in _layout(about):
        path = folder / name
        try:
            file = np.lib.format.open_memmap(path, mode="r")  # to write it would make a cut file whole, with zeros
            if (file.shape, file.dtype) != (shape, dtype):
                raise ValueError(f"{file.dtype} {file.shape}, expected {np.dtype(dtype)} {shape}")
        except (OSError, ValueError) as error:
            remedy = "store the answers anew, in another folder"
            raise CheckpointError("no longer what was stored", where=path, remedy=remedy, code="K02") from error
        files.append(file if mode == "r" else np.lib.format.open_memmap(path, mode=mode))
    return files


def _about(folder: Path) -> dict[str, Any]:
    try:
        about = json.loads((folder / "answers.json").read_text())
        numbers = {name: int(about[name]) for name in ("views", "images", "done")}
        about = {"top": None, **about, **numbers}
        _layout(about)
        return about
    except (OSError, ValueError, KeyError, TypeError) as error:
        remedy = "make them with: regard distill cache"
        raise CheckpointError("no stored answers", where=folder, remedy=remedy, code="K02") from error


def _collate(samples: list[Any]) -> Any:
    error = next((sample for sample in samples if not isinstance(sample, ClassSample)), None)
    return error or ImageBatch.from_images([sample.image for sample in samples])


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 24 else f"{text[:12]}..."


class Answered(Augmented):
    """Samples in those views for which a teacher's answers are stored, with the answers."""

    def __init__(
        self, dataset: ClassificationDataset, transform: ImagePipeline, seed: int, answers: StoredAnswers
    ) -> None:
        super().__init__(dataset, transform, seed)
        self.answers = answers

    def __getitem__(self, place: tuple[int, int]) -> ClassSample:
        view, index = place[0] % self.answers.views, place[1]
        return replace(super().__getitem__((view, index)), teacher_logits=self.answers[view, index])
