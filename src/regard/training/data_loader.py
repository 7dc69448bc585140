"""Which sample comes when: a function of (seed, epoch, sample), whatever the number of workers and restarts."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from regard.errors import MachineError, RegardError
from regard.training.distributed import Processes


class MapDataset(Protocol):
    """Samples by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


def mix(*numbers: int) -> int:
    """One seed from several numbers; different numbers give different seeds, as good as random (SplitMix64)."""
    state = 0
    for number in numbers:
        state = (state ^ number) + 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ state >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1


class Augmented(Dataset):
    """Samples as training sees them: `transform(sample, generator)` with a generator for (seed, epoch, index)."""

    def __init__(self, dataset: MapDataset, transform: Callable[[Any, torch.Generator], Any], seed: int) -> None:
        self.dataset = dataset
        self.transform = transform
        self.seed = seed

    def __getitem__(self, place: tuple[int, int]) -> Any:
        epoch, index = place
        generator = torch.Generator().manual_seed(mix(self.seed, epoch, index))
        return self.transform(self.dataset[index], generator)


class EndlessBatches(Sampler[list[tuple[int, int]]]):
    """Batches of (view, index) for one process, epoch after epoch without end, from any batch on.

    All processes together see every sample once an epoch; a few come twice where the processes do not divide them.
    A view is the number of the epoch. With `repeats` an epoch has as many samples, but fewer different ones, each in
    several views side by side (repeated augmentation: Hoffer et al. 2020). Their order is that of DeiT's samplers.py,
    which cuts it to a multiple of 256, for seed 0.

    Args:
        length: samples.
        batch_size: samples of a batch in each process.
        seed: of the order.
        processes: this process among all.
        start: batches to pass over.
        repeats: views of a sample in an epoch.
    """

    def __init__(
        self, length: int, batch_size: int, seed: int, processes: Processes, start: int = 0, repeats: int = 1
    ) -> None:
        self.length = length
        self.batch_size = batch_size
        self.seed = seed
        self.rank, self.world_size = processes.rank, processes.world_size
        self.start = start
        self.repeats = repeats

    @property
    def batches_per_epoch(self) -> int:
        if self.repeats > 1:
            return -(-self._repeated_count() // self.batch_size)
        return -(-self.length // (self.batch_size * self.world_size))

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, skip = divmod(self.start, self.batches_per_epoch)
        while True:
            mine = self._repeated(epoch) if self.repeats > 1 else self._once(epoch)
            for first in range(skip * self.batch_size, len(mine), self.batch_size):
                yield mine[first : first + self.batch_size]
            epoch, skip = epoch + 1, 0

    def _once(self, epoch: int) -> list[tuple[int, int]]:
        order = torch.randperm(self.length, generator=torch.Generator().manual_seed(mix(self.seed, epoch))).tolist()
        order += (order * self.world_size)[: -len(order) % self.world_size]
        return [(epoch, index) for index in order[self.rank :: self.world_size]]

    def _repeated(self, epoch: int) -> list[tuple[int, int]]:
        order = torch.randperm(self.length, generator=torch.Generator().manual_seed(self.seed + epoch)).tolist()
        places = [(epoch * self.repeats + view, index) for index in order for view in range(self.repeats)]
        places += (places * self.world_size)[: -len(places) % self.world_size]
        return places[self.rank :: self.world_size][: self._repeated_count()]

    def _repeated_count(self) -> int:
        """Samples of an epoch for each process; DeiT's are none where there are fewer than 256."""
        whole = self.length // 256 * 256 if self.length >= 256 else self.length
        return max(1, whole // self.world_size)


def worker_count(wanted: int) -> int:
    """How many processes load images: no more than there are cores for them, or they are slower together."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(wanted, cores)


def training_loader(
    dataset: Augmented, batches: EndlessBatches, collate: Callable, workers: int, device: torch.device
) -> DataLoader:
    """Batches without end, to be read through `raising`. Workers start once and live as long as the iterator."""
    workers = worker_count(workers)
    return DataLoader(
        Caught(dataset),
        batch_sampler=batches,
        collate_fn=partial(collate_caught, collate),
        num_workers=workers,
        pin_memory=device.type == "cuda",
        prefetch_factor=4 if workers else None,
        worker_init_fn=outlive_signals,
        generator=torch.Generator(),  # or the loader would draw from the generator that the model's dropout uses
    )


class Caught(Dataset):
    """Samples, or in their place the error that a sample raised.

    torch makes anew what a worker process raises: of the same type, with the traceback for its message. So errors
    travel as values, through `collate_caught`, and `raising` raises them where the batches arrive.
    """

    def __init__(self, dataset: MapDataset | Augmented) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]  # never asked of `Augmented`, which has no end

    def __getitem__(self, place: Any) -> Any:
        try:
            return self.dataset[place]
        except RegardError as error:
            return error


def collate_caught(collate: Callable, samples: Sequence[Any]) -> Any:
    """A batch of the samples, or the first error among them."""
    return next((sample for sample in samples if isinstance(sample, RegardError)), None) or collate(samples)


def raising(batches: Iterable[Any]) -> Iterator[Any]:
    """The batches of a loader over `Caught` samples; the errors among them are raised."""
    with naming_killed_workers():
        for batch in batches:
            if isinstance(batch, RegardError):
                raise batch
            yield batch


def outlive_signals(worker: int) -> None:
    """Ctrl-C, `timeout` and job managers signal all processes of a job, but the trainer answers for its workers.

    It finishes its step, for which it may need another batch. A second SIGTERM ends a worker as usual.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))


@contextmanager
def naming_killed_workers() -> Iterator[None]:
    """Say what it means that a worker was killed. torch raises it anywhere: from a handler of the child's signal."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise MachineError(
            "a process that loads images was killed",
            remedy="most likely memory ran out: set workers or batch_size lower",
            code="T10",
        ) from error
