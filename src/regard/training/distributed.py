"""Training in one process or several (`torchrun --nproc-per-node 4 -m regard train ...`); choice of the device."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from regard.errors import ConfigError, MachineError, RegardError
from regard.training.launch import first_failure

# In the messages of gloo when a process has ended or does not answer.
_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out waiting", "[gloo]")


@dataclass(frozen=True)
class Processes:
    """The place of this process among those of a run, and collective operations on all of them.

    Attributes:
        rank: number of this process, from 0.
        world_size: number of processes.
        device: the device of this process.
    """

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all processes, by rank, in every process. They are pickled on their way."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def any(self, flag: bool) -> bool:
        """Return whether `flag` is true in any process."""
        if self.world_size == 1:
            return flag
        total = torch.full((), int(flag), device=self.device)
        dist.all_reduce(total)
        return bool(total.item())

    def largest(self, values: Tensor) -> Tensor:
        """Return the largest of each of `values` (N,), which are on the device, over all processes."""
        if self.world_size > 1:
            dist.all_reduce(values, op=dist.ReduceOp.MAX)
        return values

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Copy the values of the first process into the tensors of all, in place."""
        if self.world_size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def barrier(self) -> None:
        """Wait until every process has called this."""
        if self.world_size > 1:
            dist.barrier()


@contextmanager
def processes(device: str = "auto") -> Iterator[Processes]:
    """Join the process group that torchrun started, or be the only process.

    Raises:
        ConfigError, MachineError: the device is unknown or missing (C10).
        MachineError: another process was lost (T13).
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    chosen = choose_device(device)
    if world_size > 1:
        _check_launch(chosen, local_rank)
    if chosen.type == "cuda" and chosen.index is None:
        chosen = torch.device("cuda", local_rank)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)  # for what asks for no device, such as page-locked memory
    if world_size == 1:
        yield Processes(0, 1, chosen)
        return
    # Long, as the others wait while the first process checks the data, draws pictures and writes checkpoints. A dead
    # process does not cost this time: torchrun ends the rest.
    timeout = timedelta(minutes=30)
    if chosen.type == "cuda":
        _join("nccl", timeout, chosen)
    else:
        _join("gloo", timeout)
    try:
        group = Processes(dist.get_rank(), world_size, chosen)
        # If a process failed while another one connects, that one would report a connection error.
        group.barrier()
        yield group
    except BaseException as error:
        known = _of_lost_process(error)
        # Record it before the others lose the connection and report that first.
        first_failure(getattr(known, "exit_code", 1))
        if known is error:
            raise
        raise known from error
    finally:
        dist.destroy_process_group()


def _of_lost_process(error: BaseException) -> BaseException:
    """Return the error as one line for the user if the connection to another process was lost; else the error itself.

    Gloo's errors have no class of their own. torchrun ends what waits for a lost process within 30 seconds.
    """
    known = isinstance(error, dist.DistError) or any(word in str(error) for word in _LOST)
    if not isinstance(error, RuntimeError) or isinstance(error, RegardError) or not known:
        return error
    remedy = "go on with --resume; torchrun --max-restarts 3 does so by itself"
    return MachineError("lost another process of this training", remedy=remedy, code="T13")


def _check_launch(device: torch.device, local_rank: int) -> None:
    """Check the environment of one of several processes.

    Raises:
        ConfigError: torchrun did not start it (C09), or all processes would use one GPU (C10).
        MachineError: there are fewer GPUs than processes (C10).
    """
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        what = f"WORLD_SIZE is set and {missing[0]} is not"
        raise ConfigError(what, remedy="start with torchrun, or unset WORLD_SIZE", code="C09")
    if device.type == "cuda" and device.index is not None:
        what = f"device={device} would put all processes on one GPU"
        raise ConfigError(what, remedy="use device=cuda", code="C10")
    if device.type == "cuda" and local_rank >= torch.cuda.device_count():
        what = f"process {local_rank} of this machine has no GPU: there are {torch.cuda.device_count()}"
        raise MachineError(what, remedy=f"use --nproc-per-node {torch.cuda.device_count()}", code="C10")


def choose_device(name: str = "auto") -> torch.device:
    """Return a device by name; `auto` takes CUDA, else MPS, else the CPU.

    Raises:
        ConfigError: not the name of a device (C10).
        MachineError: the machine has no such device (C10). There is no silent fallback to the CPU.
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


def _join(backend: str, timeout: timedelta, device: torch.device | None = None) -> None:
    """Join the other processes of torchrun's environment.

    Addresses are kept apart by attempt: torchrun may give processes that it restarts the store of those before, in
    which their addresses still stand.
    """
    store, rank, count = next(rendezvous("env://", timeout=timeout))
    store = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=timeout, device_id=device)


def in_parallel(model: nn.Module) -> DistributedDataParallel:
    """Return a model that averages its gradients over all processes.

    Buffers that training changes come from the first process before each step. Others, such as frozen statistics, are
    the same everywhere.
    """
    changes = any(isinstance(module, _BatchNorm) and module.track_running_stats for module in model.modules())
    parallel = DistributedDataParallel(model, gradient_as_bucket_view=True)
    parallel.broadcast_buffers = changes  # as an argument it has another name since torch 2.13
    return parallel
