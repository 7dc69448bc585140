"""Deletion and insertion: areas that are known beforehand, and a detection's score."""

import pytest
import torch

from refusals import refused
from regard.errors import ConfigError
from regard.explanations.deletion import deletion_curve, detection_score, insertion_curve
from regard.structures.outputs import DetectionOutput

SIZE = (8, 16)


def share_of_the_left(images):
    """A score of 1 while the left half has all its pixels of 1."""
    return images[:, 0, :, :8].mean((1, 2))


def test_areas_of_what_counts_and_of_what_does_not():
    """All of the score lies in the left half: falling over the first half of the pixels, or over the last."""
    image = torch.ones(3, *SIZE)
    left = torch.zeros(SIZE)
    left[:, :8] = 1
    best = deletion_curve(share_of_the_left, image, left)
    torch.testing.assert_close(best.scores, (1 - 2 * best.fractions).clamp(min=0))
    assert best.area == pytest.approx(0.25)
    assert deletion_curve(share_of_the_left, image, -left).area == pytest.approx(0.75)


def test_insertion_starts_from_a_blurred_image():
    g = torch.Generator().manual_seed(0)
    image = torch.randn(3, 32, 32, generator=g)

    def likeness(images):
        return (images * image).sum((1, 2, 3)) / image.square().sum()

    curve = insertion_curve(likeness, image, torch.rand(32, 32, generator=g))
    assert curve.scores[0] < 0.1 and curve.scores[-1].item() == pytest.approx(1)
    assert (curve.scores.diff() > 0).all() and curve.area == pytest.approx(0.5, abs=0.06)


def test_order_does_not_matter_where_all_pixels_count_alike():
    g = torch.Generator().manual_seed(1)
    image = torch.ones(3, 8, 8)
    areas = [
        deletion_curve(lambda images: images.mean((1, 2, 3)), image, torch.rand(8, 8, generator=g)).area
        for _ in range(3)
    ]
    assert areas == pytest.approx([0.5] * 3)


def test_a_detection_is_found_by_class_and_place():
    box = torch.tensor([0.5, 0.5, 0.4, 0.4])
    boxes = torch.stack((box, torch.tensor([0.5, 0.5, 0.4, 0.2]), torch.tensor([0.1, 0.1, 0.1, 0.1]))).expand(2, 3, 4)
    logits = torch.tensor([[[0.0, -50], [9, -50], [9, -50]], [[-50.0, 9], [-50, 9], [9, -50]]])
    found = detection_score(DetectionOutput(logits, boxes), 0, box, softmax=False)
    torch.testing.assert_close(found, torch.tensor([0.5, 0.0]), atol=1e-3, rtol=0)
    with refused(ConfigError, "(8, 8)", "(8, 16)", "SaliencyMap.on_pixels"):
        deletion_curve(share_of_the_left, torch.ones(3, 8, 16), torch.ones(8, 8))


def test_random_maps_tie_with_each_other_and_lose_to_the_right_one():
    """What counts is one corner: random maps differ by chance, the map of the corner is below all of them."""
    g = torch.Generator().manual_seed(2)
    image = torch.ones(3, 32, 32)
    corner = torch.zeros(32, 32)
    corner[:8, :8] = 1

    def score(images):
        return (images[:, 0] * corner).sum((1, 2)) / corner.sum()

    def random():
        return deletion_curve(
            score, image, torch.rand(8, 8, generator=g).repeat_interleave(4, 0).repeat_interleave(4, 1)
        )

    first, second = (torch.tensor([random().area for _ in range(60)]) for _ in range(2))
    gains = first - second
    assert gains.mean().abs() < 3 * gains.std() / 60**0.5
    assert first.mean() == pytest.approx(0.5, abs=0.06)
    assert deletion_curve(score, image, corner).area < min(first.min(), second.min())
