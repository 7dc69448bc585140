"""`regard predict`: images and videos in; pictures, videos and a file of results out."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path

from regard.data.sources import camera_number, expand, is_video, source_name
from regard.errors import ConfigError, DataError, counted, escape
from regard.models.build import Model
from regard.models.evaluation_mode import evaluation_mode
from regard.prediction.earlier_results import is_drawn, is_result
from regard.prediction.job import Image, Order, Work, Written, summary
from regard.prediction.lanes import in_lanes, lane_count
from regard.prediction.options import JobOptions, PredictionOptions
from regard.prediction.predict import check_model, check_options
from regard.prediction.progress import progress_bar
from regard.prediction.ray_engine import predict_on_ray
from regard.prediction.records import Records, job_of, records_folder
from regard.prediction.shards import Shard, check_job_options
from regard.prediction.thresholds import makes_segments, threshold_notes
from regard.prediction.videos import predict_video
from regard.prediction.writers import Rows, Segments, Table
from regard.safe_files import FILE_SUFFIXES, first_free, make_writable
from regard.weights.load import load_on
from regard.weights.onnx_file import is_onnx


def predict_files(
    model: Model | str | Path,
    paths: Sequence[str | Path],
    *,
    output: Path | None = None,
    json_file: Path | None = None,
    options: PredictionOptions | None = None,
    batch_size: int | None = None,
    device: str = "auto",
    job: JobOptions | None = None,
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
        job: a shard of the images, a cluster, or a Parquet file instead of `json_file`.
        batch_size: most images of a batch, which have one shape as the model sees them; None for as many as are fast.

    Raises:
        ConfigError: an output would replace an image or a file that is no earlier result (C11), is one file for several
            images, or does not suit them (C09), a number is out of range (C03), a word is unknown (C02), or shards have
            other options than the command that is to join them (C13).
        DataError: images cannot be read.
        MachineError: a package (av, ray, pyarrow) is not installed, or there is no such camera.
    """
    options, job = options or PredictionOptions(), job or JobOptions()
    check_options(options, batch_size)
    files = list(dict.fromkeys(file for path in paths for file in expand(path)))
    if not files:
        raise ConfigError("no images given", remedy="regard predict CHECKPOINT IMAGE|FOLDER ...", code="C09")
    shard = check_job_options(job, files, json_file)
    target, names = job.parquet or json_file, picture_names(files)
    pictures = {} if output is None else _pictures(names, output)
    _check_targets(files, list(pictures.values()), target)
    net, _ = load_on(model, "cpu" if job.engine == "ray" else device)
    check_model(net, options)
    writer = None if target is None else _writer(target, net, names, options, is_table=job.parquet is not None)
    for folder in {file.parent: None for file in (*pictures.values(), *([target] if target else []))}:
        make_writable(folder)
    onnx = Path(model) if isinstance(model, (str, Path)) and is_onnx(model) else None
    sent = onnx if onnx is not None and job.engine == "ray" else net  # a session cannot be sent
    yield from _run(Order(sent, options, batch_size, pictures, writer), net, onnx, files, job, shard, device)


def _run(
    order: Order,
    net: Model,
    onnx: Path | None,
    files: Sequence[str | Path],
    job: JobOptions,
    shard: Shard | None,
    device: str,
) -> Iterator[str]:
    """Predict after all checks."""
    if is_onnx(net) and onnx is None and (shard is not None or job.engine == "ray"):
        what = "--shard and --engine ray need an ONNX file itself, not the model loaded from it"
        remedy = "leave --classes out: the file holds the classes"
        raise ConfigError(what, where=net.card.name, remedy=remedy, code="C09")
    images = list(enumerate(file for file in files if not is_video(file)))
    videos = [file for file in files if is_video(file)]
    mine = images if shard is None else [images[number] for number in shard.numbers(len(images))]
    with closing(Written(order.pictures, order.writer, _records(order, net, onnx, images, job))) as written:
        # What is sent to each actor lacks the rows of the records, which fill the writer.
        sent = replace(order, writer=deepcopy(order.writer)) if job.engine == "ray" else order
        todo = written.left_of(mine)
        if job.engine == "ray":
            lines = predict_on_ray(sent, todo, written, device)
        else:
            lines = _here(order, todo, written, videos, first=len(images) + 1)
        yield from _after(threshold_notes(net) if order.options.threshold is None else [], lines)
        if shard is None:
            written.finish()
        else:
            _tell(f"shard {shard} is done: {counted(len(mine), 'image', of=len(images))}")
        yield from written.report(len(mine) + len(videos))


