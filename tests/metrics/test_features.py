"""Nearest neighbours and linear probes compared with their formulas in plain loops and with scikit-learn."""

import math

import pytest
import torch

from regard.errors import DataError, DivergedError
from regard.metrics import features
from regard.metrics.features import knn_accuracy, linear_probe, linear_probe_accuracy


def clusters(count, classes=5, dim=12, spread=1.2, seed=0):
    """Features around one point for each class, overlapping, of very different sizes; and their labels."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(classes, dim, generator=torch.Generator().manual_seed(99))
    labels = torch.randint(classes, (count,), generator=generator)
    noise = torch.randn(count, dim, generator=generator)
    return (centers[labels] + spread * noise) * torch.logspace(-1, 1, dim), labels


TRAIN, VAL = clusters(200), clusters(90, seed=1)


def votes_in_loops(k, temperature, classes):
    """Wu et al. 2018, section 3.4, image by image in Python's floats."""
    correct = 0
    for feature, label in zip(VAL[0].double().tolist(), VAL[1].tolist(), strict=True):
        neighbours = []
        for other, other_label in zip(TRAIN[0].double().tolist(), TRAIN[1].tolist(), strict=True):
            lengths = math.hypot(*feature) * math.hypot(*other)
            neighbours.append((math.fsum(a * b for a, b in zip(feature, other, strict=True)) / lengths, other_label))
        votes = [0.0] * classes
        for similarity, other_label in sorted(neighbours, reverse=True)[:k]:
            votes[other_label] += math.exp(similarity / temperature)
        correct += max(range(classes), key=votes.__getitem__) == label
    return correct / len(VAL[1])


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (20, 0.07), (30, 1.0), (200, 0.2)])
def test_neighbours_vote_as_published(k, temperature, monkeypatch):
    expected = votes_in_loops(k, temperature, 5)
    assert 0.3 < expected < 1
    assert knn_accuracy(*TRAIN, *VAL, 5, k=k, temperature=temperature) == expected
    monkeypatch.setattr(features, "_MAX_VALUES", 7 * 200)  # seven images at once
    assert knn_accuracy(*TRAIN, *VAL, 5, k=k, temperature=temperature) == expected


def test_more_neighbours_than_images():
    assert knn_accuracy(*TRAIN, *VAL, 5, k=500) == knn_accuracy(*TRAIN, *VAL, 5, k=200)


@pytest.mark.parametrize("l2", [1.0, 30.0])
def test_the_probe_is_scikit_learns(l2):
    linear_model, preprocessing = (pytest.importorskip(f"sklearn.{name}") for name in ("linear_model", "preprocessing"))
    scaler = preprocessing.StandardScaler().fit(TRAIN[0].double())
    theirs = linear_model.LogisticRegression(C=1 / l2, tol=1e-8, max_iter=5000)
    theirs.fit(scaler.transform(TRAIN[0].double()), TRAIN[1])
    weight, bias = linear_probe(*TRAIN, 5, l2=l2)
    ours = (VAL[0].double() @ weight.T + bias).log_softmax(1)
    expected = torch.from_numpy(theirs.predict_log_proba(scaler.transform(VAL[0].double())))
    torch.testing.assert_close(ours, expected, rtol=1e-3, atol=2e-3)
    assert linear_probe_accuracy(*TRAIN, *VAL, 5, l2=l2) == theirs.score(scaler.transform(VAL[0].double()), VAL[1])


def test_what_does_not_matter(monkeypatch):
    """Neighbours: rotations, lengths, the order of images. The probe: scales and shifts of features, order, blocks."""
    generator = torch.Generator().manual_seed(3)
    order = torch.randperm(200, generator=generator)
    shuffled = TRAIN[0][order], TRAIN[1][order]
    rotation = torch.linalg.qr(torch.randn(12, 12, generator=generator).double()).Q
    rotated, rotated_val = TRAIN[0].double() @ rotation, VAL[0].double() @ rotation
    lengths = torch.rand(200, 1, generator=generator) + 0.5
    expected = knn_accuracy(*TRAIN, *VAL, 5)
    assert knn_accuracy(*shuffled, *VAL, 5) == expected
    assert knn_accuracy(rotated, TRAIN[1], rotated_val, VAL[1], 5) == expected
    assert knn_accuracy(lengths * TRAIN[0], TRAIN[1], 3 * VAL[0], VAL[1], 5) == expected

    expected = linear_probe_accuracy(*TRAIN, *VAL, 5)
    scale, shift = torch.rand(2, 12, generator=generator) * 9 + 1
    assert linear_probe_accuracy(*shuffled, *VAL, 5) == expected
    assert linear_probe_accuracy(TRAIN[0] * scale + shift, TRAIN[1], VAL[0] * scale + shift, VAL[1], 5) == expected
    monkeypatch.setattr(features, "_MAX_VALUES", 12 * 33)
    assert linear_probe_accuracy(*TRAIN, *VAL, 5) == expected


def test_a_feature_without_information_does_no_harm():
    def with_constant(pair):
        return torch.cat((pair[0], torch.full((len(pair[0]), 1), 0.1)), dim=1), pair[1]

    expected = linear_probe_accuracy(*TRAIN, *VAL, 5)
    assert linear_probe_accuracy(*with_constant(TRAIN), *with_constant(VAL), 5) == expected


def test_a_class_without_training_images_is_never_right():
    train = TRAIN[0][TRAIN[1] < 4], TRAIN[1][TRAIN[1] < 4]
    rest = VAL[0][VAL[1] == 4], VAL[1][VAL[1] == 4]
    for accuracy in (knn_accuracy, linear_probe_accuracy):
        assert accuracy(*train, *rest, 5) == 0
        assert accuracy(*train, *VAL, 5) > 0.5


@pytest.mark.parametrize("accuracy", [knn_accuracy, linear_probe_accuracy])
def test_wrong_features_and_labels(accuracy):
    with pytest.raises(DataError) as raised:
        accuracy(*TRAIN, *VAL, 4)
    assert raised.value.code == "A49" and "label 4" in str(raised.value) and "0 to 3" in str(raised.value)
    with pytest.raises(DataError) as raised:
        accuracy(TRAIN[0][:10], TRAIN[1], *VAL, 5)
    assert "(10, 12)" in str(raised.value) and "(200,)" in str(raised.value)
    with pytest.raises(DataError) as raised:
        accuracy(*TRAIN, VAL[0][:0], VAL[1][:0], 5)
    assert "(0, 12)" in str(raised.value)
    broken = TRAIN[0].clone()
    broken[3, 2] = math.nan
    with pytest.raises(DivergedError):
        accuracy(broken, TRAIN[1], *VAL, 5)
