"""Data that need no download: real digits, equal to scikit-learn's, and single shapes."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from refusals import refused
from regard.data.class_images.dataset import open_classification
from regard.data.generated.shapes import ShapesConfig, render_scene
from regard.errors import ConfigError, MachineError


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("REGARD_HOME", str(tmp_path / "home"))


def test_digits_are_those_of_scikit_learn():
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    train, val = open_classification("digits"), open_classification("digits", "val")
    assert [category.name for category in train.categories] == [str(digit) for digit in range(10)]
    totals = np.bincount(digits.target)
    assert (np.array(train.counts()) + val.counts()).tolist() == totals.tolist()
    assert val.counts() == [round(0.2 * total) for total in totals]
    seen = set()
    for data in (train, val):
        for i in range(0, len(data), 7):
            sample = data[i]
            number = int(sample.path[-8:-4])
            seen.add(number)
            assert sample.label == digits.target[number]
            assert sample.image.shape == (3, 32, 32)
            blocks = sample.image[0].float().reshape(8, 4, 8, 4).mean((1, 3)).numpy()
            assert np.abs(blocks - digits.images[number] * 255 / 16).mean() < 16
    assert len(seen) == -(-len(train) // 7) + -(-len(val) // 7)


def test_digits_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with refused(MachineError, "pip install scikit-learn"):
        open_classification("digits")


def test_shapes_have_one_object_each(tmp_path):
    word = "shapes:size=32,train=40,val=10,classes=4"
    train, val = open_classification(word), open_classification(word, "val")
    assert [category.name for category in train.categories] == ["circle", "square", "star", "triangle"]
    assert (len(train), len(val)) == (40, 10)
    config = ShapesConfig(size=32, train=40, val=10, classes=4, min_objects=1, max_objects=1)
    for data, number in ((train, 0), (val, 1)):
        for i in range(len(data)):
            sample = data[i]
            scene = render_scene(config, (0, number, int(sample.path[-10:-4]) - 1))
            assert len(scene.labels) == 1
            assert np.array_equal(sample.image.permute(1, 2, 0), scene.image)
            assert data.categories[sample.label].name == ("circle", "square", "triangle", "star")[scene.labels[0]]
    assert not [path for path in (tmp_path / "home/data").iterdir() if "tmp" in path.name]


def test_wrong_options():
    with refused(ConfigError, "digits:size=3", code="C01"):
        open_classification("digits:size=3")
    with refused(ConfigError, "train=2", "circle", code="C03"):
        open_classification("shapes:size=32,train=2,classes=6")
    with refused(ConfigError, "sizes", code="C01"):
        open_classification("shapes:sizes=32")
