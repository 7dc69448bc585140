"""RandAugment's operations against timm's on Pillow images, and how they are drawn."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from class_data import photo
from regard.data.transforms import randaugment
from regard.data.transforms.randaugment import OPERATIONS, RandAugment
from regard.errors import ConfigError

PEERS = {
    "autocontrast": "AutoContrast", "equalize": "Equalize", "invert": "Invert", "rotate": "Rotate",
    "posterize": "PosterizeIncreasing", "solarize": "SolarizeIncreasing", "solarize_add": "SolarizeAdd",
    "color": "ColorIncreasing", "contrast": "ContrastIncreasing", "brightness": "BrightnessIncreasing",
    "sharpness": "SharpnessIncreasing", "shear_x": "ShearX", "shear_y": "ShearY",
    "translate_x": "TranslateXRel", "translate_y": "TranslateYRel",
}  # fmt: skip
GEOMETRY = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")


def test_operations_are_timms():
    timm = pytest.importorskip("timm.data.auto_augment")
    assert sorted(PEERS.values()) == sorted(timm._RAND_INCREASING_TRANSFORMS)
    assert PEERS.keys() == OPERATIONS.keys()


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize("magnitude", [0.0, 2.0, 5.5, 9.0, 9.9])
def test_each_equals_timms(monkeypatch, name, magnitude):
    timm = pytest.importorskip("timm.data.auto_augment")
    fill = tuple(int(level) for level in randaugment.FILL)
    hparams = {"img_mean": fill, "interpolation": Image.Resampling.BILINEAR, "translate_const": 10}
    peer = timm.AugmentOp(PEERS[name], prob=1.0, magnitude=magnitude, hparams=hparams)
    image = photo(40, 56)
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    for coin in (0.25, 0.75):
        monkeypatch.setattr(timm.random, "random", lambda coin=coin: coin)
        expected = torch.from_numpy(np.array(peer(picture))).permute(2, 0, 1).int()
        distances = [(OPERATIONS[name](image, magnitude / 10, s).int() - expected).abs().float() for s in (1, -1)]
        if name in GEOMETRY:  # borders are smooth in one and hard in the other
            assert min(float((distance > 3).float().mean()) for distance in distances) < 0.06
        else:
            assert min(float(distance.max()) for distance in distances) <= 1


@pytest.mark.parametrize("name", PEERS)
def test_signs_and_levels(name):
    image = photo(40, 56)
    plus, minus, weak = (OPERATIONS[name](image, level, sign) for level, sign in ((0.9, 1), (0.9, -1), (0.2, 1)))
    for other in (plus, minus, weak):
        assert (other.shape, other.dtype) == (image.shape, torch.uint8)
    signed = name in (*GEOMETRY, "color", "contrast", "brightness", "sharpness")
    assert torch.equal(plus, minus) != signed
    levelled = name not in ("autocontrast", "equalize", "invert")
    assert torch.equal(plus, weak) != levelled


def test_posterize_keeps_no_bit_at_the_top():
    """As in the authors' runs; newer versions of Pillow refuse it."""
    assert not OPERATIONS["posterize"](photo(4, 4), 1.0, 1).any()
    assert OPERATIONS["posterize"](photo(4, 4), 0.99, 1).unique().tolist() == [0, 128]


def test_signs_are_even(monkeypatch):
    calls: list[tuple[str, float, int]] = []

    def note(name):
        return lambda image, level, sign: calls.append((name, level, sign)) or image

    monkeypatch.setattr(randaugment, "OPERATIONS", {name: note(name) for name in OPERATIONS})
    generator = torch.Generator().manual_seed(0)
    for _ in range(3000):
        RandAugment(9.0)(torch.zeros(3, 4, 4, dtype=torch.uint8), generator)
    assert len(calls) == pytest.approx(3000, abs=120)  # two operations, half of the time each
    assert all(count == pytest.approx(200, abs=60) for count in Counter(name for name, _, _ in calls).values())
    assert sum(sign for _, _, sign in calls) == pytest.approx(0, abs=200)
    levels = np.array([level for _, level, _ in calls])
    assert levels.max() == 1.0  # two standard deviations above the mean
    assert np.median(levels) == pytest.approx(0.9, abs=0.01)
    assert np.quantile(levels, 0.16) == pytest.approx(0.85, abs=0.01)


def test_a_sample_depends_on_its_generator_alone():
    image = photo(40, 56)

    def augmented(seed: int) -> torch.Tensor:
        return RandAugment()(image, torch.Generator().manual_seed(seed))

    torch.manual_seed(0)
    first = [augmented(seed) for seed in range(8)]
    torch.manual_seed(1)
    assert all(torch.equal(augmented(seed), one) for seed, one in enumerate(first))
    assert len({one.numpy().tobytes() for one in first}) > 4
    assert torch.equal(image, photo(40, 56))


@pytest.mark.parametrize("magnitude", [11.0, -1.0, float("nan")])
def test_wrong_magnitude(magnitude):
    with pytest.raises(ConfigError) as refused:
        RandAugment(magnitude)
    assert refused.value.code == "C03"
    assert str(magnitude) in str(refused.value)
