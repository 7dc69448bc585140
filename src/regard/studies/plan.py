"""What a study trains: the words of every run, and a key by which equal runs of all studies are the same folder."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from regard.errors import ConfigError
from regard.runs.settings import resolve
from regard.studies.study import RUN, Row, Scale, Study

NEVER = 1000  # epochs that a run with `minutes` does not reach
LEAST_MINUTES = 0.5  # of a run within a budget, while there is more than one seed to give up
SPLITS: tuple[Literal["train"], Literal["val"]] = ("train", "val")
Fingerprint = Callable[[str], str]  # of a data set by its name or folder


@dataclass(frozen=True)
class Training:
    """One run.

    words: of `regard train`, without data, seed and folder; `teacher=run:KEY-SEED` names another run.
    key: equal for equal settings on equal data. before: names of the runs that must be there first.
    """

    row: str
    words: tuple[str, ...]
    data: str
    key: str
    seed: int
    before: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.key}-{self.seed}"

    def folder(self, store: Path) -> Path:
        return store / self.name

    def arguments(self, store: Path) -> list[str]:
        """Words after `regard train`, the folder included."""
        words = [run_in(word, store) for word in self.words]
        named = next((word for word in words if word.startswith("data=")), None)
        data = [] if named else ["--data", self.data]
        return [*words, *data, f"seed={self.seed}", "--output", str(self.folder(store))]


def run_in(word: str, store: Path) -> str:
    """Return a word with the folder of the run that it names."""
    name, _, value = word.partition("=")
    return f"{name}={store / value.removeprefix(RUN)}" if value.startswith(RUN) else word


@dataclass(frozen=True)
class Plan:
    """The runs of a study, first seeds first, each after those that it names; and the seeds and key of each row."""

    trainings: tuple[Training, ...]
    keys: Mapping[str, str]
    seeds: Mapping[str, int]

    def folders(self, row: str, store: Path) -> dict[int, Path]:
        """Folders of the runs of a row, by seed."""
        return {seed: self.folder(row, seed, store) for seed in range(self.seeds[row])}

    def folder(self, row: str, seed: int, store: Path) -> Path:
        """Folder of the run of a row: of this seed, or of the first if the row has it not."""
        return store / f"{self.keys[row]}-{seed if seed < self.seeds[row] else 0}"


def plan_runs(
    study: Study, scale: Scale, seeds: int, fingerprint: Fingerprint, minutes: float | None, full: bool
) -> Plan:
    """Plan the runs of a study.

    Args:
        minutes: training time of each run, in place of epochs.
        full: the paper's own words; `scale.epochs` of 0 leaves the recipe's.

    Raises:
        ConfigError: a word that `regard train` does not know.
    """
    rows = {row.name: row for row in study.rows if (row.full if full else row.words)}
    counts = {name: min(seeds, row.seeds or seeds) for name, row in rows.items()}
    keys: dict[str, str] = {}  # sources before those that name them
    words: dict[str, list[str]] = {}

    def add(row: Row) -> None:
        if row.name not in keys:
            words[row.name] = full_words(row, scale) if full else small_words(study, row, scale, minutes)
            for source in _sources(words[row.name]):
                add(rows[source])
            named = [_renamed(word, keys) for word in words[row.name]]
            keys[row.name] = key_of(named, scale.data, fingerprint)

    for row in rows.values():
        add(row)
    found = {}  # rows of equal words are one run
    for seed in range(seeds):
        for name, key in keys.items():
            if seed < counts[name] and (key, seed) not in found:
                runs = {row: f"{keys[row]}-{seed if seed < counts[row] else 0}" for row in _sources(words[name])}
                named = tuple(_renamed(word, runs) for word in words[name])
                found[key, seed] = Training(name, named, scale.data, key, seed, tuple(runs.values()))
    return Plan(tuple(found.values()), keys, counts)


def _sources(words: Sequence[str]) -> list[str]:
    """Names of the rows that words name."""
    return [word.partition(f"={RUN}")[2] for word in words if f"={RUN}" in word]


def _renamed(word: str, names: Mapping[str, str]) -> str:
    """Return a word with the name for the row in it, if it names one."""
    key, separator, row = word.partition(f"={RUN}")
    return f"{key}{separator}{names[row]}" if separator else word


def small_words(study: Study, row: Row, scale: Scale, minutes: float | None) -> list[str]:
    """Words of a row at small scale, with epochs or minutes."""
    epochs = NEVER if minutes is not None else max(1, round(scale.epochs * row.longer))
    shared = study.common(replace(scale, epochs=epochs)) if study.common is not None and not row.own else []
    if row.own and scale.train_images is not None:
        shared = [f"train_images={scale.train_images}"]
    # What a row says of itself comes last and wins.
    words = [row.words[0], *shared, f"epochs={epochs}", *row.words[1:]]
    return words if minutes is None else [*words, f"minutes={rounded(minutes * row.longer):g}"]


def full_words(row: Row, scale: Scale) -> list[str]:
    """Words of a row at the paper's own scale."""
    more = [f"epochs={scale.epochs}"] if scale.epochs else []
    return [*row.full, *more, *([] if scale.train_images is None else [f"train_images={scale.train_images}"])]


