"""Accuracy on some of a classifier's classes (ImageNet-A, -R), or with several right labels per image (ReaL)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from regard.errors import DataError
from regard.structures.categories import Category


def restrict(
    logits: Tensor, categories: Sequence[Category], present: Sequence[int]
) -> tuple[Tensor, tuple[Category, ...]]:
    """Keep the logits of some classes, as for the published numbers on ImageNet-A and -R.

    Hendrycks et al. 2021 (ImageNet-R, and Natural adversarial examples): the best of the 200 classes of the data
    counts, whatever the logits of the other 800.

    Args:
        logits: (N, C). categories: the C classes of the model.
        present: P labels of classes that the data have, each once.

    Returns:
        Logits (N, P) and categories of these classes, in the order of `present`.

    Raises:
        DataError: a label that is out of range or given twice, or no label.
    """
    if logits.ndim != 2 or logits.shape[1] != len(categories):
        raise DataError(f"logits {tuple(logits.shape)} and {len(categories)} categories, expected (N, C) and C")
    wrong = [label for label in present if not 0 <= label < len(categories)]
    if wrong or not present:
        what = f"class {wrong[0]}" if wrong else "no classes"
        raise DataError(f"{what}, expected 0 to {len(categories) - 1}", code="A49")
    if len(set(present)) < len(present):
        raise DataError("a class of the data is given twice", code="A25")
    return logits[:, list(present)], tuple(categories[label] for label in present)


def real_accuracy(logits: Tensor, real_labels: Sequence[Sequence[int]]) -> float:
    """Return the share of images, 0..1, whose best class is one of their labels; images without labels are ignored.

    Beyer et al. 2020, section 4 (ReaL accuracy). Of equal logits the lower label is the best.

    Args:
        logits: (N, C). real_labels: for each image any number of labels 0..C-1.

    Raises:
        DataError: different numbers of images, a label out of range, or no image with labels.
    """
    if logits.ndim != 2 or len(logits) != len(real_labels):
        raise DataError(f"logits {tuple(logits.shape)} and labels of {len(real_labels)} images")
    wrong = [label for labels in real_labels for label in labels if not 0 <= label < logits.shape[1]]
    if wrong:
        raise DataError(f"label {wrong[0]}, expected 0 to {logits.shape[1] - 1}", code="A49")
    best = (logits == logits.max(dim=1, keepdim=True).values).int().argmax(dim=1).tolist()
    right = [label in labels for label, labels in zip(best, real_labels, strict=True) if labels]
    if not right:
        raise DataError("no image has a ReaL label")
    return sum(right) / len(right)
