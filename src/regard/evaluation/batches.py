"""Batches of a data set for evaluation: without augmentation, and of detectors without padding."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from regard.evaluation.progress import watch
from regard.training.data_loader import (
    TIMEOUT,
    ErrorsAsValues,
    MapDataset,
    collate_or_error,
    ignore_stop_signals,
    raise_errors,
    worker_count,
)


def evaluation_batches(
    dataset: MapDataset,
    transform: Callable[[Any], Any],
    collate: Callable,
    batches: Iterable[list[int]],
    *,
    workers: int,
    device: torch.device,
) -> Iterator[Any]:
    """Yield batches of transformed samples.

    Args:
        transform: sample -> sample at the size for evaluation.
        collate: list of samples -> batch.
        batches: indices of the samples of each batch.
        workers: processes that load images; 0 loads in this process.
        device: where the batches go; memory is pinned for CUDA.
    """
    planned, workers = list(batches), worker_count(workers)
    loader = DataLoader(
        ErrorsAsValues(_Transformed(dataset, transform)),
        batch_sampler=planned,
        collate_fn=partial(collate_or_error, collate),
        num_workers=workers,
        pin_memory=device.type == "cuda",
        timeout=TIMEOUT if workers else 0,
        worker_init_fn=ignore_stop_signals,
    )
    return watch(raise_errors(loader), [len(batch) for batch in planned])


class _Transformed(Dataset):
    """A data set whose samples are transformed."""

    def __init__(self, dataset: MapDataset, transform: Callable[[Any], Any]) -> None:
        self.dataset = dataset
        self.transform = transform

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return self.transform(self.dataset[index])
