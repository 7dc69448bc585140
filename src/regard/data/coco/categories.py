"""Categories of a data set beside those of a model, and those that nothing is learned of."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from regard.data.report import Report, listed
from regard.errors import HAS, counted
from regard.structures.categories import Category


def order_of_categories(own: Sequence[Category], wanted: Sequence[Category], report: Report) -> list[int]:
    """Return the index in `own` of each category of `wanted`, matched by name.

    Raises:
        DataError: not the same names (A26).
    """
    place = {category.name: label for label, category in enumerate(own)}
    names = [category.name for category in wanted]
    missing = [name for name in names if name not in place]
    extra = [name for name in place if name not in names]
    if missing or extra:
        parts = [f"{name!r:.40} is missing" for name in missing[:5]] + [f"{name!r:.40} is new" for name in extra[:5]]
        what = f"other categories than in the model or the training split: {', '.join(parts)}"
        raise report.error("A26", what, "categories", remedy="give both the same category names")
    order = [place[name] for name in names]
    if [own[label].id for label in order] != [category.id for category in wanted]:
        what = "categories have other ids than in the model or the training split; matched by name"
        report.add("A26", "warn", what, "categories")
    return order


def note_unused(labels: NDArray[np.int64], categories: Sequence[Category], noun: str, report: Report) -> None:
    """Add an issue if there is nothing to learn (A09), or if categories have no `noun` to learn (A46).

    Args:
        labels: (N,) of everything to learn.
        noun: `object` or `segment`.
    """
    if not len(labels):
        report.add("A09", "warn", f"no {noun}s to learn or to find", "annotations")
        return
    used = set(labels.tolist())
    names = [f"{category.name:.30}" for label, category in enumerate(categories) if label not in used]
    if names:
        what = f"{counted(len(names), 'class', 'classes', of=len(categories), verb=HAS)} no {noun}: {listed(names)}"
        report.add("A46", "warn", what, "categories")
