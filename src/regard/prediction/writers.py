"""The file of results that `regard predict --json` writes."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from regard.data.coco.panoptic_writer import EncodedSegments, PanopticWriter, encode_segments
from regard.data.coco.tables import ImageRecord
from regard.errors import ConfigError
from regard.models.build import Model
from regard.prediction.earlier_results import DESCRIPTION, png_names, result_text
from regard.prediction.predict import Prediction
from regard.results.classification import Classification
from regard.results.detections import Detections
from regard.results.segmentation import Segmentation
from regard.safe_files import is_used, replace_text


class Rows:
    """Writes a JSON list: detections in COCO's result format, or the classes of each image.

    If no image could be read, an earlier result stays as it is.
    """

    def __init__(self, path: Path, top: int) -> None:
        self.path = path
        self.top = top
        self.images = 0
        self.rows: list[dict[str, Any]] = []

    def encode(
        self, result: Prediction, number: int, file: str | Path, frame: dict[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """Return the rows of an image; threads may do so at once."""
        place = {"file_name": str(file), **(frame or {})}
        if isinstance(result, Detections):
            return [{**row, **place} for row in result.to_coco(number)]
        assert isinstance(result, Classification)
        return [{**place, "classes": result.to_dicts(self.top)}]

    def add(self, rows: list[dict[str, Any]]) -> None:
        """Take the rows of an image."""
        self.images += 1
        self.rows += rows

    def close(self) -> None:
        """Write the JSON file."""
        if self.images:
            replace_text(self.path, result_text(self.rows))


class Segments:
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

    def encode(self, result: Prediction, number: int, file: str | Path) -> EncodedSegments:
        """Return the row and the PNG file of an image; threads may do so at once."""
        assert isinstance(result, Segmentation)
        file_name = str(file)
        if isinstance(file, Path) and self.root is not None:
            file_name = (file.parent.resolve() / file.name).relative_to(self.root).as_posix()
        return encode_segments(ImageRecord(number, file_name, *result.size), result.segments, self.png_of[file])

    def add(self, segments: EncodedSegments) -> None:
        """Write the PNG file of an image."""
        if not self.writer.rows:
            self._announce()
        self.writer.write(segments)

    def close(self) -> None:
        """Write the JSON file."""
        if not self.writer.rows:  # no image could be read
            return
        for name in self.earlier - {row["file_name"] for row in self.writer.rows}:
            (self.writer.folder / name).unlink(missing_ok=True)
        self.writer.close()  # last: until then the file lists every PNG file that may exist

    def _announce(self) -> None:
        rows = [{"file_name": name} for name in sorted(self.planned | self.earlier)]
        content = {**self.writer.info, "images": [], "annotations": rows, "categories": []}
        replace_text(self.writer.path, json.dumps(content))
