"""Data loading whose order and randomness depend on (seed, epoch, sample) only, not on workers or restarts."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from regard.errors import MachineError, RegardError
from regard.training.config import batches_per_epoch
from regard.training.distributed import Processes

TIMEOUT = 600  # seconds to wait for a batch of the worker processes; longer than any disk that still answers


class MapDataset(Protocol):
    """A data set with integer indices."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


def mix(*numbers: int) -> int:
    """Return one seed made from several numbers. Other numbers give an independent seed (SplitMix64)."""
    state = 0
    for number in numbers:
        state = (state ^ number) + 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ state >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1


class Augmented(Dataset):
    """Samples with augmentation: `transform(sample, generator)`, the generator seeded with (seed, epoch, index)."""

    def __init__(self, dataset: MapDataset, transform: Callable[[Any, torch.Generator], Any], seed: int) -> None:
        self.dataset = dataset
        self.transform = transform
        self.seed = seed

    def __getitem__(self, place: tuple[int, int]) -> Any:
        epoch, index = place
        generator = torch.Generator().manual_seed(mix(self.seed, epoch, index))
        return self.transform(self.dataset[index], generator)


class InfiniteBatchSampler(Sampler[list[tuple[int, int]]]):
    """Yield batches of (view, index) for one process, epoch after epoch without end.

    All processes together see each sample once per epoch. The batches of all processes, put together, are those of one
    process with as many samples. If the number of processes does not divide that of the samples, the last batch of an
    epoch has a few samples twice. The view is the number of the epoch and seeds the augmentation.

    With `repeats` > 1 an epoch has the same number of samples but fewer different ones, each in several views one after
    the other (repeated augmentation, Hoffer et al. 2020). For seed 0 their order is that of DeiT's samplers.py, which
    cuts an epoch to a multiple of 256.

    Args:
        length: number of samples in the data set.
        batch_size: samples per batch and process.
        seed: seed of the order.
        processes: the rank of this process and the number of all.
        start: number of batches to skip.
        repeats: views per sample and epoch.
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
        return batches_per_epoch(self.length, self.batch_size, self.world_size)

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
        """Return the samples per epoch and process. Unlike DeiT's sampler, not 0 for fewer than 256 samples."""
        whole = self.length // 256 * 256 if self.length >= 256 else self.length
        return max(1, whole // self.world_size)


def worker_count(wanted: int) -> int:
    """Return the number of worker processes: `wanted`, but at most the available cores, as more are slower.

    Training processes that torchrun started on one machine share its cores.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(wanted, max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE") or 1)))


def training_loader(
    dataset: Augmented, batches: InfiniteBatchSampler, collate: Callable, workers: int, device: torch.device
) -> DataLoader:
    """Return a loader of infinite batches; read it through `raise_errors`.

    Args:
        dataset: samples with augmentation.
        batches: which samples make a batch.
        collate: list of samples -> batch.
        workers: worker processes wanted (see `worker_count`); they live as long as the iterator.
        device: where the batches go; memory is pinned for CUDA.
    """
    workers = worker_count(workers)
    return DataLoader(
        ErrorsAsValues(dataset),
        batch_sampler=batches,
        collate_fn=partial(collate_or_error, collate),
        num_workers=workers,
        pin_memory=device.type == "cuda",
        prefetch_factor=4 if workers else None,
        timeout=TIMEOUT if workers else 0,
        worker_init_fn=ignore_stop_signals,
        generator=torch.Generator(),  # otherwise it draws from the global generator, which dropout uses
    )


class ErrorsAsValues(Dataset):
    """A data set that returns a sample's RegardError instead of raising it.

    torch re-creates an exception of a worker process with the traceback as its message, so its one line and its code
    are lost. Errors therefore pass through the loader as values: `collate_or_error` returns them as a batch and
    `raise_errors` raises them in the main process.

    The samples of a batch are read together if the data set asks for it by `at_once`, the number of threads.
    """

    def __init__(self, dataset: MapDataset | Augmented) -> None:
        self.dataset = dataset
        source: Any = dataset
        while hasattr(source, "dataset"):  # with transforms around it
            source = source.dataset
        self.at_once: int = getattr(source, "at_once", 1)

    def __getitems__(self, places: Sequence[Any]) -> list[Any]:
        if self.at_once == 1:
            return [self[place] for place in places]
        return list(_threads(self.at_once, os.getpid()).map(self.__getitem__, places))

    def __getitem__(self, place: Any) -> Any:
        try:
            return self.dataset[place]
        except RegardError as error:
            return error


@cache
def _threads(count: int, process: int) -> ThreadPoolExecutor:
    """Return the threads of a process: those of its parent are not forked."""
    return ThreadPoolExecutor(count)


def collate_or_error(collate: Callable, samples: Sequence[Any]) -> Any:
    """Return a batch of the samples, or the first error among them."""
    return next((sample for sample in samples if isinstance(sample, RegardError)), None) or collate(samples)


def raise_errors(batches: Iterable[Any]) -> Iterator[Any]:
    """Yield the batches of a loader over `ErrorsAsValues`.

    Raises:
        RegardError: the error of a sample.
        MachineError: a worker process was killed (T10) or hangs (T12).
    """
    with explain_workers():
        for batch in batches:
            if isinstance(batch, RegardError):
                raise batch
            yield batch


def ignore_stop_signals(worker: int) -> None:
    """Ignore SIGINT, SIGUSR1 and the first SIGTERM in a worker process (a `worker_init_fn`); a second SIGTERM ends it.

    Ctrl-C, `timeout` and job managers signal all processes of a job. The main process finishes its step first, for
    which it may need another batch from its workers.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGUSR1"):
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))


@contextmanager
def explain_workers() -> Iterator[None]:
    """Turn torch's RuntimeError about a worker that was killed or hangs into a MachineError with a remedy.

    torch tells of a killed one from a signal handler, so its error can come from any line of the main process.

    Raises:
        MachineError: a worker process was killed (T10) or hangs (T12).
    """
    try:
        yield
    except (RuntimeError, ConnectionError, EOFError) as error:  # the last two if it was sending a batch
        is_lost = isinstance(error, (ConnectionError, EOFError)) and "multiprocessing" in _file_of(error)
        if "DataLoader timed out" in str(error):
            what = f"the processes that load images gave none for {TIMEOUT} seconds"
            remedy = "check that the disk or network drive of the data answers, then resume"
            raise MachineError(what, remedy=remedy, code="T12") from error
        if "DataLoader worker" not in str(error) and not is_lost:
            raise
        raise MachineError(
            "a process that loads images was killed",
            remedy="most likely memory ran out: set workers or batch_size lower",
            code="T10",
        ) from error


def _file_of(error: BaseException) -> str:
    """Return the file of the code that raised an error."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    return "" if place is None else place.tb_frame.f_code.co_filename
