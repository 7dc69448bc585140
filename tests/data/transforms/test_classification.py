"""Crops, erasing and evaluation against Pillow, torchvision and timm, and the distribution of what is drawn."""

from __future__ import annotations

import pickle
import random

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torchvision import transforms as tv
from torchvision.transforms.v2 import functional as F

from class_data import photo
from regard.data.samples import ClassSample
from regard.data.transforms.classification import (
    Evaluation,
    PaddedCrop,
    RandomErasing,
    RandomResizedCrop,
    ThreeAugment,
    cifar_training,
    imagenet_training,
)
from regard.data.transforms.image import ColorJitter, RandomFlip
from regard.data.transforms.randaugment import RandAugment
from regard.errors import ConfigError
from regard.structures.image_batch import IMAGENET_MEAN, IMAGENET_STD

FULL = {"magnitude": 9.0, "erasing": 1.0, "color_jitter": 0.4}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pillow(image: torch.Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def distance(ours: torch.Tensor, theirs: Image.Image) -> int:
    return int((ours.int() - torch.from_numpy(np.array(theirs)).permute(2, 0, 1).int()).abs().max())


# ---- evaluation


@pytest.mark.parametrize(("height", "width"), [(50, 81), (81, 50), (37, 37), (20, 300), (224, 225)])
@pytest.mark.parametrize(("size", "ratio"), [(32, 0.875), (48, 1.0), (24, 0.9), (37, 0.95)])
def test_evaluation_equals_torchvision_on_pillow(height, width, size, ratio):
    image = photo(height, width)
    interpolation = tv.InterpolationMode.BICUBIC
    peer = tv.Compose([tv.Resize(int(size / ratio), interpolation), tv.CenterCrop(size)])
    ours = Evaluation(size, ratio)(ClassSample(image, 3, "x"))
    assert (ours.label, ours.path, tuple(ours.image.shape)) == (3, "x", (3, size, size))
    assert distance(ours.image, peer(pillow(image))) <= 1


def test_known_sizes_of_evaluation():
    """224 of 256 and 384 of 438: a mark just outside the crop is not seen, one just inside is."""
    for size, whole in ((224, 256), (384, 438)):
        border = (whole - size) // 2
        image = torch.zeros(3, whole, whole, dtype=torch.uint8)
        image[:, border - 1] = 255
        image[:, border, :] = 9
        seen = Evaluation(size)(ClassSample(image, 0)).image
        assert seen[0, 0].eq(9).all()
        assert not seen[0, 1:].any()


def test_evaluation_of_small_images_is_the_whole_image():
    image = photo(32, 32)
    assert torch.equal(Evaluation(32, None)(ClassSample(image, 0)).image, image)
    other = photo(20, 48)
    ours = Evaluation(32, None)(ClassSample(other, 0)).image
    assert distance(ours, pillow(other).resize((32, 32), Image.Resampling.BICUBIC)) <= 1


# ---- training


@pytest.mark.parametrize("pipeline", [imagenet_training(32, **FULL), cifar_training(32, **FULL), cifar_training(32)])
@pytest.mark.parametrize("shape", [(32, 32), (50, 81), (9, 200), (1, 1)])
def test_a_sample_depends_on_its_generator_alone(pipeline, shape):
    sample = ClassSample(photo(*shape), 4, "x")
    again = pickle.loads(pickle.dumps(pipeline))
    assert again == pipeline
    kinds = set()
    for seed in range(12):
        torch.manual_seed(seed)
        one = pipeline(sample, seeded(seed))
        torch.manual_seed(99)
        assert torch.equal(again(sample, seeded(seed)).image, one.image)
        assert (one.label, one.path, one.image.dtype, tuple(one.image.shape)) == (4, "x", torch.uint8, (3, 32, 32))
        kinds.add(one.image.numpy().tobytes())
    assert len(kinds) > 4
    assert torch.equal(sample.image, photo(*shape))


def test_presets():
    assert [type(step) for step in imagenet_training().steps] == [
        RandomResizedCrop, RandomFlip, RandAugment, RandomErasing,
    ]  # fmt: skip
    assert imagenet_training(magnitude=5.0).steps[2] == RandAugment(5.0)
    assert imagenet_training().steps[3] == RandomErasing(0.25)
    plain = imagenet_training(magnitude=0, erasing=0, color_jitter=0.4).steps
    assert plain == (RandomResizedCrop(224), RandomFlip(), ColorJitter(0.4))
    assert len(cifar_training().steps) == 3


def test_random_resized_crop_is_distributed_as_torchvisions():
    ours, peer = RandomResizedCrop(32), tv.RandomResizedCrop(32)
    generator, image = seeded(), torch.empty(3, 60, 100)
    torch.manual_seed(1)
    mine = np.array([ours.draw(60, 100, generator) for _ in range(3000)], dtype=float)
    theirs = np.array([peer.get_params(image, peer.scale, peer.ratio) for _ in range(3000)], dtype=float)
    for quantile in (0.05, 0.25, 0.5, 0.75, 0.95):
        assert np.abs(np.quantile(mine, quantile, axis=0) - np.quantile(theirs, quantile, axis=0)).max() <= 3
    assert (mine[:, 0] + mine[:, 2]).max() <= 60
    assert (mine[:, 1] + mine[:, 3]).max() <= 100
    assert np.corrcoef(mine[:, 2], mine[:, 3])[0, 1] == pytest.approx(
        np.corrcoef(theirs[:, 2], theirs[:, 3])[0, 1], abs=0.05
    )


@pytest.mark.parametrize("shape", [(10, 500), (500, 10), (1, 1), (1, 900)])
def test_random_resized_crop_of_odd_shapes(shape):
    peer = tv.RandomResizedCrop(32)
    whole = RandomResizedCrop(32).draw(*shape, seeded())
    expected = peer.get_params(torch.empty(3, *shape), (1.0, 1.0), peer.ratio)
    assert whole == pytest.approx(tuple(expected), abs=1)


def test_random_resized_crop_takes_the_pixels_it_drew():
    image = photo(60, 100)
    top, left, height, width = RandomResizedCrop(32).draw(60, 100, seeded(3))
    part = pillow(image).resize((32, 32), Image.Resampling.BICUBIC, (left, top, left + width, top + height))
    assert distance(RandomResizedCrop(32)(image, seeded(3)), part) <= 2


def test_padded_crop_takes_every_place():
    image = torch.arange(1, 193, dtype=torch.uint8).view(3, 8, 8)
    places = set()
    generator = seeded()
    for _ in range(1500):
        ours = PaddedCrop(8, 4)(image, generator)
        assert ours.shape == image.shape
        shown = ours[0] > 0
        rows, columns = shown.any(1).nonzero().flatten(), shown.any(0).nonzero().flatten()
        first = int(ours[0, rows[0], columns[0]]) - 1
        places.add((first // 8 - int(rows[0]), first % 8 - int(columns[0])))
        kept = ours[:, shown].int()
        assert torch.equal(kept[1:] - kept[:-1], torch.full_like(kept[1:], 64))  # the channels stay together
    assert places == {(y, x) for y in range(-4, 5) for x in range(-4, 5)}


def test_three_augment():
    """Each a third of the time: grey as torchvision's, inverted bright pixels, or Pillow's blur to a level or two."""
    image = torch.randint(0, 256, (3, 40, 50), dtype=torch.uint8, generator=seeded(0))
    smooth = F.gaussian_blur(image, [9, 9], [2.0, 2.0])
    found = {"grey": 0, "solarized": 0, "blurred": 0}
    for seed in range(300):
        ours = ThreeAugment()(smooth, seeded(seed))
        if torch.equal(ours, F.rgb_to_grayscale(smooth, 3)):
            found["grey"] += 1
        elif torch.equal(ours, torch.where(smooth >= 128, 255 - smooth, smooth)):
            found["solarized"] += 1
        else:
            found["blurred"] += 1
            generator = seeded(seed)
            torch.randint(3, (), generator=generator)
            radius = 0.1 + 1.9 * torch.rand((), generator=generator).item()
            blurred = pillow(smooth).filter(ImageFilter.GaussianBlur(radius)).crop((8, 8, 42, 32))
            assert distance(ours[:, 8:-8, 8:-8], blurred) <= 3
    assert min(found.values()) > 75
    assert ThreeAugment()(image[:, :2, :3], seeded(3)).shape == (3, 2, 3)


def test_erasing_is_distributed_as_timms():
    timm = pytest.importorskip("timm.data.random_erasing")
    peer = timm.RandomErasing(1.0, mode="pixel", device="cpu")
    random.seed(0)
    torch.manual_seed(0)
    generator = seeded()
    sizes: list[list[tuple[int, int]]] = [[], []]
    for _ in range(600):
        blank = torch.full((3, 32, 48), 7, dtype=torch.uint8)
        ours = (RandomErasing(1.0)(blank, generator) != 7).any(0)
        theirs = (peer(torch.zeros(3, 32, 48)) != 0).any(0)
        assert not (blank != 7).any()
        for found, erased in zip(sizes, (ours, theirs), strict=True):
            found.append((int(erased.any(1).sum()), int(erased.any(0).sum())))
    mine, other = (np.array(found) for found in sizes)
    for quantile in (0.1, 0.5, 0.9):
        assert np.abs(np.quantile(mine, quantile, axis=0) - np.quantile(other, quantile, axis=0)).max() <= 2
    areas = mine.prod(1) / (32 * 48)
    assert areas.min() > 0.01
    assert areas.max() < 0.35


def test_erased_pixels_are_noise_of_unit_variance_once_normalised():
    grey = torch.zeros(3, 64, 64, dtype=torch.uint8)
    values = torch.cat([_erased(grey, seed) for seed in range(40)], dim=1)
    mean, std = (torch.tensor(numbers)[:, None] for numbers in (IMAGENET_MEAN, IMAGENET_STD))
    normalised = (values / 255 - mean) / std
    # Of a normal distribution cut off at black and white, at -2.1 and 2.2 for red.
    torch.testing.assert_close(normalised.mean(1), torch.zeros(3), atol=0.05, rtol=0)
    assert ((normalised.std(1) > 0.9) & (normalised.std(1) < 1.02)).all()
    assert not torch.equal(values[0], values[1])


def _erased(image: torch.Tensor, seed: int) -> torch.Tensor:
    after = RandomErasing(1.0)(image, seeded(seed))
    where = (after != image).any(0)
    return after[:, where].float()


def test_erasing_happens_as_often_as_asked():
    image, generator = photo(16, 16), seeded()
    erased = [RandomErasing(0.25)(image, generator) is not image for _ in range(2000)]
    assert sum(erased) == pytest.approx(500, abs=70)


def test_resizing_keeps_the_order_of_channels():
    sample = ClassSample(photo(64, 64), 0)
    assert imagenet_training(32, magnitude=0, erasing=0)(sample, seeded()).image.stride(0) == 1


@pytest.mark.parametrize(
    "make",
    [
        lambda: imagenet_training(0),
        lambda: imagenet_training(32, magnitude=12.0),
        lambda: imagenet_training(32, erasing=1.5),
        lambda: cifar_training(-1),
        lambda: cifar_training(32, color_jitter=float("nan")),
        lambda: Evaluation(0),
        lambda: Evaluation(32, 1.5),
        lambda: Evaluation(32, 0.0),
    ],
)
def test_wrong_settings(make):
    with pytest.raises(ConfigError) as caught:
        make()
    assert caught.value.code == "C03"


@pytest.mark.parametrize("shape", [(1, 20000), (20000, 1), (2, 3000)])
def test_very_long_images_are_cut_before_they_are_enlarged(shape):
    """Else a line of one pixel becomes a map of gigabytes."""
    image = torch.zeros(3, *shape, dtype=torch.uint8)
    middle = tuple(
        slice(side // 2 - 8 * min(shape), side // 2 + 8 * min(shape)) if side > 99 else slice(None) for side in shape
    )
    image[:, middle[0], middle[1]] = 200
    found = Evaluation(64)(ClassSample(image, 0)).image
    assert found.shape == (3, 64, 64) and (found == 200).all()
