"""A teacher's logits on disk: computed once for some views of every image, then used to train any number of students.

A folder holds `answers.npy`, logits (views, images, classes), and `answers.json`, which records what they belong to:
data, seed and augmentation. Training starts only if these are the same.

With `top=k` only the k most likely classes are kept: their numbers in `classes.npy` (views, images, k), and in
`answers.npy` their logits followed by one value that all other classes share. The probabilities of the k classes are
then exactly the teacher's, and the rest is spread evenly (marginal smoothing: Shen and Xing 2022, section 3.3).
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
from regard.distillation.options import StorageOptions
from regard.distillation.teachers import Teacher
from regard.errors import CheckpointError, ConfigError
from regard.safe_files import is_used, make_writable, replace_text
from regard.structures.image_batch import ImageBatch
from regard.training.data_loader import TIMEOUT, Augmented, ErrorsAsValues, raise_errors, worker_count

DTYPES = {"float16": np.float16, "float32": np.float32}
FLUSH_EVERY = 20  # batches; an interrupted run repeats at most these


class StoredLogits:
    """The logits of a finished folder. Opens its files on the first read, so that it can be sent to loader processes.

    Attributes:
        views: number of views of each image; training returns to the first after the last.

    Raises:
        CheckpointError: the folder holds no logits, not all of them, or damaged files (K02).
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.about = _read_about(self.folder)
        self.views = int(self.about["views"])
        if self.about["done"] < self.views * self.about["images"]:
            what = f"only {self.about['done']} of {self.views * self.about['images']} logits are stored"
            remedy = "repeat the command that stored them: it resumes"
            raise CheckpointError(what, where=self.folder, remedy=remedy, code="K02")
        _open_files(self.folder, self.about, "r")  # damage is reported now, not in the middle of training
        self._opened: list[np.memmap] = []  # logits, and classes if only some are kept

    def __getitem__(self, place: tuple[int, int]) -> Tensor:
        """Return logits (C,) float32 for (view, image)."""
        if not self._opened:
            self._opened = _open_files(self.folder, self.about, "r")
        kept = torch.from_numpy(self._opened[0][place].astype(np.float32))
        if len(self._opened) == 1:
            return kept
        logits = kept[-1].repeat(len(self.about["classes"]))
        logits[torch.from_numpy(self._opened[1][place].astype(np.int64))] = kept[:-1]
        return logits

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": []}

    def check(self, wanted: Mapping[str, Any]) -> None:
        """Check that the logits belong to the data, seed and augmentation `wanted`.

        Raises:
            ConfigError: they belong to others (C07).
        """
        differing = [key for key, value in wanted.items() if self.about.get(key) != value]
        if differing:
            parts = ", ".join(f"{key} {_short(self.about.get(key))} is {_short(wanted[key])} here" for key in differing)
            remedy = "train with the settings of the stored logits, or store new ones: regard distill cache"
            what = f"stored logits belong to another run: {parts}"
            raise ConfigError(what, where=self.folder, remedy=remedy, code="C07")


def has_logits(folder: str | Path) -> bool:
    """Return whether a folder holds stored logits."""
    return (Path(folder) / "answers.json").is_file()


def store_logits(
    data: Augmented,
    teacher: Teacher,
    folder: Path,
    about: Mapping[str, Any],
    options: StorageOptions,
    *,
    device: torch.device,
    workers: int,
) -> Iterator[float]:
    """Compute a teacher's logits for views of every image; yield the finished share, 0..1, after each batch.

    Args:
        data: the images as a student would see them.
        teacher: on `device`.
        about: what the logits belong to, with the class names as `classes`; an interrupted folder is resumed, and
            trained on, only with the same.

    Raises:
        ConfigError: `top` is out of range (C03), or the folder holds something else (C11).
    """
    classes, count, top = len(about["classes"]), len(data.dataset), options.top
    total = options.views * count
    if top is not None and not 0 < top < classes:
        raise ConfigError(f"top={top}, expected 1 to {classes - 1}, or none for all {classes} classes", code="C03")
    plan = {**about, "views": options.views, "images": count, "dtype": options.dtype, "top": top}
    files, done = _prepare(folder, plan)
    places = [divmod(number, count) for number in range(done, total)]
    workers = worker_count(workers)
    loader = DataLoader(
        ErrorsAsValues(data), options.batch_size, sampler=places, collate_fn=_collate,
        num_workers=workers, pin_memory=device.type == "cuda", timeout=TIMEOUT if workers else 0,
    )  # fmt: skip
    for number, batch in enumerate(raise_errors(loader), start=1):
        logits = teacher(batch.to(device).normalized().pixels).cpu()
        for file, part in zip(files, [logits] if top is None else _most_likely(logits, top), strict=True):
            file.reshape(total, -1)[done : done + len(logits)] = part.numpy()
        done += len(logits)
        if number % FLUSH_EVERY == 0 or done == total:
            for file in files:
                file.flush()
            replace_text(folder / "answers.json", json.dumps({**plan, "done": done}, indent=2))
        yield done / total


