"""A thread that computes, behind a queue of limited length: items of one kind together, late and unwanted ones not.

All that a client can do to the queue is bounded: `admitted` counts what has been accepted, whatever state it is in, and
refuses more. An item whose client has left, or whose deadline has passed, is not computed. A failure costs the item
that caused it; what ends the thread itself costs the items of the moment, and the thread starts again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

GATHER = 0.004  # seconds that an item waits at most for others of its kind
FIRST_SECONDS = 0.05  # guess of the time for an item before the first one is measured
log = logging.getLogger("regard.serving")


class Full(Exception):
    """There is no room. seconds: until there probably is."""

    def __init__(self, seconds: int) -> None:
        super().__init__(f"full for {seconds} s")
        self.seconds = seconds


class Expired(Exception):
    """The deadline of an item has passed."""


class Lost(Exception):
    """The thread ended while it had the item, or was stopped before its turn."""


@dataclass(eq=False)
class _Job(Generic[Item]):
    item: Item
    kind: Hashable
    deadline: float
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]
    arrived: float = field(default_factory=time.monotonic)

    def settle(self, result: object = None, error: Exception | None = None) -> None:
        """Hand the result to the event loop, from any thread."""
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self.loop.call_soon_threadsafe(self._set, result, error)

    def _set(self, result: object, error: Exception | None) -> None:
        if self.future.done():
            return
        if error is None:
            self.future.set_result(result)
        else:
            self.future.set_exception(error)


class Worker(Generic[Item, Result]):
    """Computes items in a thread of its own.

    Args:
        name: of the thread.
        compute: items of one kind -> their results, in order.
        batch_size: most items at once.
        capacity: most items that are accepted and not yet answered.
        patience: seconds of one computation after which the thread counts as stuck.
        observe: called with the number of items and the seconds of each computation.
    """

    def __init__(
        self,
        name: str,
        compute: Callable[[Sequence[Item]], Sequence[Result]],
        *,
        batch_size: int,
        capacity: int,
        patience: float = math.inf,
        observe: Callable[[int, float], None] = lambda items, seconds: None,
    ) -> None:
        self.compute = compute
        self.batch_size = batch_size
        self.capacity = capacity
        self.patience = patience
        self.observe = observe
        self.admitted = 0
        self.restarts = 0
        self.seconds_per_item = FIRST_SECONDS
        self._waiting: list[_Job[Item]] = []
        self._running: list[_Job[Item]] = []
        self._busy_since: float | None = None
        self._stopping = False
        self._alive = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._live, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._alive = True
        self._thread.start()

    def stop(self) -> None:
        """End the thread after the current computation. Items that still wait are lost."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join()
        for job in self._waiting:
            job.settle(error=Lost())
        self._waiting.clear()

    @property
    def is_ready(self) -> bool:
        """Whether the thread runs and is not stuck in a computation."""
        since = self._busy_since
        return self._alive and (since is None or time.monotonic() - since < self.patience)

    @property
    def waiting(self) -> int:
        """The number of items that wait for their turn."""
        return len(self._waiting)

    def check_room(self, count: int = 1) -> None:
        """Check that `count` more items can be accepted.

        Raises:
            Full: they cannot.
        """
        if self.admitted + count > self.capacity:
            raise Full(min(60, max(1, math.ceil(self.admitted * self.seconds_per_item))))

    @contextlib.contextmanager
    def admit(self, count: int) -> Iterator[None]:
        """Keep room for `count` items within this block. Called by the event loop alone.

        Raises:
            Full: there is none.
        """
        self.check_room(count)
        self.admitted += count
        try:
            yield
        finally:
            self.admitted -= count

    async def run(self, item: Item, kind: Hashable, deadline: float) -> Result:
        """Compute one item, with others of its kind. Cancelling this drops the item, unless it is being computed.

        Args:
            kind: items of equal kinds may share a computation.
            deadline: of `time.monotonic`.

        Raises:
            Expired: the deadline has passed.
            Lost: the thread ended.
        """
        loop = asyncio.get_running_loop()
        job = _Job(item, kind, deadline, loop, loop.create_future())
        with self._changed:
            if self._stopping:
                raise Lost
            self._waiting.append(job)
            self._changed.notify_all()
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                result: Result = await job.future
                return result
        except TimeoutError as late:
            raise Expired from late
        finally:
            with self._changed:
                if job in self._waiting:
                    self._waiting.remove(job)

    def _live(self) -> None:
        """Work until stopped. What ends the work, such as SystemExit in a library, costs the items of the moment."""
        while True:
            try:
                self._work()
                return
            except BaseException as error:
                self._alive = False
                log.error("a computing thread ended (%s) and starts again", type(error).__name__, exc_info=error)
                with self._changed:
                    lost, self._waiting[:] = [*self._running, *self._waiting], []
                for job in lost:
                    job.settle(error=Lost())
                self._running, self._busy_since = [], None
                self.restarts += 1
                time.sleep(0.1)
                self._alive = True

    def _work(self) -> None:
        while batch := self._next_batch():
            self._running, self._busy_since = batch, time.monotonic()
            self._answer(batch)
            seconds = time.monotonic() - self._busy_since
            self.seconds_per_item += 0.2 * (seconds / len(batch) - self.seconds_per_item)
            self._running, self._busy_since = [], None
            self.observe(len(batch), seconds)

    def _next_batch(self) -> list[_Job[Item]]:
        """Return the oldest item with others of its kind; an empty list when it is time to stop."""
        with self._changed:
            while not self._stopping:
                now = time.monotonic()
                for job in [job for job in self._waiting if job.deadline <= now]:
                    self._waiting.remove(job)
                    job.settle(error=Expired())
                if not self._waiting:
                    self._changed.wait()
                    continue
                first = self._waiting[0]
                batch = [job for job in self._waiting if job.kind == first.kind][: self.batch_size]
                left = first.arrived + GATHER - now
                # Nobody waits for items that cannot come: all that are admitted are here.
                if len(batch) == self.batch_size or left <= 0 or self.admitted <= len(self._waiting):
                    self._waiting[:] = [job for job in self._waiting if job not in batch]
                    return batch
                self._changed.wait(left)
        return []

    def _answer(self, batch: list[_Job[Item]]) -> None:
        try:
            results = self.compute([job.item for job in batch])
        except Exception as error:
            if len(batch) == 1:
                batch[0].settle(error=error)
                return
            for job in batch:  # one of them failed: the others have done nothing wrong
                self._answer([job])
            return
        for job, result in zip(batch, results, strict=True):
            job.settle(result)
