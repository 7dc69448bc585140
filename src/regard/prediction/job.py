"""The steps of `regard predict`: `Order` says what to do, `Work` does it batch by batch, `Written` keeps what comes."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import torch

from regard.data.videos import DRAWN_BY
from regard.drawing.boxes import encode_picture, write_picture
from regard.errors import IS, DataError, counted, escape
from regard.models.build import Model
from regard.prediction.lanes import Planned, in_batches, planned
from regard.prediction.options import PredictionOptions
from regard.prediction.predict import Prediction, ReadyModel, draw, make_ready
from regard.prediction.records import Records
from regard.prediction.writers import Encoded, Rows, Segments
from regard.results.classification import Classification

Image = tuple[int, str | Path]  # its place in the list of all images, from 0, and its file or address


class Done(NamedTuple):
    """What comes of an image: a line, a picture file and what its writer takes; or the error why it cannot be read."""

    line: str = ""
    picture: bytes | None = None
    encoded: Encoded | None = None
    error: DataError | None = None


@dataclass(frozen=True)
class Order:
    """What to do with images; it can be sent to another machine.

    model: or what `regard.load` takes, if it cannot be sent. pictures: the file for each drawn image.
    """

    model: Model | str | Path
    options: PredictionOptions
    batch_size: int | None
    pictures: Mapping[str | Path, Path]
    writer: Rows | Segments | None

    def prepare(self, device: str) -> Work:
        """Make the model ready on a device; errors as `make_ready`."""
        ready = make_ready(self.model, self.options, device=device, keep_pixels=bool(self.pictures))
        return Work(self, ready, nullcontext() if ready.device.type == "cpu" else Lock())


@dataclass(frozen=True)
class Work:
    """Does what is ordered with images, without a word written. Threads may share it, in one `evaluation_mode`."""

    order: Order
    ready: ReadyModel
    at_the_device: AbstractContextManager[object]  # lanes wait for each other here, unless they compute on cores

    def batches(self, images: Sequence[Image]) -> Iterator[list[Planned]]:
        """Yield batches of images of one shape; their numbers are places in `images`."""
        batch_size = 1 if self.ready.takes_views else self.order.batch_size
        return in_batches(planned((file for _, file in images), self.ready.input_size), batch_size)

    @torch.no_grad()
    def on(self, batch: Sequence[Planned], images: Sequence[Image]) -> list[Done]:
        """Take a batch of `images` from its files to what is written."""
        done: dict[int, Done] = {}
        read = {}
        for image in batch:
            try:
                read[image.number] = self.ready.read(image.source)
            except DataError as error:
                done[image.number] = Done(error=error)
        with self.at_the_device:
            results = list(self.ready.results(list(read.values()), self.order.batch_size or 1))
        for place, result in zip(read, results, strict=True):
            number, file = images[place]
            done[place] = self._finish(result, number, file)
        return [done[image.number] for image in batch]

    def _finish(self, result: Prediction, number: int, file: str | Path) -> Done:
        writer = self.order.writer
        target, options = self.order.pictures.get(file), self.order.options
        drawn = None if target is None else encode_picture(draw(result, options), target, software=DRAWN_BY)
        encoded = None if writer is None else writer.encode(result, number + 1, file)
        return Done(escape(f"{result.path}: {summary(result, options)}"), drawn, encoded)


@dataclass(frozen=True)
class Written:
    """What is written of a job. unreadable: errors by the places of their images."""

    pictures: Mapping[str | Path, Path]
    writer: Rows | Segments | None
    records: Records | None
    unreadable: dict[int, DataError] = field(default_factory=dict)

    def left_of(self, images: Sequence[Image]) -> list[Image]:
        """Take what the records hold of these images; return the others."""
        writer, found = self.writer, {}
        if writer is not None and self.records is not None:

            def files_of(file: str | Path, rows: list[dict[str, Any]]) -> list[Path]:
                drawn = [self.pictures[file]] if file in self.pictures else []
                return [*drawn, *writer.files_of(Encoded(rows))]

            found = {number: Encoded(rows) for number, rows in self.records.read(images, files_of).items()}
            for number, encoded in found.items():
                writer.add(number + 1, encoded)
        if found:
            print(f"{counted(len(found), 'image', of=len(images), verb=IS)} done already", file=sys.stderr)
        return [image for image in images if image[0] not in found]

    def add(self, image: Image, done: Done) -> Iterator[str]:
        """Write what comes of an image; yield its line, or none if it cannot be read."""
        number, file = image
        if done.error is not None:
            self.unreadable[number] = done.error
            return
        picture = self.pictures.get(file)
        written: list[Path] = []
        if done.picture is not None and picture is not None:
            write_picture(done.picture, picture)
            written.append(picture)
        if self.writer is not None and done.encoded is not None:
            self.writer.add(number + 1, done.encoded)
            if self.records is not None:
                written += self.writer.files_of(done.encoded)
                self.records.add(number, file, written, done.encoded.rows)
        yield done.line

    def close(self) -> None:
        """Close the records, which stay."""
        if self.records is not None:
            self.records.close()

    def finish(self) -> None:
        """Write the file of results, after which no record is needed."""
        if self.writer is not None:
            self.writer.close()
        if self.records is not None:
            self.records.remove()

    def report(self, total: int) -> Iterator[str]:
        """Raise one error for all that cannot be read, which tells the first; yield a line for each of the others."""
        if not self.unreadable:
            return
        first, *others = (self.unreadable[place] for place in sorted(self.unreadable))
        if not others:
            raise first
        yield from (error.line for error in others)
        what = f"{counted(len(self.unreadable), 'image', of=total)} cannot be used, the first: {first.what}"
        raise DataError(what, where=first.where, remedy=first.remedy, code=first.code)


def summary(result: Prediction, options: PredictionOptions) -> str:
    """Return a result in a few words."""
    return result.summary(options.top) if isinstance(result, Classification) else result.summary()
