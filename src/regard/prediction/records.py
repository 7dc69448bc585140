"""Records of what is done, beside a file of results to come: several processes write them, any of them reads them.

`found.json.parts/` holds a file for each process that worked on `found.json`, with a line for each image. A process
that was killed leaves at most one line that is cut off, which is not read. The names of the files tell the job: records
of other weights, options or images are not used.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

import torch

from regard import __version__
from regard.models.build import Model
from regard.prediction.options import PredictionOptions
from regard.safe_files import make_writable, naming

_NAME = re.compile(r"([0-9a-f]{16})-[0-9a-f]{32}\.jsonl")


def records_folder(target: Path) -> Path:
    """Return the folder of the records for a file of results."""
    return target.with_name(f"{target.name}.parts")


def job_of(net: Model, weights: Path | None, options: PredictionOptions, files: Iterable[str | Path]) -> str:
    """Return 16 hexadecimal digits that differ for other weights, classes, options or names of images.

    Args:
        weights: the file of a model that has no tensors of its own, such as an ONNX file.
    """
    digest = hashlib.sha256()
    for name, tensor in net.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    if weights is not None:
        digest.update(weights.read_bytes())
    told = [__version__, dataclasses.asdict(net.card), dataclasses.asdict(options), [str(file) for file in files]]
    digest.update(json.dumps(told).encode())
    return digest.hexdigest()[:16]


class Records:
    """The records of a job, and the file to which this process adds its own.

    Args:
        target: the file of results to come.
        job: of `job_of`.
    """

    def __init__(self, target: Path, job: str) -> None:
        self.folder = records_folder(target)
        self.job = job
        self.file: TextIO | None = None

    def read(
        self,
        images: Sequence[tuple[int, str | Path]],
        files_of: Callable[[str | Path, list[dict[str, Any]]], list[Path]],
    ) -> dict[int, list[dict[str, Any]]]:
        """Return the rows of the images that are done, by the numbers of the images.

        An image is not done if it changed since, or if a file that belongs to it is missing or was written again, by a
        job with other options.

        Args:
            images: numbers and files.
            files_of: gives the files that belong to an image and its rows, such as its picture. Others that were
                written for it do not count: who joins shards need not draw what they drew.
        """
        files = dict(images)
        done: dict[int, list[dict[str, Any]]] = {}
        for path in self._paths():
            for record in _lines(path) if self._job_of(path) == self.job else ():
                number, written = record["number"], record["written"]
                file = files.get(number)
                if file is None or number in done or record["of"] != _state(file):
                    continue
                if all(written.get(str(path)) == _state(path) for path in files_of(file, record["rows"])):
                    done[number] = record["rows"]
        return done

    def of_jobs(self) -> tuple[int, int]:
        """Return how many files are records of this job, and how many of others."""
        ours = [self._job_of(path) == self.job for path in self._paths()]
        return sum(ours), len(ours) - sum(ours)

    def add(self, number: int, file: str | Path, written: Iterable[Path], rows: Sequence[dict[str, Any]]) -> None:
        """Record an image. written: the files that were written for it, such as its picture."""
        if self.file is None:
            make_writable(self.folder)
            self.file = (self.folder / f"{self.job}-{uuid.uuid4().hex}.jsonl").open("w", encoding="utf-8")
        states = {str(path): _state(path) for path in written}
        record = {"number": number, "of": _state(file), "written": states, "rows": rows}
        with naming(Path(self.file.name)):
            print(json.dumps(record), file=self.file, flush=True)

    def close(self) -> None:
        """Close the file of this process."""
        if self.file is not None:
            self.file.close()

    def remove(self) -> None:
        """Delete the records of this job; those of other jobs, and other files, stay."""
        self.close()
        for path in self._paths():
            if self._job_of(path) == self.job:
                path.unlink(missing_ok=True)
        with suppress(OSError):
            self.folder.rmdir()

    def _paths(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("*.jsonl") if _NAME.fullmatch(path.name))

    @staticmethod
    def _job_of(path: Path) -> str:
        return path.name.partition("-")[0]


def _state(file: str | Path) -> list[int]:
    """Return what changes when a file is written: its size and time. Empty for an address or a missing file."""
    if isinstance(file, Path):
        with suppress(OSError):
            found = file.stat()
            return [found.st_size, found.st_mtime_ns]
    return []


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    lines: list[bytes] = []
    with suppress(FileNotFoundError):  # another process has joined the job
        lines = path.read_bytes().splitlines()
    for line in lines:
        with suppress(ValueError):  # cut off when its process was killed
            yield json.loads(line)
