"""`regard predict`: images and videos in; pictures, videos and a file of results out."""

from __future__ import annotations

import itertools
import json
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from regard.data.coco.panoptic_writer import PanopticWriter
from regard.data.coco.tables import ImageRecord
from regard.data.sources import camera_number, expand, is_video, source_name
from regard.data.videos import DRAWN_BY
from regard.drawing.boxes import save_picture
from regard.errors import ConfigError, DataError, counted, escape
from regard.models.build import Model
from regard.prediction.earlier_results import DESCRIPTION, is_drawn, is_result, png_names, result_text
from regard.prediction.options import PredictionOptions
from regard.prediction.predict import (
    Prediction,
    check_options,
    draw,
    makes_segments,
    predict_each,
    threshold_notes,
)
from regard.prediction.videos import predict_video
from regard.results.classification import Classification
from regard.results.detections import Detections
from regard.results.segmentation import Segmentation
from regard.safe_files import FILE_SUFFIXES, first_free, is_used, make_writable, replace_text
from regard.weights.load import load_on


def predict_files(
    model: Model | str | Path,
    paths: Sequence[str | Path],
    *,
    output: Path | None = None,
    json_file: Path | None = None,
    options: PredictionOptions | None = None,
    batch_size: int = 1,
    device: str = "auto",
) -> Iterator[str]:
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
    net, _ = load_on(model, device)
    writer = None if json_file is None else _writer(json_file, net, files, names, options.top)
    for folder in {target.parent: None for target in (*pictures.values(), *([json_file] if json_file else []))}:
        make_writable(folder)
    unreadable: list[DataError] = []
    job = _Job(net, options, batch_size, pictures, writer, unreadable)
    lines = itertools.chain(job.images(images), job.videos(videos, first=len(images) + 1))
    try:
        yield from _after(threshold_notes(net) if options.threshold is None else [], lines)
    except KeyboardInterrupt:  # the way to end a camera
        if videos and isinstance(writer, _Rows):
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
) -> _Rows | _Segments:
    if not makes_segments(net):
        return _Rows(path, top)
    video = next((file for file in files if is_video(file)), None)
    if video is not None:
        raise ConfigError("segments of videos have no JSON", where=video, remedy="leave --json out", code="C09")
    return _Segments(path, net, files, names)


@dataclass(frozen=True)
class _Job:
    """The steps of `predict_files` after its checks."""

    net: Model
    options: PredictionOptions
    batch_size: int
    pictures: dict[str | Path, Path]
    writer: _Rows | _Segments | None
    unreadable: list[DataError]

    def images(self, files: Sequence[str | Path]) -> Iterator[str]:
        """Predict for images; yield a line for each."""
        numbers = {str(file): (number, file) for number, file in enumerate(files, start=1)}
        for result in predict_each(
            self.net, files, options=self.options, batch_size=self.batch_size,
            keep_pixels=bool(self.pictures), on_error=self.unreadable.append,
        ):  # fmt: skip
            number, file = numbers[result.path or ""]
            if file in self.pictures:
                save_picture(draw(result, self.options), self.pictures[file], software=DRAWN_BY)
            if self.writer is not None:
                self.writer.add(result, number, file)
            yield escape(f"{result.path}: {self._summary(result)}")

    def videos(self, files: Sequence[str | Path], first: int) -> Iterator[str]:
        """Predict for videos; yield a line for each frame. `first`: number of the first frame among all images."""
        number = first
        for file in files:
            drawn = self.pictures.get(file)
            try:
                for found in predict_video(self.net, file, self.options, batch_size=self.batch_size, drawn=drawn):
                    if isinstance(self.writer, _Rows):
                        frame = {"frame": found.number, "seconds": float(found.seconds)}
                        self.writer.add(replace(found.result, path=str(file)), number, file, frame)
                    number += 1
                    yield escape(f"{file} {float(found.seconds):.2f} s: {self._summary(found.result)}")
            except DataError as error:
                self.unreadable.append(error)

    def _summary(self, result: Prediction) -> str:
        return result.summary(self.options.top) if isinstance(result, Classification) else result.summary()


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


class _Rows:
    """Writes a JSON list: detections in COCO's result format, or the classes of each image.

    If no image could be read, an earlier result stays as it is.
    """

    def __init__(self, path: Path, top: int) -> None:
        self.path = path
        self.top = top
        self.images = 0
        self.rows: list[dict[str, Any]] = []

    def add(self, result: Prediction, number: int, file: str | Path, frame: dict[str, Any] | None = None) -> None:
        self.images += 1
        place = {"file_name": str(file), **(frame or {})}
        if isinstance(result, Detections):
            self.rows += [{**row, **place} for row in result.to_coco(number)]
        elif isinstance(result, Classification):
            self.rows.append({**place, "classes": result.to_dicts(self.top)})

    def close(self) -> None:
        if self.images:
            replace_text(self.path, result_text(self.rows))


class _Segments:
    """Writes a file and a folder of PNG files in COCO's panoptic format.

    The file is written before the first PNG file and lists all PNG files to come, so an interrupted run can be
    repeated. In the end PNG files of an earlier result that this one lacks are deleted. Other files are not touched,
    and an earlier result stays as it is until the first new image is ready.
    """

    def __init__(self, path: Path, net: Model, files: Sequence[str | Path], names: Mapping[str | Path, str]) -> None:
        self.writer = PanopticWriter(path, DESCRIPTION, categories=net.card.categories)
        local = [file.parent.resolve() for file in files if isinstance(file, Path)]
        self.root = Path(os.path.commonpath(local)) if local else None
        self.earlier = png_names(path)
        self.png_of = {file: f"{Path(name).stem}.png" for file, name in names.items()}
        self.planned = set(self.png_of.values())
        folder = self.writer.folder
        new = self.planned - self.earlier
        if is_used(folder) and (not path.exists() or any((folder / name).exists() for name in new)):
            what = "the folder for the PNG files holds other files"
            remedy = "name another file, or move them away"
            raise ConfigError(what, where=folder, remedy=remedy, code="C11")

    def add(self, result: Prediction, number: int, file: str | Path) -> None:
        assert isinstance(result, Segmentation)
        if not self.writer.rows:
            self._announce()
        file_name = str(file)
        if isinstance(file, Path) and self.root is not None:
            file_name = (file.parent.resolve() / file.name).relative_to(self.root).as_posix()
        self.writer.add(ImageRecord(number, file_name, *result.size), result.segments, self.png_of[file])

    def close(self) -> None:
        if not self.writer.rows:  # no image could be read
            return
        for name in self.earlier - {row["file_name"] for row in self.writer.rows}:
            (self.writer.folder / name).unlink(missing_ok=True)
        self.writer.close()  # last: until then the file lists every PNG file that may exist

    def _announce(self) -> None:
        rows = [{"file_name": name} for name in sorted(self.planned | self.earlier)]
        content = {**self.writer.info, "images": [], "annotations": rows, "categories": []}
        replace_text(self.writer.path, json.dumps(content))


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
