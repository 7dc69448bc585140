"""Many images at once: each thread takes batches from file to picture; results come in the order of the images.

A core that decodes, computes and draws one batch after the other never waits for another core, so the cores are divided
among a few lanes, and each lane computes on its share of them. The steps are those of the plain path, `predict_each`.

Memory is bounded in pixels, because photographs differ a hundredfold: a batch has at most `BATCH_PIXELS`, each lane
holds one batch, and results are at most `BATCHES_AHEAD` such batches a lane ahead of the one whose turn it is.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import torch

from regard.data.images import image_size
from regard.errors import DataError

T = TypeVar("T")
MAX_LANES = 4  # each holds the activations of a batch
BATCH_PIXELS = 25_000_000  # of the files of a batch, decoded; one image may have more
BATCHES_AHEAD = 2
# Images of a batch if the user names no number: as many as have these pixels where the model sees them. Larger images
# gain nothing on a CPU, and smaller ones up to a factor of 4.
INPUT_PIXELS, MAX_IMAGES = 640 * 640, 16
WAIT = 64  # images that may pass one which waits for others of its shape
UNKNOWN = 12_000_000  # pixels of an image whose header cannot be read in advance
LEAST = 256 * 256  # pixels that an image counts for at least


class Planned(NamedTuple):
    """An image to predict for. shape: (height, width) as the model sees it, or None. pixels: of its file, decoded."""

    number: int
    source: str | Path
    shape: tuple[int, int] | None
    pixels: int


def planned(
    sources: Iterable[str | Path], input_size: Callable[[tuple[int, int]], tuple[int, int]]
) -> Iterator[Planned]:
    """Yield images numbered from 0, with what their headers say; a header that cannot be read says nothing.

    Args:
        input_size: (height, width) of an image in pixels -> that at which the model sees it.
    """
    for number, source in enumerate(sources):
        shape, pixels = None, UNKNOWN
        if isinstance(source, Path):
            try:
                size = image_size(source)
                shape, pixels = input_size(size), max(LEAST, size[0] * size[1])
            except DataError:  # reading the image will tell
                pixels = LEAST
        yield Planned(number, source, shape, pixels)


def in_batches(images: Iterable[Planned], batch_size: int | None) -> Iterator[list[Planned]]:
    """Yield batches of images of one shape; those without a shape come alone.

    Args:
        images: in order.
        batch_size: most images of a batch; None for as many as have `INPUT_PIXELS` as the model sees them.
    """
    waiting: dict[tuple[int, int], list[Planned]] = {}  # the batch with the earliest image comes first
    for image in images:
        if image.shape is None:
            yield [image]
        else:
            most = batch_size or max(1, min(MAX_IMAGES, INPUT_PIXELS // (image.shape[0] * image.shape[1])))
            if _pixels(waiting.get(image.shape, [])) + image.pixels > BATCH_PIXELS and image.shape in waiting:
                yield waiting.pop(image.shape)
            waiting.setdefault(image.shape, []).append(image)
            if len(waiting[image.shape]) >= most:
                yield waiting.pop(image.shape)
        earliest = next(iter(waiting), None)
        if earliest is not None and image.number - waiting[earliest][0].number >= WAIT:
            yield waiting.pop(earliest)
    yield from waiting.values()


def lane_count(images: int) -> int:
    """Return how many lanes share the cores that torch may use, for a number of images."""
    return max(1, min(MAX_LANES, torch.get_num_threads(), images))


def in_lanes(
    batches: Iterable[Sequence[Planned]], work: Callable[[Sequence[Planned]], Sequence[T]], lanes: int
) -> Generator[T]:
    """Run `work` on batches in threads; yield its results in the order of the images' numbers, which start at 0.

    An exception of `work` is raised in its turn, after the results before it, and ends the others. Ctrl-C is raised at
    once, and no thread is waited for. Who takes no more results closes this, or the threads work on.

    Args:
        work: a result for each image of a batch. It runs on its lane's share of the cores.
        lanes: number of threads.
    """
    threads = torch.get_num_threads()
    share = max(1, threads // lanes)
    pool = ThreadPoolExecutor(lanes, "regard-predict", initializer=torch.set_num_threads, initargs=(share,))
    results = _InOrder[T](lanes * BATCHES_AHEAD * BATCH_PIXELS)
    try:
        for batch in batches:
            yield from results.before(_pixels(batch))
            results.add(batch, pool.submit(work, batch))
        yield from results.rest()
    except BaseException as error:
        pool.shutdown(wait=not isinstance(error, KeyboardInterrupt), cancel_futures=True)
        raise
    finally:
        torch.set_num_threads(threads)  # the lanes have set what all threads share
    pool.shutdown()


class _InOrder(Generic[T]):
    """Results of batches that run, given out in the order of their images.

    limit: pixels of the images whose results are not yet given out.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.pixels = 0
        self.turn = 0
        self.places: dict[int, tuple[Future[Sequence[T]], int, int]] = {}  # number -> batch, place in it, pixels

    def add(self, batch: Sequence[Planned], running: Future[Sequence[T]]) -> None:
        """Take a batch that runs."""
        self.pixels += _pixels(batch)
        self.places |= {image.number: (running, place, image.pixels) for place, image in enumerate(batch)}

    def before(self, pixels: int) -> Iterator[T]:
        """Yield the results that are there, and wait for more until there is room for images of so many pixels.

        The result whose turn it is may not run yet, as its image waits for others of its shape. Then there is room.
        """
        while self.turn in self.places and (self.pixels + pixels > self.limit or self.places[self.turn][0].done()):
            yield self._next()

    def rest(self) -> Iterator[T]:
        """Wait for all results, and yield them."""
        while self.places:
            yield self._next()

    def _next(self) -> T:
        running, place, pixels = self.places.pop(self.turn)
        result = running.result()[place]
        self.turn += 1
        self.pixels -= pixels
        return result


def _pixels(batch: Sequence[Planned]) -> int:
    return sum(image.pixels for image in batch)
