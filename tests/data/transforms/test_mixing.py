"""Mixup and CutMix against timm's `Mixup` at the same draws, against plain loops, and where the draws come from."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regard.data.transforms.mixing import Mix, Mixing, cutmix_box, mix_pixels
from regard.errors import ConfigError


def batch(count: int = 6, height: int = 12, width: int = 9, classes: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (count,), generator=generator)
    return torch.randn(count, 3, height, width, generator=generator), labels


class Scripted:
    """numpy's random functions as timm calls them, with values given beforehand."""

    def __init__(self, use_cutmix: bool, share: float, centre: tuple[int, int]) -> None:
        self.uniforms = [0.0, 0.0 if use_cutmix else 1.0]
        self.share, self.centre = share, list(centre)

    def rand(self) -> float:
        return self.uniforms.pop(0)

    def beta(self, a: float, b: float) -> float:
        return self.share

    def randint(self, low: int, high: int, size: None = None) -> int:
        assert low <= self.centre[0] < high
        return self.centre.pop(0)


@pytest.mark.parametrize("use_cutmix", [False, True])
@pytest.mark.parametrize("share", [0.03, 0.3, 0.62, 0.97])
@pytest.mark.parametrize("centre", [(0, 0), (6, 4), (11, 8)])
def test_equals_timm_at_the_same_draws(monkeypatch, use_cutmix, share, centre):
    peer = pytest.importorskip("timm.data.mixup")
    monkeypatch.setattr(peer.np, "random", Scripted(use_cutmix, share, centre))
    pixels, labels = batch()
    expected, targets = peer.Mixup(0.8, 1.0, label_smoothing=0.1, num_classes=5)(pixels.clone(), labels)
    before = pixels.clone()
    mix = cutmix_box(12, 9, share, centre) if use_cutmix else Mix(share)
    torch.testing.assert_close(mix_pixels(pixels, mix), expected)
    torch.testing.assert_close(Mixing(num_classes=5).targets(labels, mix.share), targets)
    assert torch.equal(pixels, before)


@given(st.integers(1, 40), st.integers(1, 40), st.floats(0, 1), st.data())
def test_share_is_the_area_that_is_kept(height, width, share, data):
    centre = data.draw(st.tuples(st.integers(0, height - 1), st.integers(0, width - 1)))
    mix = cutmix_box(height, width, share, centre)
    pixels = torch.stack((torch.zeros(1, height, width), torch.ones(1, height, width)))
    mixed = mix_pixels(pixels, mix)
    assert math.isclose(mixed[1].mean().item(), mix.share, abs_tol=1e-6)
    assert math.isclose(mixed[0].mean().item(), 1 - mix.share, abs_tol=1e-6)


def test_pixels_and_targets_by_plain_loops():
    mixing = Mixing(num_classes=5, label_smoothing=0.2, cutmix_alpha=0, seed=7)
    pixels, labels = batch(5)
    share = mixing.draw(3, 12, 9).share
    assert 0 < share < 1
    mixed, targets = mixing(pixels, labels, step=3)
    for i in range(5):
        j = 4 - i
        torch.testing.assert_close(mixed[i], share * pixels[i] + (1 - share) * pixels[j])
        for c in range(5):
            own, other = (0.2 / 5 + 0.8 * (labels[k] == c).item() for k in (i, j))
            assert targets[i, c].item() == pytest.approx(share * own + (1 - share) * other, abs=1e-6)
    assert targets.dtype == torch.float32


def test_imagenet_targets():
    targets = Mixing(num_classes=1000).targets(torch.tensor([3]))
    assert targets[0, 3].item() == pytest.approx(0.9001)
    assert targets[0, 4].item() == pytest.approx(1e-4)


def test_unmixed_targets_are_label_smoothing():
    logits, labels = torch.randn(8, 5, generator=torch.Generator().manual_seed(1)), torch.arange(8) % 5
    targets = Mixing(num_classes=5, mixup_alpha=0, cutmix_alpha=0)(logits[:, None, None], labels, 0)[1]
    ours = -(targets * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(ours, torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.1))


def test_draws_depend_on_seed_step_and_rank_alone():
    def draws(seed: int = 0, rank: int = 0) -> list[Mix]:
        return [Mixing(num_classes=5, seed=seed).draw(step, 32, 32, rank) for step in range(20)]

    np.random.seed(1)
    torch.manual_seed(1)
    first, state = draws(), torch.get_rng_state()
    np.random.seed(2)
    torch.manual_seed(2)
    assert draws() == first
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)
    shares = [mix.share for mix in (*first, *draws(seed=1), *draws(rank=1))]
    assert len(set(shares)) > 55  # those of boxes are fractions of 32 x 32 and may repeat


def test_draws_have_the_distribution_asked_for():
    def draws(**settings: float) -> list[Mix]:
        return [Mixing(num_classes=5, **settings).draw(step, 64, 64) for step in range(2000)]  # type: ignore[arg-type]

    assert sum(mix.box is not None for mix in draws()) / 2000 == pytest.approx(0.5, abs=0.04)
    mixup = [mix.share for mix in draws(cutmix_alpha=0, mixup_alpha=0.8)]
    assert np.mean(mixup) == pytest.approx(0.5, abs=0.03)
    assert np.var(mixup) == pytest.approx(1 / (4 * (2 * 0.8 + 1)), abs=0.01)  # of Beta(a, a)
    cutmix = draws(mixup_alpha=0)
    assert all(mix.box is not None for mix in cutmix)
    rows = [mix.box[0] + mix.box[1] for mix in cutmix if mix.box and mix.share > 0.95]
    assert np.mean(rows) == pytest.approx(64, abs=8)


def test_a_batch_of_one_is_left_as_it_is():
    pixels, labels = batch(1)
    for step in range(5):
        mixed, targets = Mixing(num_classes=5)(pixels, labels, step)
        torch.testing.assert_close(mixed, pixels)
        torch.testing.assert_close(targets, Mixing(num_classes=5).targets(labels))


@pytest.mark.parametrize(
    ("name", "value"),
    [("mixup_alpha", -1.0), ("cutmix_alpha", math.nan), ("label_smoothing", -0.1)],
)
def test_wrong_settings(name, value):
    with pytest.raises(ConfigError) as refused:
        Mixing(num_classes=5, **{name: value})
    assert refused.value.code == "C03"
    assert name in str(refused.value)
