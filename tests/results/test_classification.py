"""What prediction gives for a classifier: order, conversions, pictures, and what it refuses."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from refusals import refused
from regard.errors import ConfigError, DataError, DivergedError, MachineError
from regard.results.classification import Classification, class_probabilities
from regard.structures.categories import Category

CATEGORIES = (Category(7, "cat"), Category(3, "dog"), Category(90, "Waschbär"), Category(1, "owl"))
VALUES = [0.125, 0.5, 0.125, 0.25]


def classification(**changes: object) -> Classification:
    values: dict = {
        "probabilities": torch.tensor(VALUES),
        "categories": CATEGORIES,
        "size": (80, 100),
        "image": torch.full((3, 80, 100), 200, dtype=torch.uint8),
    }
    return Classification(**{**values, **changes})


def test_best_first_and_equal_ones_by_label():
    result = classification()
    assert [tuple(row.values()) for row in result] == [
        ("dog", 1, 0.5), ("owl", 3, 0.25), ("cat", 0, 0.125), ("Waschbär", 2, 0.125),
    ]  # fmt: skip
    assert (result.name, result.label, result.score) == ("dog", 1, 0.5)
    assert [result[i] for i in range(len(result))] == list(result) == result.to_dicts() == result.to_dicts(9)
    assert result[-1]["label"] == "Waschbär" and len(result.to_dicts(3)) == 3
    with pytest.raises(IndexError):
        result[4]
    for k in (0, -1):
        with refused(ConfigError, f"k={k}", code="C03"):
            result.to_dicts(k)


def test_conversions():
    result = classification(path="a/b.jpg")
    rows = [{"label": "dog", "label_id": 1, "score": 0.5}, {"label": "owl", "label_id": 3, "score": 0.25}]
    assert result.to_dicts(2) == rows and json.loads(result.to_json()) == result.to_dicts()
    assert "Waschbär" in result.to_json()
    table = result.to_pandas()
    assert list(table.columns) == ["path", "label", "label_id", "score"]
    assert table["score"].tolist() == sorted(VALUES)[::-1] and set(table["path"]) == {"a/b.jpg"}
    assert result.summary() == "dog 0.50" and result.summary(2) == "dog 0.50, owl 0.25"


def test_repr_is_one_line():
    odd = (Category(0, "a\nb"), *CATEGORIES[1:])
    result = classification(probabilities=torch.tensor([0.9, 0.1, 0, 0]), categories=odd, path="x\n.jpg")
    assert repr(result) == "Classification(a\\nb 0.90; x\\n.jpg, 80x100)"


def test_probabilities_are_softmax_in_float32():
    logits = torch.tensor([[1.0, 2.0, 0.5], [300, 0, -300]])
    total = sum(math.exp(v) for v in (1, 2, 0.5))
    expected = [math.exp(v) / total for v in (1, 2, 0.5)]
    assert class_probabilities(logits)[0].tolist() == pytest.approx(expected) and class_probabilities(logits)[
        1
    ].tolist() == [1, 0, 0]
    assert class_probabilities(logits.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("probabilities", [torch.ones(3), torch.ones(1, 4), torch.tensor(1.0)])
def test_shapes_that_do_not_fit(probabilities):
    with refused(ConfigError, tuple(probabilities.shape), "4 categories"):
        classification(probabilities=probabilities)
    with pytest.raises(ConfigError):
        classification(probabilities=torch.ones(0), categories=())


def test_not_finite():
    with refused(DivergedError, "a.jpg"):
        classification(probabilities=torch.tensor([0.1, float("nan"), 0, 0]), path="a.jpg")


@pytest.mark.parametrize("size", [(80, 100), (4, 4), (1, 900), (900, 1), (600, 800)])
def test_pictures_of_any_size(size):
    image = torch.full((3, *size), 90, dtype=torch.uint8)
    picture = classification(image=image, size=size).plot(3)
    assert picture.height > picture.width * size[0] / size[1] and picture.mode == "RGB"
    assert np.asarray(picture)[-4:].mean() > 200  # white below the bars
    assert image.eq(90).all()


def test_bars_are_as_long_as_their_class_is_probable():
    picture = np.asarray(classification().plot(4)).astype(int)
    is_bar = (abs(picture[320:] - (158, 206, 255)) < 2).all(2)  # the image is enlarged to 320 x 400
    rows = [np.flatnonzero(row) for row in is_bar if row.any()]
    widths = sorted({int(row.max() - row.min()) for row in rows if len(row) > 10})
    assert {round(4 * width / widths[-1], 1) for width in widths} == {1.0, 2.0, 4.0}


def test_saving(tmp_path):
    classification().save(tmp_path / "deep" / "a.png")
    assert Image.open(tmp_path / "deep" / "a.png").width == 400
    with refused(ConfigError, tmp_path / "a.xyz", ".png"):
        classification().save(tmp_path / "a.xyz")
    (tmp_path / "file").write_text("")
    with refused(MachineError, tmp_path / "file" / "a.png"):
        classification().save(tmp_path / "file" / "a.png")
    with refused(ConfigError, "Classification", "path"):
        classification(image=None).plot()
    with pytest.raises(DataError):
        classification(image=None, path=str(tmp_path / "gone.jpg")).plot()


def test_the_file_is_read_again_for_pictures(tmp_path):
    Image.new("RGB", (400, 330), (10, 200, 30)).save(tmp_path / "a.png")
    picture = classification(image=None, path=str(tmp_path / "a.png")).plot()
    assert picture.getpixel((50, 50)) == (10, 200, 30)
