"""One process or several: `torchrun --nproc-per-node 4 -m regard train ...` starts this file's only user four times."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from regard.errors import ConfigError, MachineError
from regard.training.launch import first_failure


@dataclass(frozen=True)
class Processes:
    """This process among those of a run."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """The `value` of every process, in every process. Values are sent pickled, between our own processes only."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def any(self, flag: bool) -> bool:
        """Whether `flag` holds in any process."""
        if self.world_size == 1:
            return flag
        total = torch.tensor(int(flag), device=self.device)
        dist.all_reduce(total)
        return bool(total.item())

    def share(self, tensors: Iterable[Tensor]) -> None:
        """Put the first process's values into the tensors of all."""
        if self.world_size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def wait(self) -> None:
        """Return when every process has come here."""
        if self.world_size > 1:
            dist.barrier()


@contextmanager
def processes(device: str = "auto") -> Iterator[Processes]:
    """Join the processes that torchrun started, or be the only one."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    chosen = choose_device(device)
    if chosen.type == "cuda" and chosen.index is None:
        chosen = torch.device("cuda", local_rank)
        torch.cuda.set_device(chosen)
    if world_size == 1:
        yield Processes(0, 1, chosen)
        return
    # The first process alone looks through the data, draws and writes checkpoints while the others wait. One that
    # died is not waited for: torchrun ends the rest.
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=timedelta(minutes=30))
    try:
        group = Processes(dist.get_rank(), world_size, chosen)
        # A process that failed while another still connects would leave that one with a connection error.
        group.wait()
        yield group
    except BaseException as error:
        # Before the others lose the connection, or they could report that first.
        first_failure(getattr(error, "exit_code", 1))
        raise
    finally:
        dist.destroy_process_group()


def choose_device(name: str = "auto") -> torch.device:
    """A device by name; `auto` is the best that is there.

    Raises:
        ConfigError: not a device's name.
        MachineError: the device is not there. We never fall back to the CPU unasked.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(
            f"unknown device {name!r}", where="device", remedy="auto, cpu, cuda, cuda:0 or mps", code="C10"
        ) from error
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available.get(device.type, False):
        raise MachineError(
            f"no {device.type} device on this machine", where="device", remedy="use cpu as the device", code="C10"
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise MachineError(
            f"no device {name!r}, this machine has {torch.cuda.device_count()} CUDA devices",
            where="device",
            code="C10",
        )
    return device
