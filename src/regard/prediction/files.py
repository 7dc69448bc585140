"""`regard predict`: image files and folders in, pictures and a file of results out."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from regard.data.coco.panoptic import PanopticWriter
from regard.data.coco.tables import ImageRecord
from regard.data.image_folders import list_images
from regard.errors import ConfigError, DataError, escape
from regard.models.build import Model
from regard.models.detr import DETR
from regard.prediction.predict import Result, check_options, predict_each
from regard.results.classification import TOP, Classification
from regard.results.detections import Detections
from regard.results.postprocess import Method
from regard.results.segmentation import Segmentation
from regard.safe_files import is_used, make_writable, replace_text
from regard.weights.load import load

DESCRIPTION = "segments predicted with regard predict"  # by which an earlier result is told from anything else


def predict_files(
    model: Model | str | Path,
    paths: Sequence[Path],
    *,
    output: Path | None = None,
    json_file: Path | None = None,
    threshold: float | None = None,
    segments: Method = "published",
    top: int = TOP,
    batch_size: int = 1,
    device: str = "auto",
) -> Iterator[str]:
    """Predict for image files and folders of them; gives a line of text for each.

    An unreadable image does not stop the others: it is reported, and raised once all others are done.

    Args:
        output: folder for pictures with what was found drawn, named like the images, `.jpg`.
        json_file: file for all results. Detections are in COCO's result format; `image_id` counts the images from 1,
            and `file_name` stands beside it. Classes are rows `{"file_name", "classes": [{"name", "label", "score"}]}`.
            Segments are in COCO's panoptic format, with a folder of PNG files beside the file, and `file_name` is
            below the folder that holds all images.
        top: how many classes of a classifier are given.

    Raises:
        ConfigError: what is to be written would replace an image or what is no earlier result (C11), a panoptic model's
            file has no suffix (C09), a number is out of range (C03), or `segments` is unknown (C02).
        DataError: images cannot be read.
    """
    check_options(threshold, batch_size, segments)
    if top < 1:
        raise ConfigError(f"top={top}, expected at least 1", code="C03")
    files = list(dict.fromkeys(file for path in paths for file in list_images(path)))
    if not files:
        raise ConfigError("no images given", remedy="regard predict CHECKPOINT IMAGE|FOLDER ...", code="C09")
    names = picture_names(files)
    _check_targets(files, [output / name for name in names.values()] if output else [], json_file)
    net = load(model) if isinstance(model, (str, Path)) else model
    written: _Rows | _Segments | None = None
    if json_file is not None:
        panoptic = isinstance(net, DETR) and net.config.masks and net.card.panoptic
        written = _Segments(json_file, net, files, list(names.values())) if panoptic else _Rows(json_file)
    for folder in (output, json_file.parent if json_file else None):
        if folder is not None:
            make_writable(folder)
    bad: list[DataError] = []
    numbers = {file: number for number, file in enumerate(files, start=1)}
    for first in range(0, len(files), batch_size):
        group = files[first : first + batch_size]
        for result in _readable(net, group, bad, threshold, segments, batch_size, device):
            file = Path(result.path or "")
            if output is not None:
                picture = output / names[file]
                result.save(picture, top) if isinstance(result, Classification) else result.save(picture)
            if written is not None:
                written.add(result, numbers[file], names[file], top)
            summary = result.summary(top) if isinstance(result, Classification) else result.summary()
            yield escape(f"{result.path}: {summary}")
    if written is not None:
        written.close()
    if len(bad) == 1:
        raise bad[0]
    if bad:
        yield from (error.line for error in bad)
        what = f"{len(bad)} of {len(files)} images cannot be used, the first: {bad[0].what}"
        raise DataError(what, where=bad[0].where, remedy=bad[0].remedy, code=bad[0].code)


def picture_names(files: Sequence[Path]) -> dict[Path, str]:
    """A name of its own for the picture of each file: `cat.jpg`, and `cat-2.jpg` for the next one of that name."""
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
    """A file with a list: detections in COCO's result format, or the classes of each image."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []

    def add(self, result: Result, number: int, name: str, top: int) -> None:
        if isinstance(result, Detections):
            self.rows += [{**row, "file_name": result.path} for row in result.to_coco(number)]
        elif isinstance(result, Classification):
            self.rows.append({"file_name": result.path, "classes": result.to_dicts(top)})

    def close(self) -> None:
        replace_text(self.path, json.dumps(self.rows))