def key_of(words: Sequence[str], data: str, fingerprint: Fingerprint) -> str:
    """Return the name of a run without its seed: model, and a hash of all settings and the data's content."""
    model, *rest = words
    named = next((word.partition("=")[2] for word in reversed(rest) if word.startswith("data=")), data)
    recipe = rest[rest.index("--recipe") + 1] if "--recipe" in rest else None
    settings = asdict(resolve(model, named, None, None, False, recipe, None, [w for w in rest if "=" in w]))
    settings = {name: value for name, value in settings.items() if name not in ("data", "seed")}
    # The words too: the recipe `auto` asks which settings were given.
    given = sorted(word for word in rest if not word.startswith("data="))
    text = json.dumps([settings, given, fingerprint(named)], sort_keys=True, default=str)
    return f"{model}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def share_budget(budget: float, shares: Mapping[int, float], jobs: int) -> tuple[float, int]:
    """Return the minutes of a run and the number of seeds for `budget` minutes.

    All runs get the same minutes, longer rows their multiple. Seeds are given up first if a run had less than half a
    minute.

    Args:
        shares: number of seeds -> the sum of the shares of all runs, 1 for a row that is not longer than others.

    Raises:
        ConfigError: not a positive number (C03).
    """
    if not 0 < budget < math.inf:
        raise ConfigError(f"budget={budget:g}, expected more than 0 minutes", code="C03")
    for seeds in sorted(shares, reverse=True):
        minutes = rounded(budget * min(jobs, shares[seeds]) / shares[seeds])
        if minutes >= LEAST_MINUTES or seeds == min(shares):
            return minutes, seeds
    raise ValueError("no number of seeds to choose from")


def rounded(minutes: float) -> float:
    """Two digits, downwards, so that the words of a run are short."""
    digits = 1 - math.floor(math.log10(minutes))
    scale = 10.0**digits
    return math.floor(minutes * scale * (1 + 1e-9)) / scale


def data_fingerprint(data: str, task: str) -> str:
    """Return a hash of both splits of a data set. Reads its tables, no image."""
    if task == "classification":
        from regard.data.class_images.dataset import open_classification

        return "".join(open_classification(data, split).fingerprint()[:16] for split in SPLITS)
    from regard.data.generated.shapes import data_folder
    from regard.evaluation.detection import open_objects

    folder = data_folder(data)
    panoptic = task == "panoptic"
    splits = [open_objects(folder, split, panoptic=panoptic, masks=False) for split in SPLITS]
    return "".join(split.fingerprint()[:16] for split in splits)
