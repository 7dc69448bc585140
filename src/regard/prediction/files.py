"""`regard predict`: images and videos in; pictures, videos and a file of results out."""

from __future__ import annotations

import itertools
import shlex
import sys
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any

import torch

from regard.data.sources import camera_number, expand, is_video, source_name
from regard.data.videos import DRAWN_BY
from regard.drawing.boxes import encode_picture, write_picture
from regard.errors import ConfigError, DataError, counted, escape
from regard.models.build import Model
from regard.models.evaluation_mode import evaluation_mode
from regard.prediction.earlier_results import is_drawn, is_result
from regard.prediction.lanes import Planned, in_batches, in_lanes, lane_count, planned
from regard.prediction.options import PredictionOptions
from regard.prediction.predict import Prediction, ReadyModel, check_options, draw, make_ready
from regard.prediction.progress import progress_bar
from regard.prediction.thresholds import makes_segments, threshold_notes
from regard.prediction.videos import predict_video
from regard.prediction.writers import Rows, Segments
from regard.results.classification import Classification
from regard.safe_files import FILE_SUFFIXES, first_free, make_writable


def predict_files(
    model: Model | str | Path,
    paths: Sequence[str | Path],
    *,
    output: Path | None = None,
    json_file: Path | None = None,
    options: PredictionOptions | None = None,
    batch_size: int | None = None,
    device: str = "auto",
) -> Generator[str]:
    """Predict for images and videos; yield a line of text for each image and frame.

    An unreadable image or video does not stop the others: its error is raised after them. If none can be read,
    `json_file` is not written. The threshold that a detector takes if it is given none is printed on stderr.

    Args:
        paths: files, folders, patterns, addresses, `-` or `camera:0`, as for `predict`.
        output: folder for the images with their results drawn, named like the images, `.jpg`, and videos, `.mp4`; for
            one image or video also the file. Earlier results are replaced, but no recording of a camera.
        json_file: file for all results. Detections are rows of COCO's result format with `image_id` counting the
            images from 1 and a `file_name`. Classes are rows `{"file_name", "classes": [{"label", "label_id",
            "score"}]}`. Rows of videos also have `frame`, from 0, and `seconds`; each frame counts as an image.
            Segments are in COCO's panoptic format with a folder of PNG files next to the file; their `file_name` is
            relative to the folder that holds all images.
        options: which predictions to keep.
        batch_size: most images of a batch, which have one shape as the model sees them; None for as many as are fast.

    Raises:
        ConfigError: an output would replace an image or a file that is no earlier result (C11), is one file for several
            images, or does not suit them (C09), a number is out of range (C03), or a word is unknown (C02).
        DataError, MachineError: images cannot be read, the package av is not installed, or there is no such camera.
    """
    options = options or PredictionOptions()
    check_options(options, batch_size)
    files = list(dict.fromkeys(file for path in paths for file in expand(path)))
    if not files:
        raise ConfigError("no images given", remedy="regard predict CHECKPOINT IMAGE|FOLDER ...", code="C09")
    images, videos = [f for f in files if not is_video(f)], [f for f in files if is_video(f)]
    names = picture_names(files)
    pictures = {} if output is None else _pictures(names, output)
    _check_targets(files, list(pictures.values()), json_file)
    ready = make_ready(model, options, device=device, keep_pixels=bool(pictures))
    writer = None if json_file is None else _writer(json_file, ready.net, files, names, options.top)
    for folder in {target.parent: None for target in (*pictures.values(), *([json_file] if json_file else []))}:
        make_writable(folder)
    unreadable: list[DataError] = []
    alone: AbstractContextManager[Any] = nullcontext() if ready.device.type == "cpu" else Lock()
    job = _Job(ready, batch_size, pictures, writer, unreadable, alone)
    lines = itertools.chain(job.images(images), job.videos(videos, first=len(images) + 1))
    try:
        yield from _after(threshold_notes(ready.net) if options.threshold is None else [], lines)
    except KeyboardInterrupt:  # the way to end a camera
        if videos and isinstance(writer, Rows):
            writer.close()
        raise
    if writer is not None:
        writer.close()
    yield from _report(unreadable, len(files))


def _after(notes: Sequence[str], lines: Iterator[str]) -> Iterator[str]:
    """Yield lines, and print notes on stderr before the first: stdout has one line for each image."""
    for number, line in enumerate(lines):
        for note in notes if number == 0 else ():
            print(note, file=sys.stderr)
        yield line


def _writer(
    path: Path, net: Model, files: Sequence[str | Path], names: Mapping[str | Path, str], top: int
) -> Rows | Segments:
    if not makes_segments(net):
        return Rows(path, top)
    video = next((file for file in files if is_video(file)), None)
    if video is not None:
        raise ConfigError("segments of videos have no JSON", where=video, remedy="leave --json out", code="C09")
    return Segments(path, net, files, names)


@dataclass(frozen=True)
class _Done:
    """What comes of an image: a line, a picture file and what its writer takes; or the error why it cannot be read."""

    line: str = ""
    picture: bytes | None = None
    encoded: Any = None
    error: DataError | None = None


