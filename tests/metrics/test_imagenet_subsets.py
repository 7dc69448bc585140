"""Accuracy among some classes, and with several labels per image, compared with the definitions in plain loops."""

import pytest
import torch

from regard.errors import DataError
from regard.metrics.classification import evaluate_classification
from regard.metrics.imagenet_subsets import real_accuracy, restrict
from regard.structures.categories import Category

CLASSES = tuple(Category(10 * i, name) for i, name in enumerate("abcdefgh"))
LOGITS = torch.randn(60, 8, generator=torch.Generator().manual_seed(4))


def test_the_best_of_the_classes_that_are_there():
    present = [6, 1, 3]
    logits, categories = restrict(LOGITS, CLASSES, present)
    assert [category.name for category in categories] == ["g", "b", "d"]
    expected = [max(present, key=row.__getitem__) for row in LOGITS.tolist()]
    assert [present[best] for best in logits.argmax(1).tolist()] == expected != LOGITS.argmax(1).tolist()
    labels = torch.arange(60) % 3
    right = sum(present[label] == best for label, best in zip(labels.tolist(), expected, strict=True))
    assert evaluate_classification(logits, labels, categories).stats["top1"] == right / 60


def test_all_classes_change_nothing():
    logits, categories = restrict(LOGITS, CLASSES, range(8))
    assert torch.equal(logits, LOGITS) and categories == CLASSES


def test_one_of_several_labels_is_enough():
    labels = [[], [0], [1, 2, 3], [4, 5, 6, 7]] * 15
    counted = [
        max(range(8), key=row.__getitem__) in known for row, known in zip(LOGITS.tolist(), labels, strict=True) if known
    ]
    assert len(counted) == 45 and 0 < sum(counted) < 45
    assert real_accuracy(LOGITS, labels) == sum(counted) / 45
    single = LOGITS.argmax(1)[:, None].tolist()
    assert real_accuracy(LOGITS, single) == 1
    assert real_accuracy(torch.zeros(2, 8), [[0], [7, 1]]) == 0.5  # of equal logits the lower label


@pytest.mark.parametrize(
    ("compute", "code", "named"),
    [
        (lambda: restrict(LOGITS, CLASSES, []), "A49", []),
        (lambda: restrict(LOGITS, CLASSES, [8]), "A49", ["label 8", "0 to 7"]),
        (lambda: restrict(LOGITS, CLASSES, [-1]), "A49", ["label -1", "0 to 7"]),
        (lambda: restrict(LOGITS, CLASSES, [3, 2, 2]), "A25", ["class 2"]),
        (lambda: restrict(LOGITS, CLASSES[:7], [0]), None, ["(60, 8)", "7 categories"]),
        (lambda: real_accuracy(LOGITS, [[0]]), None, ["(60, 8)", "1 images"]),
        (lambda: real_accuracy(LOGITS[:1], [[1, 8]]), "A49", ["label 8", "0 to 7"]),
        (lambda: real_accuracy(LOGITS[:2], [[], []]), None, ["ReaL"]),
    ],
)
def test_wrong_labels(compute, code, named):
    with pytest.raises(DataError) as raised:
        compute()
    assert raised.value.code == code and all(part in str(raised.value) for part in named)
