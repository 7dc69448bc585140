"""What a run's folder holds, read for its report. A file that is missing or damaged is empty here."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from regard.config import near_path, read_yaml
from regard.errors import ConfigError
from regard.training.rows import read_rows

NOTES = "notes.json"
MAIN_SCORES = ("PQ", "mask_AP", "AP", "top1")  # the first that a run has decides which checkpoint is best


@dataclass(frozen=True)
class RunFiles:
    """The files of a run. folder: of the run."""

    folder: Path

    @cached_property
    def settings(self) -> dict[str, Any]:
        """`config.yaml`.

        Raises:
            ConfigError: the folder is no run (K02), or the file is no YAML (C12).
        """
        path = self.folder / "config.yaml"
        if not path.is_file():
            remedy = "name the folder of a training, the one with config.yaml"
            what = "not the folder of a run"
            if not self.folder.exists():
                what, remedy = "no such folder", near_path(self.folder, otherwise=remedy)
            raise ConfigError(what, where=self.folder, remedy=remedy, code="K02")
        return read_yaml(path)

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """`metrics.json`: scores of the best checkpoint, or of the last `regard evaluate`."""
        return self._json("metrics.json")

    @cached_property
    def environment(self) -> dict[str, Any]:
        """`environment.json`: versions, device, counts of the data."""
        return self._json("environment.json")

    @cached_property
    def worst(self) -> dict[str, Any]:
        """`worst_images.json`."""
        return self._json("worst_images.json")

    def notes(self, about: Literal["start", "length"]) -> list[str]:
        """Return what the training told of its start or of its length, one line each. A warning begins so."""
        found = self._json(NOTES).get(about)
        return [note for note in found if isinstance(note, str)] if isinstance(found, list) else []

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """`metrics.jsonl`: numbers by step."""
        path = self.folder / "metrics.jsonl"
        return [row for row in read_rows(path) if isinstance(row, dict) and "step" in row] if path.is_file() else []

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        """The rows of evaluations."""
        return [row for row in self.rows if any(key.startswith("val/") for key in row)]

    @property
    def main_score(self) -> str | None:
        """The name of the score that decides which checkpoint is best; None before the first evaluation."""
        return next((name for name in MAIN_SCORES if any(f"val/{name}" in row for row in self.evaluations)), None)

    @property
    def best(self) -> dict[str, Any]:
        """The row of the best evaluation; empty before the first."""
        known = [row for row in self.evaluations if row.get(f"val/{self.main_score}") is not None]
        return max(known, key=lambda row: row[f"val/{self.main_score}"], default={})

    def picture(self, name: str) -> Path:
        """Return the path of a picture."""
        return self.folder / "pictures" / name

    def pictures_by_step(self, stem: str) -> dict[int, Path]:
        """Return the pictures `STEM_step_N.jpg` by step, in order, but none of steps after the last row."""
        found = {}
        last = max((row["step"] for row in self.rows), default=0)
        for path in (self.folder / "pictures").glob(f"{stem}_step_*.jpg"):
            match = re.fullmatch(rf"{stem}_step_(\d+)", path.stem)
            if match and int(match[1]) <= last:
                found[int(match[1])] = path
        return dict(sorted(found.items()))

    def _json(self, name: str) -> dict[str, Any]:
        try:
            content = json.loads((self.folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        return content if isinstance(content, dict) else {}