@dataclass(frozen=True)
class _Job:
    """The steps of `predict_files` after its checks."""

    ready: ReadyModel
    batch_size: int | None
    pictures: dict[str | Path, Path]
    writer: Rows | Segments | None
    unreadable: list[DataError]
    at_the_device: AbstractContextManager[Any]  # lanes wait for each other here, unless they compute on cores

    def images(self, files: Sequence[str | Path]) -> Iterator[str]:
        """Predict for images; yield a line for each."""
        batch_size = 1 if self.ready.takes_views else self.batch_size
        batches = in_batches(planned(files, self.ready.input_size), batch_size)
        lanes = in_lanes(batches, self._work, lane_count(len(files)))
        # Closed, or after an error of this thread, such as a full disk, the lanes would compute what waits for them.
        with evaluation_mode(self.ready.net), progress_bar(len(files)) as advance, closing(lanes) as results:
            for file, done in zip(files, results, strict=True):
                advance()
                if done.error is not None:
                    self.unreadable.append(done.error)
                    continue
                if done.picture is not None:
                    write_picture(done.picture, self.pictures[file])
                if self.writer is not None:
                    self.writer.add(done.encoded)
                yield done.line

    @torch.no_grad()
    def _work(self, batch: Sequence[Planned]) -> list[_Done]:
        """Take a batch from its files to what is written; lanes do so at once."""
        done: dict[int, _Done] = {}
        images = {}
        for image in batch:
            try:
                images[image.number] = self.ready.read(image.source)
            except DataError as error:
                done[image.number] = _Done(error=error)
        with self.at_the_device:
            results = list(self.ready.results(list(images.values()), self.batch_size or 1))
        sources = {image.number: image.source for image in batch}
        for number, result in zip(images, results, strict=True):
            done[number] = self._finish(result, number + 1, sources[number])
        return [done[image.number] for image in batch]

    def _finish(self, result: Prediction, number: int, file: str | Path) -> _Done:
        target, options = self.pictures.get(file), self.ready.options
        drawn = None if target is None else encode_picture(draw(result, options), target, software=DRAWN_BY)
        encoded = None if self.writer is None else self.writer.encode(result, number, file)
        return _Done(escape(f"{result.path}: {self._summary(result)}"), drawn, encoded)

    def videos(self, files: Sequence[str | Path], first: int) -> Iterator[str]:
        """Predict for videos; yield a line for each frame. `first`: number of the first frame among all images."""
        number, options = first, self.ready.options
        for file in files:
            drawn = self.pictures.get(file)
            try:
                for found in predict_video(self.ready.net, file, options, batch_size=self.batch_size or 1, drawn=drawn):
                    if isinstance(self.writer, Rows):
                        frame = {"frame": found.number, "seconds": float(found.seconds)}
                        result = replace(found.result, path=str(file))
                        self.writer.add(self.writer.encode(result, number, file, frame))
                    number += 1
                    yield escape(f"{file} {float(found.seconds):.2f} s: {self._summary(found.result)}")
            except DataError as error:
                self.unreadable.append(error)

    def _summary(self, result: Prediction) -> str:
        return result.summary(self.ready.options.top) if isinstance(result, Classification) else result.summary()


def _report(unreadable: Sequence[DataError], total: int) -> Iterator[str]:
    """Raise one error for all, which tells the first; yield a line for each of the others before."""
    if not unreadable:
        return
    first = unreadable[0]
    if len(unreadable) == 1:
        raise first
    yield from (error.line for error in unreadable[1:])
    what = f"{counted(len(unreadable), 'image', of=total)} cannot be used, the first: {first.what}"
    raise DataError(what, where=first.where, remedy=first.remedy, code=first.code)


def picture_names(files: Sequence[str | Path]) -> dict[str | Path, str]:
    """Return a unique picture name for each file: `cat.jpg`, and `cat-2.jpg` for the next file of that name.

    Videos get `.mp4`.
    """
    names: dict[str | Path, str] = {}
    taken: set[str] = set()
    for file in files:
        number = 1
        stem, suffix = Path(source_name(file)).stem, ".mp4" if is_video(file) else ".jpg"
        name = f"{stem}{suffix}"
        while name.lower() in taken:
            number += 1
            name = f"{stem}-{number}{suffix}"
        taken.add(name.lower())
        names[file] = name
    return names


def _pictures(names: Mapping[str | Path, str], output: Path) -> dict[str | Path, Path]:
    """Return the file for each drawn image and video: in the folder `output`, or `output` itself for a single one.

    Raises:
        ConfigError: `output` is a file for several images, or of another kind than the single one (C09).
    """
    suffix = output.suffix.lower()
    if suffix not in FILE_SUFFIXES or output.is_dir():
        files = {file: output / name for file, name in names.items()}
        return {file: first_free(path) if camera_number(file) is not None else path for file, path in files.items()}
    if suffix == ".json":
        what = "a folder for pictures, and this is the name of a file"
        remedy = f"write results with --json {shlex.quote(str(output))}"
        raise ConfigError(what, where=output, remedy=remedy, code="C09")
    if len(names) > 1:
        what = f"the name of one file for {len(names)} images"
        remedy = f"name a folder: --output {shlex.quote(str(output.with_suffix('')))}"
        raise ConfigError(what, where=output, remedy=remedy, code="C09")
    (file,) = names
    kind, suffixes = ("video", (".mp4",)) if is_video(file) else ("picture", (".jpg", ".jpeg", ".png", ".webp"))
    if suffix not in suffixes:
        what = f"unsupported suffix of the drawn {kind}"
        remedy = f"name it {output.with_suffix(suffixes[0])}, or name a folder"
        raise ConfigError(what, where=output, remedy=remedy, code="C09")
    return {file: output}


def _check_targets(files: Sequence[str | Path], pictures: Sequence[Path], json_file: Path | None) -> None:
    """Check that no file of the user is overwritten: nothing but earlier results."""
    images = {file.resolve() for file in files if isinstance(file, Path)}
    for target in (*pictures, *([json_file] if json_file else [])):
        if target.resolve() in images:
            raise ConfigError("this would replace an image", where=target, remedy="write to another folder", code="C11")
        is_earlier = is_result if target == json_file else is_drawn
        if target.exists() and not is_earlier(target):
            what = "this file is no earlier result and would be replaced"
            raise ConfigError(what, where=target, remedy="name another file or folder", code="C11")
