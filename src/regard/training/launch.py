"""Starting several processes on this machine with torchrun."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence


def torchrun_command(arguments: Sequence[str], count: int) -> list[str]:
    """The command that runs `regard ARGUMENTS` in `count` processes that train together."""
    run = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count), "--rdzv-backend", "c10d"]
    return [*run, "--rdzv-endpoint", "localhost:0", "-m", "regard", *arguments]


def quiet_threads(count: int) -> dict[str, str]:
    """The environment for processes that share this machine's cores: threads that wait must not spin."""
    threads = str(max(1, (os.cpu_count() or 1) // count))
    return {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads), "OMP_WAIT_POLICY": "PASSIVE"}
