"""`regard predict`: image files and folders in; pictures and a file of results out."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from regard.data.coco.panoptic_writer import PanopticWriter
from regard.data.coco.tables import ImageRecord
from regard.data.image_folders import list_images
from regard.errors import ConfigError, DataError, escape
from regard.models.build import Model
from regard.prediction.options import PredictionOptions
from regard.prediction.predict import Prediction, check_options, makes_segments, predict_each
from regard.results.classification import Classification
from regard.results.detections import Detections
from regard.results.segmentation import Segmentation
from regard.safe_files import is_used, make_writable, replace_text
from regard.weights.load import load_on

DESCRIPTION = "segments predicted with regard predict"  # marks our results, which may be replaced


def predict_files(
    model: Model | str | Path,
    paths: Sequence[Path],
    *,
    output: Path | None = None,
    json_file: Path | None = None,
    options: PredictionOptions | None = None,
    batch_size: int = 1,
    device: str = "auto",
) -> Iterator[str]:
    """Predict for image files and folders of them; yield a line of text for each.

    An unreadable image does not stop the others: its error is raised after all others are done.

    Args:
        output: folder for the images with their results drawn, named like the images, `.jpg`.
        json_file: file for all results. Detections are rows of COCO's result format with `image_id` counting the
            images from 1 and a `file_name`. Classes are rows `{"file_name", "classes": [{"label", "label_id",
            "score"}]}`. Segments are in COCO's panoptic format with a folder of PNG files next to the file; their
            `file_name` is relative to the folder that holds all images.
        options: which predictions to keep.

    Raises:
        ConfigError: an output would replace an image or a file that is no earlier result (C11), a panoptic model's
            file has no suffix (C09), a number is out of range (C03), or `segments` is unknown (C02).
        DataError: images cannot be read.
    """
    options = options or PredictionOptions()
    check_options(options.threshold, batch_size, options.segments)
    if options.top < 1:
        raise ConfigError(f"top={options.top}, expected at least 1", code="C03")
    files = list(dict.fromkeys(file for path in paths for file in list_images(path)))
    if not files:
        raise ConfigError("no images given", remedy="regard predict CHECKPOINT IMAGE|FOLDER ...", code="C09")
    names = picture_names(files)
    _check_targets(files, [output / name for name in names.values()] if output else [], json_file)
    net, _ = load_on(model, device)
    writer: _Rows | _Segments | None = None
    if json_file is not None:
        writer = _Segments(json_file, net, files, list(names.values())) if makes_segments(net) else _Rows(json_file)
    for folder in (output, json_file.parent if json_file else None):
        if folder is not None:
            make_writable(folder)
    unreadable: list[DataError] = []
    numbers = {file: number for number, file in enumerate(files, start=1)}
    for result in predict_each(
        net, files, threshold=options.threshold, segments=options.segments, batch_size=batch_size,
        keep_pixels=output is not None, on_error=unreadable.append,
    ):  # fmt: skip
        file = Path(result.path or "")
        if output is not None:
            picture = output / names[file]
            result.save(picture, options.top) if isinstance(result, Classification) else result.save(picture)
        if writer is not None:
            writer.add(result, numbers[file], names[file], options.top)
        summary = result.summary(options.top) if isinstance(result, Classification) else result.summary()
        yield escape(f"{result.path}: {summary}")
    if writer is not None:
        writer.close()
    yield from _report(unreadable, len(files))


def _report(unreadable: Sequence[DataError], total: int) -> Iterator[str]:
    """Yield a line for each of several errors, and raise one error for all."""
    if not unreadable:
        return
    first = unreadable[0]
    if len(unreadable) == 1:
        raise first
    yield from (error.line for error in unreadable)
    what = f"{len(unreadable)} of {total} images cannot be used, the first: {first.what}"
    raise DataError(what, where=first.where, remedy=first.remedy, code=first.code)


def picture_names(files: Sequence[Path]) -> dict[Path, str]:
    """Return a unique picture name for each file: `cat.jpg`, and `cat-2.jpg` for the next file of that name."""
    names: dict[Path, str] = {}
    taken: set[str] = set()
    for file in files:
        number = 1
        name = f"{file.stem}.jpg"
        while name.lower() in taken:
            number += 1
            name = f"{file.stem}-{number}.jpg"
        taken.add(name.lower())
        names[file] = name
    return names


class _Rows:
    """Writes a JSON list: detections in COCO's result format, or the classes of each image."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []

    def add(self, result: Prediction, number: int, name: str, top: int) -> None:
        if isinstance(result, Detections):
            self.rows += [{**row, "file_name": result.path} for row in result.to_coco(number)]
        elif isinstance(result, Classification):
            self.rows.append({"file_name": result.path, "classes": result.to_dicts(top)})

    def close(self) -> None:
        replace_text(self.path, json.dumps(self.rows))


