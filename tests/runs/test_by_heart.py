"""Each family learns a dozen images by heart, with the task and the loop of `regard train`; and then in bfloat16.

That is the shortest proof that data, loss, gradients and scores of a family go together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import regard
from regard.models.build import Detector
from small_families import DETECTORS, FAMILIES, Trained, task_of, train, write_data

DECAYING = {"schedule": "cosine", "lr": 1e-3, "lr_backbone": 1e-3}
# Steps, changes to the recipe, the score and its least value, the most that the loss of the last 20 steps may be. 0.95
# AP needs boxes within a pixel of 32. Denoising, whose task is drawn anew in each step, keeps its loss high.
LESSONS: dict[str, tuple[int, dict[str, Any], str, float, float]] = {
    "resnet": (100, {}, "top1", 1.0, 0.2),
    "augmented_resnet": (100, {}, "top1", 1.0, 0.2),
    "vit": (60, {}, "top1", 1.0, 0.02),
    "deit": (60, {}, "top1", 1.0, 0.02),
    "retinanet": (800, {**DECAYING, "model": replace(FAMILIES["retinanet"], channels=32)}, "AP", 0.95, 0.05),
    "detr": (1200, {**DECAYING, "model": replace(FAMILIES["detr"], embed_dim=64)}, "AP", 0.95, 1.0),
    "detr_anchors": (600, {**DECAYING, "model": replace(FAMILIES["detr_anchors"], embed_dim=64)}, "AP", 0.95, 4.0),
    "panoptic": (
        1000, {**DECAYING, "model": replace(FAMILIES["panoptic"], embed_dim=64, encoder_layers=1)}, "AP", 0.95, 3.0,
    ),
}  # fmt: skip
SLOW = [pytest.param(name, marks=pytest.mark.slow) if name in DETECTORS else name for name in LESSONS]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def pupil(data, tmp_path_factory) -> Callable[[str], Trained]:
    known: dict[str, Trained] = {}

    def find(family: str) -> Trained:
        if family not in known:
            steps, changes, *_ = LESSONS[family]
            known[family] = train(family, data, tmp_path_factory.mktemp("runs") / family, steps, **changes)
        return known[family]

    return find


@pytest.mark.parametrize("family", SLOW)
def test_images_are_learned_by_heart(family, data, pupil):
    """Detectors take half a minute of one core, classifiers a second."""
    trained, (_, changes, score, least, most) = pupil(family), LESSONS[family]
    loss = sum(trained.losses[-20:]) / 20
    found = task_of(family, data, **changes).evaluate(trained.model.eval(), 1)[score]
    print(f"{family}: {score} {found:.3f}, loss {loss:.3g}")
    assert found >= least and loss <= most


@pytest.mark.parametrize("family", SLOW)
def test_bfloat16_of_what_was_learned(family, data, pupil):
    """At most 2 % of the range of logits: 8 bits round by 0.4 %, some times over. The best class stays.

    Of detectors the logits of queries: the first layer that differs by more has lost what it learned.
    """
    net: Any = pupil(family).model.eval()
    batch = next(task_of(family, data, batch_size=8, **LESSONS[family][1]).batches(0))
    images = batch.images.normalized()
    expected, found = (_logits(model, images) for model in (net, regard.optimize(net, dtype=torch.bfloat16)))
    assert not torch.equal(found, expected)
    assert_near(found, expected)


@torch.no_grad()
def _logits(net: nn.Module, images: Any) -> Tensor:
    return net(images).logits if isinstance(net, Detector) else net(images.pixels)


def assert_near(found: Tensor, expected: Tensor) -> None:
    """At most 2 % of the range apart, with the same best class in 99.5 % of the rows."""
    far, extent = (found - expected).abs(), expected.max() - expected.min()
    worst = tuple(int(i) for i in torch.unravel_index(far.argmax(), far.shape))
    same = (found.argmax(-1) == expected.argmax(-1)).float().mean()
    print(f"{(far[worst] / extent).item():.2%} of the range at {worst}, best class of {same.item():.1%}")
    assert far[worst] <= 0.02 * extent, f"{worst}: {found[worst]}, in float32 {expected[worst]}"
    assert same >= 0.995
