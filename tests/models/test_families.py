"""What every family of networks must stand: neighbours in a batch, threads, half precision, tiny images."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from regard.models.build import Detector, Model
from regard.models.configs import CONFIGS
from regard.structures.image_batch import ImageBatch
from small_families import DETECTORS, FAMILIES, SIDE, random_images, small_network

# Sums of a batch and of several threads run in another order. What that may change is measured: the error that float32
# makes anyhow, three times (as torch's compiler is tested), and a rounding of numbers of the size of 1 in ten layers.
TIMES, ROUNDING = 3, 1e-6


@torch.no_grad()
def outputs(net: Model, pixels: Tensor) -> dict[str, Tensor]:
    if not isinstance(net, Detector):
        return {"logits": net(pixels)}
    found = net(list(pixels))
    parts = {"logits": found.logits, "boxes": found.boxes, "masks": found.masks}
    return {name: part for name, part in parts.items() if part is not None}


def assert_near(found: dict[str, Tensor], expected: dict[str, Tensor], exact: dict[str, Tensor]) -> None:
    """Both are near the outputs in float64: `found` not much less than `expected`. Images have outputs of their own."""
    assert found.keys() == expected.keys() == exact.keys()
    for name, value in exact.items():
        assert len(value) == 1 or (value[0] - value[1]).abs().max() > 1e-3, f"{name} does not depend on images"
        error = (expected[name] - value).abs().max().item()
        assert error < 1e-4 * max(1.0, value.abs().max().item())
        far = (found[name] - value).abs()
        worst = torch.unravel_index(far.argmax(), far.shape)
        said = f"{name}{[int(i) for i in worst]} is {found[name][worst]:.9g}, in float64 {value[worst]:.9g}"
        assert far[worst] <= TIMES * error + ROUNDING, f"{said}; error of float32 {error:.2g}"


@torch.no_grad()
def exact_outputs(net: Model, pixels: Tensor) -> dict[str, Tensor]:
    return outputs(copy.deepcopy(net).double(), pixels.double())


def test_every_family_of_the_catalog_is_here():
    demo = {type(CONFIGS["detr_demo"])}  # one size only; tests/models/test_detr.py
    assert {type(config) for config in FAMILIES.values()} == {type(config) for config in CONFIGS.values()} - demo


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_is_its_images(family):
    net, pixels = small_network(family), random_images(family, 8)
    together = outputs(net, pixels)
    alone = [outputs(net, image[None]) for image in pixels]
    joined = {name: torch.cat([one[name] for one in alone]) for name in together}
    assert_near(joined, together, exact_outputs(net, pixels))
    assert torch.equal(joined["logits"].argmax(-1), together["logits"].argmax(-1))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_is_its_images_in_float64(family):
    """To 1e-12, four digits above its rounding: no image has a part of another, however small."""
    net, pixels = small_network(family).double(), random_images(family, 3).double()
    together = outputs(net, pixels)
    for number, image in enumerate(pixels):
        for name, value in outputs(net, image[None]).items():
            torch.testing.assert_close(value[0], together[name][number], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_threads_change_nothing_but_rounding(family):
    """Of the widths here, two threads divide the sums of five families; the bits of the others are equal, also with
    images of 128 pixels. Gradients have longer sums: see tests/runs/test_same_numbers.py.
    """
    net, pixels, before = small_network(family), random_images(family, 2), torch.get_num_threads()
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            found.append(outputs(net, pixels))
        finally:
            torch.set_num_threads(before)
    assert_near(found[1], found[0], exact_outputs(net, pixels))


@pytest.mark.parametrize("family", DETECTORS)
def test_an_image_of_one_pixel_beside_a_large_one(family):
    """Nearly all of its cells are padding. Outputs and gradients are finite, its neighbour's are as before."""
    net = small_network(family)
    large, pixel = random_images(family, 1)[0], torch.ones(3, 1, 1)
    batch = ImageBatch.from_images([large, pixel])
    assert batch.padding_mask()[1].sum() == SIDE * SIDE - 1
    output = net(batch)
    parts = [part for part in (output.logits, output.boxes, output.masks) if part is not None]
    assert all(part.isfinite().all() for part in parts)
    sum(part.square().sum() for part in parts).backward()
    gradients = [p.grad for p in net.parameters() if p.grad is not None]
    assert gradients and all(gradient.isfinite().all() for gradient in gradients)
    torch.testing.assert_close(output.logits[0], net([large]).logits[0], rtol=1e-5, atol=1e-5)
