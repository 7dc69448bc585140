"""The two splits of a data set, and the names that people give them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from regard.errors import DataError

Split = Literal["train", "val"]
# A part of a data set: a split, or all images of a data set without splits.
Part = Split | Literal["all"]
Place = TypeVar("Place")

# Where a folder has several names of a split, the first is used.
SPLIT_NAMES: dict[Split, tuple[str, ...]] = {"train": ("train",), "val": ("val", "valid", "validation", "test")}


def find_splits(look: Callable[[str], Place | None]) -> dict[Split, Place]:
    """Return the place of each split: what `look` returns for the first of its names that has any."""
    found = {split: next(filter(None, map(look, spellings(split))), None) for split in SPLIT_NAMES}
    return {split: place for split, place in found.items() if place}


def spellings(split: Split) -> list[str]:
    """Return the names of a split in the order in which they are looked for: `val`, `Val`, `valid`, ..."""
    return [text for name in SPLIT_NAMES[split] for text in (name, name.capitalize())]


def find_parts(look: Callable[[str], Place | None]) -> dict[Part, Place]:
    """Return the same as `find_splits`, with room for a part that is no split."""
    parts: dict[Part, Place] = {}
    for split, place in find_splits(look).items():
        parts[split] = place
    return parts


def missing_split(split: Split, present: Mapping[Any, Any], root: str | Path, add: str) -> DataError:
    """Return the error for a split that a data set lacks.

    Args:
        present: the file or folder of each split that the data set has.
        add: what to add to the folder, for the remedy.
    """
    listed = ", ".join(f"{name} ({place})" for name, place in present.items())
    return DataError(f"no split {' or '.join(SPLIT_NAMES[split])}; present: {listed}", where=root, remedy=f"add {add}")
