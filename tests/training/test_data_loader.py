"""Order of samples: a function of (seed, epoch, sample) and of nothing else."""

import os
import threading
import warnings
from itertools import islice

import pytest
import torch

from regard.errors import DataError
from regard.training.data_loader import (
    Augmented,
    InfiniteBatchSampler,
    mix,
    raise_errors,
    training_loader,
    worker_count,
)
from regard.training.distributed import Processes

CPU = torch.device("cpu")


def batches(length=10, size=4, seed=1, rank=0, world=1, start=0, count=6):
    return list(islice(InfiniteBatchSampler(length, size, seed, Processes(rank, world, CPU), start), count))


def test_every_epoch_holds_every_sample_once_in_an_order_of_its_own():
    found = batches(count=9)
    epochs = [[place for batch in found[k : k + 3] for place in batch] for k in (0, 3, 6)]
    for number, epoch in enumerate(epochs):
        assert sorted(epoch) == [(number, i) for i in range(10)]
    assert len({tuple(i for _, i in epoch) for epoch in epochs}) == 3


@pytest.mark.parametrize("start", range(8))
def test_any_start_gives_the_rest_of_the_same_order(start):
    assert batches(start=start, count=5) == batches(count=start + 5)[start:]


def test_processes_share_the_order():
    alone = batches(length=12, size=4, count=3)
    together = [batches(length=12, size=2, rank=r, world=2, count=3) for r in range(2)]
    for whole, first, second in zip(alone, *together, strict=True):
        assert sorted(whole) == sorted(first + second)