class _Segments:
    """A file and a folder in COCO's panoptic format.

    The file is there before the first PNG file, with the names of all that are to come: what was interrupted can be
    done again, and what an earlier result had and this one has not is taken away in the end. No other file is touched,
    and an earlier result stays as it is until there is an image of the new one.
    """

    def __init__(self, path: Path, net: Model, files: Sequence[Path], names: Sequence[str]) -> None:
        self.writer = PanopticWriter(path, DESCRIPTION, categories=net.card.categories)
        self.root = Path(os.path.commonpath([file.parent.resolve() for file in files]))
        self.earlier = _png_files_of(path)
        self.planned = {f"{Path(name).stem}.png" for name in names}
        folder = self.writer.folder
        new = self.planned - self.earlier
        if is_used(folder) and (not path.exists() or any((folder / name).exists() for name in new)):
            what = "there are files already where the PNG files would be written"
            remedy = "name another file, or move them away"
            raise ConfigError(what, where=folder, remedy=remedy, code="C11")

    def add(self, result: Result, number: int, name: str, top: int) -> None:
        assert isinstance(result, Segmentation)
        if not self.writer.rows:
            self._announce()
        path = Path(result.path or name)
        file_name = (path.parent.resolve() / path.name).relative_to(self.root).as_posix()
        self.writer.add(ImageRecord(number, file_name, *result.size), result.segments, f"{Path(name).stem}.png")

    def close(self) -> None:
        for name in self.earlier - {row["file_name"] for row in self.writer.rows}:
            (self.writer.folder / name).unlink(missing_ok=True)
        self.writer.close()  # last: until then the file names all that may be there

    def _announce(self) -> None:
        rows = [{"file_name": name} for name in sorted(self.planned | self.earlier)]
        content = {**self.writer.info, "images": [], "annotations": rows, "categories": []}
        replace_text(self.writer.path, json.dumps(content))


def _png_files_of(path: Path) -> set[str]:
    """The PNG files of an earlier result, which are in its folder itself."""
    if not path.is_file() or not isinstance(rows := json.loads(path.read_text()), dict):
        return set()
    names = {row.get("file_name") for row in rows.get("annotations", []) if isinstance(row, dict)}
    return {name for name in names if isinstance(name, str) and name.endswith(".png") and Path(name).name == name}


def _readable(
    net: Model,
    group: Sequence[Path],
    bad: list[DataError],
    threshold: float | None,
    segments: Method,
    batch_size: int,
    device: str,
) -> list[Result]:
    """Results of those files of a batch that can be read; the errors of the others are added to `bad`."""
    try:
        found = predict_each(net, group, threshold=threshold, segments=segments, batch_size=batch_size, device=device)
        return list(found)
    except DataError as error:
        if len(group) == 1:
            bad.append(error)
            return []
    return [r for file in group for r in _readable(net, [file], bad, threshold, segments, 1, device)]


def _is_result(path: Path) -> bool:
    try:
        rows = json.loads(path.read_text()) if path.is_file() else None  # a pipe would be waited for
    except (OSError, ValueError, RecursionError):
        return False
    if isinstance(rows, dict):
        return rows.get("info") == {"description": DESCRIPTION}
    return isinstance(rows, list) and all(isinstance(row, dict) and "file_name" in row for row in rows)


def _check_targets(files: Sequence[Path], pictures: Sequence[Path], json_file: Path | None) -> None:
    """Nothing of the user's is written over: no image, no neighbour of one, no JSON but an earlier result."""
    images = {file.resolve() for file in files}
    folders = {file.parent for file in images} | {file.parent.resolve() for file in files}
    for target in (*pictures, *([json_file] if json_file else [])):
        place = target.resolve()
        if place in images or (place.parent in folders and target in pictures and place.exists()):
            raise ConfigError("this would replace an image", where=target, remedy="write to another folder", code="C11")
    if json_file is not None and json_file.exists() and not _is_result(json_file):
        what = "this file is no earlier result and would be replaced"
        raise ConfigError(what, where=json_file, remedy="name another file", code="C11")