def _most_likely(logits: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """Return logits (B, top + 1), best first and the log-mean-exp of all others last, and classes (B, top)."""
    best, classes = logits.topk(top, dim=1)
    others = logits.scatter(1, classes, -torch.inf).logsumexp(1, keepdim=True)
    return torch.cat((best, others - math.log(logits.shape[1] - top)), dim=1), classes


def _prepare(folder: Path, plan: dict[str, Any]) -> tuple[list[np.memmap], int]:
    """Create or reopen the files of a folder; return them and how many logits they hold already."""
    if has_logits(folder):
        about = _read_about(folder)
        differing = sorted(key for key in {*plan, *about} - {"done"} if plan.get(key) != about.get(key))
        if differing:
            what = f"the folder holds logits with another {', '.join(differing)}"
            raise ConfigError(what, where=folder, remedy="name another folder", code="C11")
        return _open_files(folder, about, "r+"), about["done"]
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
    """Return name, dtype and shape of each file."""
    top, classes = about["top"], len(about["classes"])
    places = (about["views"], about["images"])
    files: list[tuple[str, Any, tuple[int, ...]]] = [
        ("answers.npy", DTYPES[about["dtype"]], (*places, top + 1 if top else classes))
    ]
    if top:
        files.append(("classes.npy", np.uint16 if classes <= 2**16 else np.uint32, (*places, top)))
    return files


def _open_files(folder: Path, about: Mapping[str, Any], mode: Literal["r", "r+"]) -> list[np.memmap]:
    """Open the files of a folder.

    Raises:
        CheckpointError: one is missing, truncated, or not what `answers.json` says (K02).
    """
    files = []
    for name, dtype, shape in _layout(about):
        path = folder / name
        try:
            file = np.lib.format.open_memmap(path, mode="r")  # opening for writing would pad a truncated file
            if (file.shape, file.dtype) != (shape, dtype):
                raise ValueError(f"{file.dtype} {file.shape}, expected {np.dtype(dtype)} {shape}")
        except (OSError, ValueError) as error:
            remedy = "store the logits again, in another folder"
            raise CheckpointError("damaged file of logits", where=path, remedy=remedy, code="K02") from error
        files.append(file if mode == "r" else np.lib.format.open_memmap(path, mode=mode))
    return files


def _read_about(folder: Path) -> dict[str, Any]:
    try:
        about = json.loads((folder / "answers.json").read_text())
        numbers = {name: int(about[name]) for name in ("views", "images", "done")}
        about = {"top": None, **about, **numbers}
        _layout(about)
        return about
    except (OSError, ValueError, KeyError, TypeError) as error:
        remedy = "store them with: regard distill cache"
        raise CheckpointError("no stored logits", where=folder, remedy=remedy, code="K02") from error


def _collate(samples: list[Any]) -> Any:
    error = next((sample for sample in samples if not isinstance(sample, ClassSample)), None)
    return error or ImageBatch.from_images([sample.image for sample in samples])


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 24 else f"{text[:12]}..."


class AugmentedWithLogits(Augmented):
    """Augmented samples in the views for which a teacher's logits are stored, with these logits."""

    def __init__(
        self, dataset: ClassificationDataset, transform: ImagePipeline, seed: int, logits: StoredLogits
    ) -> None:
        super().__init__(dataset, transform, seed)
        self.logits = logits

    def __getitem__(self, place: tuple[int, int]) -> ClassSample:
        view, index = place[0] % self.logits.views, place[1]
        return replace(super().__getitem__((view, index)), teacher_logits=self.logits[view, index])
