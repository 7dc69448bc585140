"""`python -m regard.benchmarks.gpu [--device cpu] [--minutes 8] [--output runs/benchmark-gpu]`.

Nothing is downloaded. On a CPU the same parts run with small sizes, to see that they work.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

import regard
from regard.benchmarks.gpu.correctness import same_as_cpu
from regard.benchmarks.gpu.page import page
from regard.benchmarks.gpu.peers import compiled_step, detr_beside_transformers, vit_beside_timm
from regard.benchmarks.gpu.runs import gpu_tests, resume
from regard.benchmarks.gpu.session import Session, read_results
from regard.benchmarks.gpu.steps import memory_orders, training_steps
from regard.errors import ConfigError, RegardError
from regard.training.distributed import choose_device

# Each part with the least seconds for it, the most telling first.
PARTS = (
    (same_as_cpu, 60.0), (training_steps, 60.0), (detr_beside_transformers, 40.0), (vit_beside_timm, 60.0),
    (memory_orders, 40.0), (resume, 60.0), (gpu_tests, 60.0), (compiled_step, 60.0),
)  # fmt: skip


def machine(session: Session) -> None:
    """Tell what the numbers are of."""
    numbers = {"regard": regard.__version__, "torch": torch.__version__, "python": platform.python_version()}
    if session.device.type == "cuda":
        capability = ".".join(map(str, torch.cuda.get_device_capability(session.device)))
        name = torch.cuda.get_device_name(session.device)
        numbers |= {"gpu": name, "capability": capability, "cudnn": str(torch.backends.cudnn.version())}
    session.row("machine", device=str(session.device), **numbers)


def main(words: Sequence[str]) -> None:
    """Run a session and write its page.

    Raises:
        ConfigError, MachineError: no such device (C10), or the folder is not empty (C11).
    """
    parser = argparse.ArgumentParser(prog="python -m regard.benchmarks.gpu", description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--output", type=Path, default=Path("runs/benchmark-gpu"))
    given = parser.parse_args(words)
    device = choose_device(given.device)
    if given.output.is_dir() and any(given.output.iterdir()):
        raise ConfigError("the output folder is not empty", where=given.output, remedy="name another", code="C11")
    given.output.mkdir(parents=True, exist_ok=True)
    session = Session(device, given.output, time.monotonic() + 60 * given.minutes)
    machine(session)
    for part, least in PARTS:
        session.run(part, min(least, 10 * given.minutes))
    path = given.output / "gpu.md"
    path.write_text(page(read_results(given.output)))
    print(path)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except RegardError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
