"""The files of results that `regard predict` writes: JSON, Parquet, COCO's panoptic format."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from regard.data.coco.panoptic_writer import EncodedSegments, PanopticWriter, encode_segments
from regard.data.coco.tables import ImageRecord
from regard.errors import ConfigError
from regard.models.build import Detector, Model
from regard.prediction.earlier_results import DESCRIPTION, png_names, result_text
from regard.prediction.parquet import check_pyarrow, write_table
from regard.prediction.predict import Prediction
from regard.results.classification import Classification
from regard.results.detections import Detections
from regard.results.segmentation import Segmentation
from regard.safe_files import is_used, replace_text


class Encoded(NamedTuple):
    """The results of an image. rows: JSON can hold them, and the records of a job do. png: the file of its segments."""

    rows: list[dict[str, Any]]
    png: bytes | None = None


class Rows:
    """Writes a JSON list: detections in COCO's result format, or the classes of each image.

    Images may come in any order. If no image could be read, an earlier result stays as it is.

    Args:
        path: of the file.
        top: number of classes of an image.
    """

    def __init__(self, path: Path, top: int) -> None:
        self.path = path
        self.top = top
        self.rows: dict[int, list[dict[str, Any]]] = {}

    def encode(self, result: Prediction, number: int, file: str | Path, frame: dict[str, Any] | None = None) -> Encoded:
        """Return the rows of an image; threads may do so at once."""
        place = {"file_name": str(file), **(frame or {})}
        if isinstance(result, Detections):
            return Encoded([{**row, **place} for row in result.to_coco(number)])
        assert isinstance(result, Classification)
        return Encoded([{**place, "classes": result.to_dicts(self.top)}])

    def add(self, number: int, encoded: Encoded) -> None:
        """Take the rows of an image. Numbers count from 1 and tell the order."""
        self.rows[number] = encoded.rows

    def files_of(self, encoded: Encoded) -> list[Path]:
        """Return the files that an image has beside this one: none."""
        return []

    def close(self) -> None:
        """Write the file."""
        if self.rows:
            self.write([row for number in sorted(self.rows) for row in self.rows[number]])

    def write(self, rows: Sequence[dict[str, Any]]) -> None:
        """Write rows to the file."""
        replace_text(self.path, result_text(rows))


class Table(Rows):
    """Writes the rows as a Parquet file.

    Args:
        net: the model.

    Raises:
        MachineError: the package pyarrow is missing.
    """

    def __init__(self, path: Path, top: int, net: Model) -> None:
        super().__init__(path, top)
        check_pyarrow()
        self.classes = not isinstance(net, Detector)

    def write(self, rows: Sequence[dict[str, Any]]) -> None:
        """Write rows to the file."""
        write_table(self.path, rows, classes=self.classes)


class Segments:
    """Writes a file and a folder of PNG files in COCO's panoptic format.

    The file is written before the first PNG file and lists all PNG files to come, so an interrupted run can be
    repeated. In the end PNG files of an earlier result that this one lacks are deleted. Other files are not touched,
    and an earlier result stays as it is until the first new image is ready.
    """

    def __init__(self, path: Path, net: Model, files: Sequence[str | Path], names: Mapping[str | Path, str]) -> None:
        self.path = path
        self.writer = PanopticWriter(path, DESCRIPTION, categories=net.card.categories)
        local = [file.parent.resolve() for file in files if isinstance(file, Path)]
        self.root = Path(os.path.commonpath(local)) if local else None
        folder = self.writer.folder
        # First: if another shard writes a file meanwhile, the names that are read next have it.
        has_files = is_used(folder)
        self.earlier = png_names(path)
        self.png_of = {file: f"{Path(name).stem}.png" for file, name in names.items()}
        self.planned = set(self.png_of.values())
        self.is_announced = False
        new = self.planned - self.earlier
        if has_files and (not path.exists() or any((folder / name).exists() for name in new)):
            what = "the folder for the PNG files holds other files"
            remedy = "name another file, or move them away"
            raise ConfigError(what, where=folder, remedy=remedy, code="C11")

    def encode(self, result: Prediction, number: int, file: str | Path) -> Encoded:
        """Return the rows and the PNG file of an image; threads may do so at once."""
        assert isinstance(result, Segmentation)
        file_name = str(file)
        if isinstance(file, Path) and self.root is not None:
            file_name = (file.parent.resolve() / file.name).relative_to(self.root).as_posix()
        image = ImageRecord(number, file_name, *result.size)
        segments = encode_segments(image, result.segments, self.png_of[file])
        return Encoded([asdict(image), segments.row], segments.png)

    def add(self, number: int, encoded: Encoded) -> None:
        """Write the PNG file of an image, if there is one to write: that of a record is there."""
        image, row = encoded.rows
        if encoded.png is not None:
            self._announce()
            self.writer.write(EncodedSegments(ImageRecord(**image), row, encoded.png, self.writer.categories))
            return
        self.writer.images.append(ImageRecord(**image))
        self.writer.rows.append(row)

    def files_of(self, encoded: Encoded) -> list[Path]:
        """Return the files that an image has beside this one: its PNG file."""
        return [self.writer.folder / encoded.rows[1]["file_name"]]

    def close(self) -> None:
        """Write the JSON file."""
        if not self.writer.rows:  # no image could be read
            return
        for name in self.earlier - {row["file_name"] for row in self.writer.rows}:
            (self.writer.folder / name).unlink(missing_ok=True)
        self.writer.images.sort(key=lambda image: image.id)
        self.writer.rows.sort(key=lambda row: row["image_id"])
        self.writer.close()  # last: until then the file lists every PNG file that may exist

    def _announce(self) -> None:
        if self.is_announced:
            return
        self.is_announced = True
        rows = [{"file_name": name} for name in sorted(self.planned | self.earlier)]
        content = {**self.writer.info, "images": [], "annotations": rows, "categories": []}
        replace_text(self.writer.path, json.dumps(content))