class _Segments:
    """Writes a file and a folder of PNG files in COCO's panoptic format.

    The file is written before the first PNG file and lists all PNG files to come, so an interrupted run can be
    repeated. In the end PNG files of an earlier result that this one lacks are deleted. Other files are not touched,
    and an earlier result stays as it is until the first new image is ready.
    """

    def __init__(self, path: Path, net: Model, files: Sequence[Path], names: Sequence[str]) -> None:
        self.writer = PanopticWriter(path, DESCRIPTION, categories=net.card.categories)
        self.root = Path(os.path.commonpath([file.parent.resolve() for file in files]))
        self.earlier = _png_files_of(path)
        self.planned = {f"{Path(name).stem}.png" for name in names}
        folder = self.writer.folder
        new = self.planned - self.earlier
        if is_used(folder) and (not path.exists() or any((folder / name).exists() for name in new)):
            what = "the folder for the PNG files holds other files"
            remedy = "name another file, or move them away"
            raise ConfigError(what, where=folder, remedy=remedy, code="C11")

    def add(self, result: Prediction, number: int, name: str, top: int) -> None:
        assert isinstance(result, Segmentation)
        if not self.writer.rows:
            self._announce()
        path = Path(result.path or name)
        file_name = (path.parent.resolve() / path.name).relative_to(self.root).as_posix()
        self.writer.add(ImageRecord(number, file_name, *result.size), result.segments, f"{Path(name).stem}.png")

    def close(self) -> None:
        for name in self.earlier - {row["file_name"] for row in self.writer.rows}:
            (self.writer.folder / name).unlink(missing_ok=True)
        self.writer.close()  # last: until then the file lists every PNG file that may exist

    def _announce(self) -> None:
        rows = [{"file_name": name} for name in sorted(self.planned | self.earlier)]
        content = {**self.writer.info, "images": [], "annotations": rows, "categories": []}
        replace_text(self.writer.path, json.dumps(content))


def _png_files_of(path: Path) -> set[str]:
    """Return the names of an earlier result's PNG files; names that point outside its folder are ignored."""
    if not path.is_file() or not isinstance(rows := json.loads(path.read_text()), dict):
        return set()
    names = {row.get("file_name") for row in rows.get("annotations", []) if isinstance(row, dict)}
    return {name for name in names if isinstance(name, str) and name.endswith(".png") and Path(name).name == name}


def _is_result(path: Path) -> bool:
    """Return whether a file was written by `predict_files`."""
    try:
        rows = json.loads(path.read_text()) if path.is_file() else None  # reading a pipe would block
    except (OSError, ValueError, RecursionError):
        return False
    if isinstance(rows, dict):
        return rows.get("info") == {"description": DESCRIPTION}
    return isinstance(rows, list) and all(isinstance(row, dict) and "file_name" in row for row in rows)


def _check_targets(files: Sequence[Path], pictures: Sequence[Path], json_file: Path | None) -> None:
    """Check that no file of the user is overwritten: no image, no file next to one, no JSON but an earlier result."""
    images = {file.resolve() for file in files}
    folders = {file.parent for file in images} | {file.parent.resolve() for file in files}
    for target in (*pictures, *([json_file] if json_file else [])):
        place = target.resolve()
        if place in images or (place.parent in folders and target in pictures and place.exists()):
            raise ConfigError("this would replace an image", where=target, remedy="write to another folder", code="C11")
    if json_file is not None and json_file.exists() and not _is_result(json_file):
        what = "this file is no earlier result and would be replaced"
        raise ConfigError(what, where=json_file, remedy="name another file", code="C11")
