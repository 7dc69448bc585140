"""ImageNet's classes have several names: WordNet ids in its folders, words in its models, numbers in ImageNet-V2."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from regard.data.class_images.imagenet import imagenet_classes
from regard.structures.categories import Category
from regard.weights.classifiers import imagenet_categories


def imagenet_labels(categories: Sequence[Category]) -> list[int] | None:
    """Which of ImageNet's classes, 0 to 999, each category is; None if they are not all of ImageNet."""
    return imagenet_classes(categories, [category.name for category in imagenet_categories()])


def named_alike(model: Sequence[Category], data: Sequence[Category]) -> tuple[Category, ...]:
    """The classes of a model, called as a data set calls them where both are ImageNet's; else as they are.

    Without it a model of ImageNet would know none of the classes of ImageNet's own folders.
    """
    known = {category.name for category in model}
    if not all(category.name in known for category in data):
        ours, theirs = imagenet_labels(model), imagenet_labels(data)
        if ours is not None and theirs is not None:
            names = {label: category.name for label, category in zip(theirs, data, strict=True)}
            return tuple(replace(c, name=names.get(label, c.name)) for label, c in zip(ours, model, strict=True))
    return tuple(model)
