"""The queue in front of a model: batches of one kind, limits, deadlines, failures."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from regard.serving.worker import Expired, Full, Lost, Worker


class Doubler:
    """Doubles numbers once the gate is open; keeps the batches. Raises for negative ones, ends the thread at 666."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, numbers):
        self.gate.wait(10)
        self.batches.append(list(numbers))
        if min(numbers) < 0:
            raise ValueError("negative")
        if 666 in numbers:
            raise SystemExit
        return [2 * number for number in numbers]


@asynccontextmanager
async def working(doubler: Doubler, **options) -> AsyncIterator[Worker]:
    worker = Worker("test", doubler, **{"batch_size": 4, "capacity": 8, **options})
    worker.start()
    try:
        yield worker
    finally:
        doubler.gate.set()
        await asyncio.to_thread(worker.stop)


def soon(seconds: float = 30) -> float:
    return time.monotonic() + seconds


async def ask(worker, number, kind="a", seconds=30.0):
    with worker.admit(1):
        return await worker.run(number, kind, soon(seconds))


async def until(condition) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


def test_items_of_one_kind_share_a_computation_and_no_others():
    async def main():
        doubler = Doubler()
        async with working(doubler) as worker:
            doubler.gate.clear()
            first = asyncio.create_task(ask(worker, 1))
            await until(lambda: worker._running)
            kinds = "aababaa"
            rest = [asyncio.create_task(ask(worker, 10 + i, kind)) for i, kind in enumerate(kinds)]
            await until(lambda: worker.waiting == 7)
            doubler.gate.set()
            assert await first == 2
            assert await asyncio.gather(*rest) == [20 + 2 * i for i in range(7)]
        assert doubler.batches == [[1], [10, 11, 13, 15], [12, 14], [16]]

    asyncio.run(main())


def test_a_lone_item_does_not_wait_and_items_that_are_announced_are_waited_for(monkeypatch):
    async def main():
        monkeypatch.setattr("regard.serving.worker.GATHER", 1e6)
        doubler = Doubler()
        async with working(doubler) as worker:
            async with asyncio.timeout(60):
                assert await ask(worker, 1) == 2
            with worker.admit(2):
                one = asyncio.create_task(worker.run(5, "a", soon()))
                await asyncio.sleep(0.1)  # the other is still decoded
                assert await asyncio.gather(one, worker.run(6, "a", soon())) == [10, 12]
        assert doubler.batches == [[1], [5, 6]]

    asyncio.run(main())


def test_no_more_than_the_capacity_is_accepted():
    async def main():
        doubler = Doubler()
        async with working(doubler, capacity=3) as worker:
            doubler.gate.clear()
            tasks = [asyncio.create_task(ask(worker, i)) for i in range(3)]
            await until(lambda: worker.admitted == 3)
            with pytest.raises(Full) as full:
                await ask(worker, 9)
            assert 1 <= full.value.seconds <= 60
            doubler.gate.set()
            await asyncio.gather(*tasks)
            assert worker.admitted == 0 and await ask(worker, 9) == 18

    asyncio.run(main())


def test_late_and_cancelled_items_are_not_computed():
    async def main():
        doubler = Doubler()
        async with working(doubler) as worker:
            doubler.gate.clear()
            first = asyncio.create_task(ask(worker, 1))
            await until(lambda: worker._running)
            late = asyncio.create_task(ask(worker, 2, seconds=0.05))
            left = asyncio.create_task(ask(worker, 3))
            await until(lambda: worker.waiting == 2)
            left.cancel()
            with pytest.raises(Expired):
                await late
            await asyncio.gather(left, return_exceptions=True)
            assert worker.waiting == 0 and worker.admitted == 1
            doubler.gate.set()
            assert await first == 2
        assert doubler.batches == [[1]]

    asyncio.run(main())


def test_a_failure_costs_its_own_item_alone():
    async def main():
        doubler = Doubler()
        async with working(doubler) as worker:
            doubler.gate.clear()
            first = asyncio.create_task(ask(worker, 1))
            await until(lambda: worker._running)
            rest = [asyncio.create_task(ask(worker, number)) for number in (2, -1, 3)]
            await until(lambda: worker.waiting == 3)
            doubler.gate.set()
            await first
            results = await asyncio.gather(*rest, return_exceptions=True)
            assert results[0] == 4 and results[2] == 6 and isinstance(results[1], ValueError)
            assert worker.is_ready and worker.restarts == 0

    asyncio.run(main())


def test_a_thread_that_ends_starts_again():
    async def main():
        doubler = Doubler()
        async with working(doubler) as worker:
            with pytest.raises(Lost):
                await ask(worker, 666)
            await until(lambda: worker.is_ready)
            assert worker.restarts == 1 and await ask(worker, 4) == 8

    asyncio.run(main())


def test_a_stuck_computation_is_not_ready_and_stop_loses_what_waits():
    async def main():
        doubler = Doubler()
        async with working(doubler, patience=0.05) as worker:
            doubler.gate.clear()
            first = asyncio.create_task(ask(worker, 1))
            await until(lambda: not worker.is_ready)
            second = asyncio.create_task(ask(worker, 2, "b"))
            await until(lambda: worker.waiting == 1)
            stopping = asyncio.create_task(asyncio.to_thread(worker.stop))
            await asyncio.sleep(0.05)
            doubler.gate.set()
            assert await first == 2
            with pytest.raises(Lost):
                await second
            await stopping
            with pytest.raises(Lost):
                await ask(worker, 3)

    asyncio.run(main())
