"""Batches of a data set at the size for evaluation, in order."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from torch.utils.data import DataLoader, Dataset

from regard.data.batches.classification import ClassificationBatch, collate
from regard.data.class_images.dataset import ClassificationDataset
from regard.data.samples import ClassSample
from regard.data.transforms.classification import Evaluation
from regard.training.data_loader import Caught, collate_caught, outlive_signals, raising, worker_count


def evaluation_batches(
    dataset: ClassificationDataset, resize: Evaluation, batch_size: int, workers: int, indices: range | None = None
) -> Iterator[ClassificationBatch]:
    """Images at the size for evaluation, in order; all, or those of `indices`."""
    chosen = range(len(dataset)) if indices is None else indices
    loader = DataLoader(
        Caught(_Resized(dataset, resize, chosen)),
        batch_size,
        collate_fn=partial(collate_caught, collate),
        num_workers=worker_count(workers),
        worker_init_fn=outlive_signals,
    )
    return raising(loader)


class _Resized(Dataset):
    """Some of a data set's images at the size for evaluation."""

    def __init__(self, dataset: ClassificationDataset, resize: Evaluation, indices: range) -> None:
        self.dataset = dataset
        self.resize = resize
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> ClassSample:
        return self.resize(self.dataset[self.indices[i]])
