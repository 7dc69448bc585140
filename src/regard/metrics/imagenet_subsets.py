"""Accuracy on some of a classifier's classes (ImageNet-A, ImageNet-R), or with several labels per image (ReaL)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from regard.errors import DataError
from regard.metrics.classification import best_label, check_labels
from regard.structures.categories import Category


def restrict(
    logits: Tensor, categories: Sequence[Category], present: Sequence[int]
) -> tuple[Tensor, tuple[Category, ...]]:
    """Keep the logits of the classes that the data have.

    Published accuracies on ImageNet-R and ImageNet-A compare their 200 classes only and ignore the logits of the other
    800 (Hendrycks et al. 2021, "The many faces of robustness" and "Natural adversarial examples").

    Args:
        logits: (N, C).
        categories: the C classes of the model.
        present: labels of the P classes that the data have, each once.

    Returns:
        Logits (N, P) and categories (P), in the order of `present`.

    Raises:
        DataError: shapes that do not match, no label or one out of range (A49), or a duplicate label (A25).
    """
    if logits.ndim != 2 or logits.shape[1] != len(categories):
        raise DataError(f"logits {tuple(logits.shape)} and {len(categories)} categories, expected (N, C) and C")
    if not present:
        raise DataError("no classes to keep", remedy="pass the labels of the classes that the data have", code="A49")
    check_labels(torch.tensor(present), len(categories))
    if len(set(present)) < len(present):
        twice = next(label for label, count in Counter(present).items() if count > 1)
        raise DataError(f"duplicate class {twice}", remedy="pass the label of each class once", code="A25")
    return logits[:, list(present)], tuple(categories[label] for label in present)


def real_accuracy(logits: Tensor, real_labels: Sequence[Sequence[int]]) -> float:
    """Compute the ReaL accuracy (Beyer et al. 2020, section 4): a prediction is correct if it is one of the labels.

    Images without labels are ignored. Of equal logits the lower label is the prediction.

    Args:
        logits: (N, C).
        real_labels: for each of N images any number of labels 0..C-1.

    Returns:
        The share of correct images, 0..1.

    Raises:
        DataError: different numbers of images, a label out of range (A49), or no image with labels.
    """
    if logits.ndim != 2 or len(logits) != len(real_labels):
        raise DataError(f"logits {tuple(logits.shape)} and labels of {len(real_labels)} images, expected (N, C) and N")
    check_labels(torch.tensor([label for labels in real_labels for label in labels]), logits.shape[1])
    best = best_label(logits).tolist()
    correct = [label in labels for label, labels in zip(best, real_labels, strict=True) if labels]
    if not correct:
        raise DataError("no image has a ReaL label", remedy="pass the labels of these images")
    return sum(correct) / len(correct)
