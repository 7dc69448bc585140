"""A session on a machine with a GPU: parts that stand alone, each with a share of the time, and rows of results."""

from __future__ import annotations

import json
import statistics
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from regard.errors import DataError

WARM_UP = 3  # calls that are not counted


@dataclass(frozen=True)
class Session:
    """A session.

    Args:
        device: a GPU; on the CPU everything is small, to try the session.
        output: folder for `results.jsonl`.
        ends: time of `time.monotonic` after which no part begins.
    """

    device: torch.device
    output: Path
    ends: float

    @property
    def is_small(self) -> bool:
        return self.device.type != "cuda"

    @property
    def precisions(self) -> tuple[str, ...]:
        """What the device computes in."""
        return ("fp32", "bf16") if self.is_small else ("fp32", "tf32", "bf16", "fp16")

    @property
    def seconds_left(self) -> float:
        return self.ends - time.monotonic()

    def row(self, part: str, **numbers: Any) -> None:
        """Print a result and append it to `results.jsonl`."""
        line = json.dumps({"part": part, **numbers}, default=str)
        print(line, flush=True)
        with (self.output / "results.jsonl").open("a") as file:
            file.write(line + "\n")

    def run(self, part: Callable[[Session], None], least: float) -> None:
        """Run a part if `least` seconds are left. One that fails leaves a row, and the next goes on."""
        name = part.__name__
        if self.seconds_left < least:
            self.row(name, skipped=f"{self.seconds_left:.0f} seconds are left")
            return
        began = time.monotonic()
        try:
            part(self)
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)[-4:]
            at = " ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames)
            self.row(name, failed=f"{type(error).__name__}: {error}"[:300], at=at)
        if not self.is_small:
            torch.cuda.empty_cache()
        self.row(name, seconds=round(time.monotonic() - began, 1))

    def time(self, call: Callable[[], object], *, least: int = 10, seconds: float = 1.0) -> dict[str, float]:
        """Return the median milliseconds `ms` of a call, and on a GPU the most memory `gib` that it needed.

        Args:
            least: calls at least; on a CPU 2.
            seconds: and so long; on a CPU one call is enough.
        """
        for _ in range(1 if self.is_small else WARM_UP):
            call()
        taken: list[float] = []
        self._synchronize()
        if not self.is_small:
            torch.cuda.reset_peak_memory_stats(self.device)
        began = time.monotonic()
        while len(taken) < (2 if self.is_small else least) or (
            not self.is_small and time.monotonic() - began < seconds and len(taken) < 1000
        ):
            start = time.perf_counter()
            call()
            self._synchronize()
            taken.append(1000 * (time.perf_counter() - start))
        found = {"ms": round(statistics.median(taken), 3)}
        if not self.is_small:
            found["gib"] = round(torch.cuda.max_memory_allocated(self.device) / 2**30, 2)
        return found

    def _synchronize(self) -> None:
        if not self.is_small:
            torch.cuda.synchronize(self.device)


def read_results(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of a session.

    Raises:
        DataError: the folder has none.
    """
    path = folder / "results.jsonl"
    if not path.is_file():
        raise DataError("no results of a session", where=path, remedy="run: python -m regard.benchmarks.gpu")
    return [json.loads(line) for line in path.read_text().splitlines()]