@pytest.mark.parametrize("length", [24, 26])
@pytest.mark.parametrize("world", [2, 4])
def test_batches_of_all_processes_are_those_of_one(length, world):
    """In the order of epochs too. What does not divide is in the last batch of an epoch, where samples come again."""
    parts = [batches(length, 8 // world, rank=rank, world=world, count=10) for rank in range(world)]
    together = [sorted(sample for part in batch for sample in part) for batch in zip(*parts, strict=True)]
    alone = [sorted(batch) for batch in batches(length, 8, count=10)]
    for number, (several, one) in enumerate(zip(together, alone, strict=True)):
        last = number % -(-length // 8) == -(-length // 8) - 1
        assert set(one) <= set(several) and len(several) == (-(-len(one) // world) * world if last else 8)
        assert several == one or (last and length % world)


def test_seeds_differ():
    assert len({mix(a, b, c) for a in range(20) for b in range(20) for c in range(5)}) == 2000
    assert mix(1, 2) != mix(2, 1)


@pytest.mark.parametrize("repeats", [1, 3])
def test_no_two_views_of_a_training_have_one_seed(repeats):
    """Over epochs and ranks; which worker of a rank loads a view does not matter. So with the seeds of steps."""
    ranks, epochs, length, seeds = 2, 4, 24, []
    data = Augmented(range(length), lambda sample, generator: seeds.append(generator.initial_seed()), seed=3)
    for rank in range(ranks):
        order = InfiniteBatchSampler(length, 4, 3, Processes(rank, ranks, CPU), repeats=repeats)
        for batch in islice(order, epochs * order.batches_per_epoch):
            for place in batch:
                data[place]
    assert len(seeds) == len(set(seeds)) == epochs * length
    steps = {mix(3, step, rank) for step in range(5000) for rank in range(16)}
    assert len(steps) == 5000 * 16


class Numbers:
    def __len__(self):
        return 7

    def __getitem__(self, index):
        if index == 99:
            raise DataError("broken", where="a.jpg", code="I04")
        return torch.tensor([float(index)])


class Broken(Numbers):
    def __getitem__(self, index):
        raise DataError("broken", where="a.jpg", remedy="copy it again", code="I04")


def noisy(sample, generator):
    return sample + torch.rand(1, generator=generator)


def load(dataset, workers, start=0, count=5):
    order = InfiniteBatchSampler(7, 3, 5, Processes(0, 1, CPU), start)
    return [b.clone() for b in islice(raise_errors(training_loader(dataset, order, torch.stack, workers, CPU)), count)]


def test_workers_and_restarts_change_nothing():
    data = Augmented(Numbers(), noisy, seed=3)
    here = load(data, 0)
    assert all(torch.equal(a, b) for a, b in zip(here, load(data, 2), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(here[2:], load(data, 0, start=2, count=3), strict=True))


def test_no_more_workers_than_cores():
    """More make torch warn and each other wait; the order does not depend on them."""
    cores = worker_count(10**6)
    assert 1 <= cores <= (os.cpu_count() or 1) and worker_count(0) == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        order = InfiniteBatchSampler(7, 3, 5, Processes(0, 1, CPU), 0)
        loader = training_loader(Augmented(Numbers(), noisy, seed=3), order, torch.stack, 10**6, CPU)
    assert loader.num_workers == cores


def test_processes_of_a_machine_share_its_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert worker_count(6) == 6
    for processes, workers in (("4", 2), ("16", 1), ("", 6)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
        assert worker_count(6) == workers and worker_count(0) == 0


def test_the_loader_leaves_the_random_numbers_of_the_model_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    load(Augmented(Numbers(), noisy, seed=3), 0)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("workers", [0, 1])
def test_errors_keep_their_line(workers):
    with pytest.raises(DataError) as caught:
        load(Augmented(Broken(), noisy, seed=3), workers)
    assert caught.value.line == "error I04: broken — a.jpg — copy it again"


# Repeated augmentation


def deit_stream(length, rank, world, epoch, repeats=3):
    """DeiT's samplers.py, from its description: permute, repeat, fill up, every world-th, cut."""
    order = torch.randperm(length, generator=torch.Generator().manual_seed(epoch)).repeat_interleave(repeats).tolist()
    order += order[: -len(order) % world]
    return order[rank::world][: length // 256 * 256 // world]


def repeated(length, size=64, seed=0, rank=0, world=1, start=0):
    return InfiniteBatchSampler(length, size, seed, Processes(rank, world, CPU), start, repeats=3)


@pytest.mark.parametrize("world", [1, 2, 8])
@pytest.mark.parametrize("length", [256, 700, 1025])
def test_the_stream_of_repeated_augmentation_is_deits(length, world):
    for rank in range(world):
        found = repeated(length, rank=rank, world=world)
        stream = iter(found)
        for epoch in range(3):
            places = [place for _ in range(found.batches_per_epoch) for place in next(stream)]
            assert [index for _, index in places] == deit_stream(length, rank, world, epoch)
            assert all(view // 3 == epoch for view, _ in places)


def test_views_of_a_sample_are_different():
    places = [place for batch in islice(repeated(256), 4) for place in batch]
    assert len(places) == len(set(places)) == 256
    counts = [sum(index == i for _, index in places) for i in {index for _, index in places}]
    assert set(counts) <= {1, 3} and counts.count(1) <= 1


def test_few_samples_are_repeated_too():
    """DeiT's sampler gives none below 256."""
    for length, world in ((1, 1), (10, 1), (10, 4), (3, 8)):
        for rank in range(world):
            found = repeated(length, size=4, rank=rank, world=world)
            first = [place for batch in islice(found, found.batches_per_epoch) for place in batch]
            assert len(first) == max(1, length // world)


@pytest.mark.parametrize("start", range(6))
def test_repeated_augmentation_goes_on_anywhere(start):
    whole = list(islice(repeated(300, size=100, seed=4), 9))
    assert list(islice(repeated(300, size=100, seed=4, start=start), 3)) == whole[start : start + 3]


class Waiting:
    """Sample i is i, once as many threads wait for it as are asked for; sample 4 is an error."""

    at_once = 3

    def __init__(self) -> None:
        self.barrier = threading.Barrier(3)

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> int:
        self.barrier.wait(timeout=20)
        if index == 4:
            raise DataError("the fifth")
        return index


def test_samples_that_wait_are_read_together_and_stay_in_order():
    data = Augmented(Waiting(), lambda sample, generator: (sample, torch.rand((), generator=generator).item()), seed=2)
    order = [[(0, 3), (0, 0), (0, 5)], [(1, 2), (1, 1), (1, 0)], [(2, 0), (2, 4), (2, 1)]]
    loader = raise_errors(training_loader(data, order, list, 0, CPU))
    for places in order[:2]:
        generators = [torch.Generator().manual_seed(mix(2, *place)) for place in places]
        numbers = [torch.rand((), generator=generator).item() for generator in generators]
        assert next(loader) == [(index, number) for (_, index), number in zip(places, numbers, strict=True)]
    with pytest.raises(DataError, match="the fifth"):
        next(loader)
