"""The two splits of a data set, and the names that people give them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from regard.errors import DataError

Split = Literal["train", "val"]
Place = TypeVar("Place")

# Where a folder has several names of a split, the first is used.
SPLIT_NAMES: dict[Split, tuple[str, ...]] = {"train": ("train",), "val": ("val", "valid", "validation", "test")}


def find_splits(look: Callable[[str], Place | None]) -> dict[Split, Place]:
    """Return the place of each split: what `look` returns for the first of its names that has any.

    Names with a capital first letter (`Train`) come last.
    """
    spellings = {split: (*names, *map(str.title, names)) for split, names in SPLIT_NAMES.items()}
    found = {split: next(filter(None, map(look, names)), None) for split, names in spellings.items()}
    return {split: place for split, place in found.items() if place}


def missing_split(split: Split, present: Mapping[Split, Any], root: Path, add: str) -> DataError:
    """Return the error for a split that a data set lacks.

    Args:
        present: the file or folder of each split that the data set has.
        add: what to add to the folder, for the remedy.
    """
    listed = ", ".join(f"{name} ({place})" for name, place in present.items())
    return DataError(f"no split {' or '.join(SPLIT_NAMES[split])}; present: {listed}", where=root, remedy=f"add {add}")