def _here(
    order: Order, todo: Sequence[Image], written: Written, videos: Sequence[str | Path], first: int
) -> Generator[str]:
    """Predict in this process for images, then for videos; yield a line for each image and frame.

    first: number of the first frame among all images.
    """
    if not todo and not videos:
        return
    work = order.prepare("auto")  # the model stays where it is
    lanes = in_lanes(work.batches(todo), partial(work.on, images=todo), lane_count(len(todo)))
    # Closed, or after an error of this thread, such as a full disk, the lanes would compute what waits for them.
    with evaluation_mode(work.ready.net), progress_bar(len(todo)) as advance, closing(lanes) as results:
        for image, done in zip(todo, results, strict=True):
            advance()
            yield from written.add(image, done)
    yield from _videos(work, videos, written, first)


def _videos(work: Work, files: Sequence[str | Path], written: Written, first: int) -> Iterator[str]:
    number, order, writer = first, work.order, work.order.writer
    for place, file in enumerate(files, start=first - 1):
        drawn, batch_size = order.pictures.get(file), order.batch_size or 1
        try:
            for found in predict_video(work.ready.net, file, order.options, batch_size=batch_size, drawn=drawn):
                if isinstance(writer, Rows):
                    frame = {"frame": found.number, "seconds": float(found.seconds)}
                    result = replace(found.result, path=str(file))
                    writer.add(number, writer.encode(result, number, file, frame))
                number += 1
                yield escape(f"{file} {float(found.seconds):.2f} s: {summary(found.result, order.options)}")
        except DataError as error:
            written.unreadable[place] = error
        except KeyboardInterrupt:  # the way to end a camera
            if isinstance(writer, Rows):
                writer.close()
            raise


def _tell(note: str) -> None:
    print(note, file=sys.stderr)  # stdout has one line for each image


def _after(notes: Sequence[str], lines: Iterator[str]) -> Iterator[str]:
    """Yield lines, and print notes on stderr before the first: stdout has one line for each image."""
    for number, line in enumerate(lines):
        for note in notes if number == 0 else ():
            _tell(note)
        yield line


def _writer(
    path: Path, net: Model, names: Mapping[str | Path, str], options: PredictionOptions, *, is_table: bool
) -> Rows | Segments:
    if not makes_segments(net):
        return Table(path, options.top, net) if is_table else Rows(path, options.top)
    if is_table:
        raise ConfigError("segments have no Parquet", where=path, remedy="write them with --json", code="C09")
    video = next((file for file in names if is_video(file)), None)
    if video is not None:
        raise ConfigError("segments of videos have no JSON", where=video, remedy="leave --json out", code="C09")
    return Segments(path, net, list(names), names)


def _records(order: Order, net: Model, onnx: Path | None, images: Sequence[Image], job: JobOptions) -> Records | None:
    """Return the records of a job; None if this process has the images for itself, and nobody has begun.

    Raises:
        ConfigError: this process is to join shards, and all records are of other jobs (C13).
    """
    if order.writer is None:
        return None
    target = order.writer.path
    is_alone = job.shard is None and job.engine == "local"
    if is_alone and not records_folder(target).is_dir():
        return None
    records = Records(target, job_of(net, onnx, order.options, [file for _, file in images]))
    ours, others = records.of_jobs()
    other = "of other weights, options or images, or of another version"
    if is_alone and others and not ours:
        what = f"nothing to join: {counted(others, 'file has', 'files have')} records {other}"
        folder = shlex.quote(str(records.folder))
        remedy = f"repeat the command of the shards without --shard, or discard their work: rm -r {folder}"
        raise ConfigError(what, where=records.folder, remedy=remedy, code="C13")
    if others:
        _tell(f"not used, and kept: {counted(others, 'file')} of {records.folder} {other}")
    return records


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
    if suffix in (".json", ".parquet"):
        what = "a folder for pictures, and this is the name of a file"
        remedy = f"write results with --{suffix[1:]} {shlex.quote(str(output))}"
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
