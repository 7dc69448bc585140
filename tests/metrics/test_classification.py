"""Classification scores compared with scikit-learn and with formulas in plain loops, edge cases, and charts."""

from __future__ import annotations

import io
import json
import math
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor

from regard.errors import DataError, DivergedError
from regard.metrics.charts.classification import plot_class_counts, plot_classification
from regard.metrics.charts.confusion_matrix import draw_confusion_matrix
from regard.metrics.classification import ClassificationScores, evaluate_classification
from regard.structures.categories import Category


def categories(count: int) -> tuple[Category, ...]:
    return tuple(Category(10 + i, f"class {i}") for i in range(count))


def problem(seed: int, images: int = 200, classes: int = 7, absent: int = 0) -> tuple[Tensor, Tensor]:
    """Logits and labels; the last `absent` classes have no images."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes - absent, (images,), generator=g)
    logits = 2 * torch.randn(images, classes, generator=g)
    logits[torch.arange(images), labels] += 2
    return logits, labels


def scores_of(seed: int, **options: int) -> ClassificationScores:
    logits, labels = problem(seed, **options)
    return evaluate_classification(logits, labels, categories(logits.shape[1]))


@pytest.mark.parametrize("seed", range(5))
def test_equals_scikit_learn(seed):
    metrics = pytest.importorskip("sklearn.metrics")
    logits, labels = problem(seed)
    scores = evaluate_classification(logits, labels, categories(7))
    truth, probabilities = labels.numpy(), logits.double().softmax(1).numpy()
    predicted = probabilities.argmax(1)
    assert np.array_equal(scores.confusion, metrics.confusion_matrix(truth, predicted, labels=range(7)))
    precision, recall, f1, images = metrics.precision_recall_fscore_support(truth, predicted, zero_division=np.nan)
    for label, score in enumerate(scores.per_class):
        found = (score.precision, score.recall, score.f1, score.images)
        assert found == pytest.approx((precision[label], recall[label], f1[label], images[label]))
        assert score.category_id == 10 + label
    expected = {
        "top1": metrics.accuracy_score(truth, predicted),
        "top5": metrics.top_k_accuracy_score(truth, probabilities, k=5, labels=range(7)),
        "mean_accuracy": metrics.balanced_accuracy_score(truth, predicted),
        "f1": metrics.f1_score(truth, predicted, average="macro"),
        "nll": metrics.log_loss(truth, probabilities, labels=range(7)),
    }
    assert {name: scores.stats[name] for name in expected} == pytest.approx(expected, abs=1e-12)


def test_calibration_is_the_formula():
    """Guo et al. 2017, equations 2 to 4, one image after the other."""
    logits, labels = problem(3, images=400)
    scores = evaluate_classification(logits, labels, categories(7))
    bins: list[list[tuple[float, bool]]] = [[] for _ in range(15)]
    for row, label in zip(logits.double().tolist(), labels.tolist(), strict=True):
        total = sum(math.exp(value) for value in row)
        confidence = max(math.exp(value) / total for value in row)
        (place,) = (m for m in range(15) if m / 15 < confidence <= (m + 1) / 15)
        bins[place].append((confidence, row.index(max(row)) == label))
    error = 0.0
    for part, found in zip(bins, scores.calibration, strict=True):
        assert found.images == len(part)
        if part:
            accuracy, confidence = sum(r for _, r in part) / len(part), sum(c for c, _ in part) / len(part)
            assert (found.accuracy, found.confidence) == pytest.approx((accuracy, confidence))
            error += len(part) / 400 * abs(accuracy - confidence)
        else:
            assert found.accuracy is None and found.confidence is None
    assert scores.stats["ece"] == pytest.approx(error)


def test_chunks_change_nothing(monkeypatch):
    whole = scores_of(1)
    monkeypatch.setattr("regard.metrics.classification._CHUNK", 7)
    assert scores_of(1).to_dict() == whole.to_dict()


def test_equal_logits_rank_by_label():
    logits, labels = torch.zeros(6, 6), torch.arange(6)
    scores = evaluate_classification(logits, labels, categories(6))
    assert (scores.stats["top1"], scores.stats["top5"]) == (1 / 6, 5 / 6)
    assert scores.confusion[:, 0].tolist() == [1] * 6 and scores.per_class[0].predicted == 6


def test_large_logits_and_few_classes():
    logits = torch.tensor([[1e4, -1e4], [-1e4, 1e4], [1e4, -1e4]])
    scores = evaluate_classification(logits, torch.tensor([0, 1, 1]), categories(2))
    assert scores.stats["nll"] == pytest.approx(2e4 / 3)
    assert scores.calibration[-1].images == 3 and scores.stats["ece"] == pytest.approx(1 / 3)
    half = evaluate_classification(logits.bfloat16(), torch.tensor([0, 1, 1]), categories(2))
    assert half.stats["top1"] == scores.stats["top1"]


@pytest.mark.parametrize("count", [2, 5, 6])
def test_the_first_five_of_five_classes_are_no_score(count):
    scores = evaluate_classification(torch.eye(count), torch.arange(count), categories(count))
    console = Console(width=100, file=io.StringIO())
    console.print(scores.table())
    shown = console.file.getvalue()
    assert "top1 100.0" in shown and "ece" in shown
    assert ("top5" in scores.stats) == ("top5" in shown) == (count > 5)


def test_classes_without_images_count_in_no_mean():
    logits, labels = problem(2, absent=2)
    scores = evaluate_classification(logits, labels, categories(7))
    last = scores.per_class[-1]
    assert last.images == 0 and last.recall is None and last.predicted > 0 and last.precision == last.f1 == 0
    known = [score.recall for score in scores.per_class[:5]]
    assert scores.stats["mean_accuracy"] == pytest.approx(sum(known) / 5)
    nothing = evaluate_classification(torch.eye(3)[:2], torch.tensor([0, 1]), categories(3)).per_class[2]
    assert (nothing.precision, nothing.recall, nothing.f1) == (None, None, None)


def test_the_order_of_images_does_not_matter():
    logits, labels = problem(4)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))
    one = evaluate_classification(logits, labels, categories(7))
    other = evaluate_classification(logits[order], labels[order], categories(7))
    assert one.stats == pytest.approx(other.stats, abs=1e-12) and np.array_equal(one.confusion, other.confusion)


@pytest.mark.parametrize(
    ("logits", "labels", "count", "code", "named"),
    [
        (torch.zeros(0, 3), torch.zeros(0), 3, None, ["no images"]),
        (torch.zeros(2, 3), torch.zeros(1), 3, None, ["(2, 3)", "(1,)"]),
        (torch.zeros(2, 3), torch.zeros(2), 4, None, ["(2, 3)", "4 categories"]),
        (torch.zeros(3), torch.zeros(3), 3, None, ["(3,)", "(N, C)"]),
        (torch.zeros(2, 3), torch.tensor([0, 3]), 3, "A49", ["label 3", "0 to 2"]),
        (torch.zeros(2, 3), torch.tensor([0, -1]), 3, "A49", ["label -1", "0 to 2"]),
    ],
)
def test_logits_and_labels_that_do_not_match(logits, labels, count, code, named):
    with pytest.raises(DataError) as raised:
        evaluate_classification(logits, labels, categories(count))
    assert raised.value.code == code and all(part in str(raised.value) for part in named)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_not_finite(value):
    with pytest.raises(DivergedError):
        evaluate_classification(torch.tensor([[0.0, value]]), torch.tensor([0]), categories(2))


def test_json_has_the_counts():
    scores = scores_of(5, absent=1)
    content = json.loads(json.dumps(scores.to_dict(), allow_nan=False))
    confusion = np.zeros_like(scores.confusion)
    for truth, predicted, count in content["confusion"]:
        confusion[truth, predicted] = count
    assert np.array_equal(confusion, scores.confusion) and content["stats"] == scores.stats
    assert content["per_class"] == [score._asdict() for score in scores.per_class]


def test_most_confused():
    logits = torch.eye(3)[[1, 1, 1, 2, 0, 1, 2, 0]]
    scores = evaluate_classification(logits, torch.tensor([0, 0, 1, 1, 0, 1, 2, 2]), categories(3))
    assert scores.most_confused(5) == [(0, 1, 2), (1, 2, 1), (2, 0, 1)] and scores.most_confused(1) == [(0, 1, 2)]
    right = evaluate_classification(torch.eye(3), torch.arange(3), categories(3))
    assert right.most_confused(5) == []
    assert scores.weakest()[0] == min(scores.per_class, key=lambda score: score.f1)


def text_of(scores: ClassificationScores) -> str:
    console = Console(width=100, record=True)
    with console.capture() as captured:
        console.print(scores.table())
    return captured.get()


def test_table():
    logits = torch.eye(3)[[0, 0, 1, 1]]
    names = (Category(0, "[red]"), Category(1, "a\nb"), Category(2, "c"))
    text = text_of(evaluate_classification(logits, torch.tensor([0, 1, 1, 1]), names))
    assert "[red]" in text and "a\\nb" in text and "top1 75.0" in text and "66.7" in text
    assert "n/a: 1 of 3 classes has no images" in text
    many = text_of(scores_of(0, images=400, classes=200))
    assert "the weakest 50 of 200 classes" in many and many.count("class ") < 60


@pytest.mark.parametrize(("classes", "images"), [(2, 30), (14, 300), (1000, 3000)])
def test_pictures(classes, images, tmp_path):
    scores = scores_of(0, images=images, classes=classes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        written = plot_classification(scores, tmp_path / "pictures")
        counts = [score.images for score in scores.per_class]
        written.append(plot_class_counts(counts, counts, [score.name for score in scores.per_class], tmp_path))
    names = {"confusion_matrix.png", "calibration.png", "class_accuracy.png", "most_confused.png", "dataset.png"}
    assert {path.name for path in written} == names
    for path in written:
        with Image.open(path) as picture:
            assert max(picture.size) < 3200 and min(picture.size) > 300
            assert np.asarray(picture.convert("L")).std() > 5


def test_pictures_of_a_perfect_classifier_and_odd_names(tmp_path):
    names = (Category(0, "$x_1$"), Category(1, "n" * 500), Category(2, "tab\tnew\nline"))
    scores = evaluate_classification(20 * torch.eye(3), torch.arange(3), names)
    assert len(plot_classification(scores, tmp_path)) == 3  # nothing is confused


def test_single_cells_of_large_matrices_are_widened():
    matrix = np.eye(500, dtype=np.int64)
    matrix[100] = 0  # a class without images
    matrix[200, 300] = 1
    (image,) = draw_confusion_matrix(matrix, ["x"] * 500, "t").axes[0].get_images()
    shown = np.ma.filled(image.get_array(), np.nan)
    assert (shown[199:202, 299:302] == 0.5).all() and shown[200, 310] == 0
    assert np.isnan(shown[100]).all() and not np.isnan(shown[101]).any()
