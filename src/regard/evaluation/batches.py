"""Batches of a data set for evaluation: in order, without augmentation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from torch.utils.data import DataLoader, Dataset

from regard.training.data_loader import (
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
    *,
    batch_size: int,
    workers: int,
    indices: range | None = None,
) -> Iterator[Any]:
    """Yield batches of transformed samples in order.

    Args:
        transform: sample -> sample at the size for evaluation.
        collate: list of samples -> batch.
        indices: the samples to use; all if None.
    """
    loader = DataLoader(
        ErrorsAsValues(_Transformed(dataset, transform, range(len(dataset)) if indices is None else indices)),
        batch_size,
        collate_fn=partial(collate_or_error, collate),
        num_workers=worker_count(workers),
        worker_init_fn=ignore_stop_signals,
    )
    return raise_errors(loader)


class _Transformed(Dataset):
    """Some samples of a data set, transformed."""

    def __init__(self, dataset: MapDataset, transform: Callable[[Any], Any], indices: range) -> None:
        self.dataset = dataset
        self.transform = transform
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> Any:
        return self.transform(self.dataset[self.indices[i]])
