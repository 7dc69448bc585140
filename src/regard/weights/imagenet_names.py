"""Match the names of ImageNet's classes: WordNet ids (folders), words (models) and numbers (ImageNet-V2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from regard.data.class_images.imagenet import imagenet_classes
from regard.structures.categories import Category
from regard.weights.classifiers import imagenet_categories


def imagenet_labels(categories: Sequence[Category]) -> list[int] | None:
    """Return the ImageNet index, 0..999, of each category; None if one is not a class of ImageNet."""
    return imagenet_classes(categories, [category.name for category in imagenet_categories()])


def match_imagenet_names(model: Sequence[Category], data: Sequence[Category]) -> tuple[Category, ...]:
    """Return the classes of a model with the names that a data set uses, if both are ImageNet's; else unchanged.

    Models have words and ImageNet's folders have WordNet ids, so that no class would match by name.

    Args:
        model: classes of the model.
        data: classes of the data set.
    """
    known = {category.name for category in model}
    if not all(category.name in known for category in data):
        ours, theirs = imagenet_labels(model), imagenet_labels(data)
        if ours is not None and theirs is not None:
            names = {label: category.name for label, category in zip(theirs, data, strict=True)}
            return tuple(replace(c, name=names.get(label, c.name)) for label, c in zip(ours, model, strict=True))
    return tuple(model)
