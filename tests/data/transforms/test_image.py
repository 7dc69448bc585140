"""Flip, colour jitter and resize of both tasks, against torchvision and Pillow, and how often they happen."""

from __future__ import annotations

import numpy as np
import PIL.Image
import pytest
import torch
from torchvision import transforms as tv
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from class_data import photo
from regard.data.samples import Sample
from regard.data.transforms.image import ColorJitter, ImagePipeline, RandomFlip, resize_image
from regard.errors import ConfigError


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pillow(image: torch.Tensor) -> PIL.Image.Image:
    return PIL.Image.fromarray(image.permute(1, 2, 0).numpy())


def distance(ours: torch.Tensor, theirs: PIL.Image.Image) -> int:
    return int((ours.int() - torch.from_numpy(np.array(theirs)).permute(2, 0, 1).int()).abs().max())


def test_flip_is_even_and_the_same_for_images_and_samples():
    image = photo(4, 6)
    generator, other = seeded(), seeded()
    flipped = 0
    for _ in range(1000):
        ours = RandomFlip()(image, generator)
        assert torch.equal(ours, RandomFlip()(Sample(image), other).image)
        mirrored = torch.equal(ours, image.flip(-1))
        assert mirrored != torch.equal(ours, image)
        flipped += mirrored
    assert flipped == pytest.approx(500, abs=60)


def test_color_jitter_is_torchvisions():
    image = photo(12, 16)
    for seed in range(6):
        ours = ColorJitter(0.4)(image, seeded(seed))
        generator = seeded(seed)
        order = torch.randperm(3, generator=generator).tolist()
        factors = [0.6 + 0.8 * torch.rand((), generator=generator).item() for _ in range(3)]
        picture = pillow(image)
        for chosen, factor in zip(order, factors, strict=True):
            name = ("adjust_brightness", "adjust_contrast", "adjust_saturation")[chosen]
            picture = getattr(tv.functional, name)(picture, factor)
        assert distance(ours, picture) <= 3  # Pillow cuts off where torch rounds


def test_color_jitter_without_saturation_is_brightness_then_contrast():
    sample = Sample(photo(12, 16), torch.rand(2, 4), torch.arange(2))
    for seed in range(20):
        result = ImagePipeline((ColorJitter(0.2, saturation=False),))(sample, seeded(seed))
        brightness, contrast = (1 + 0.2 * (2 * u - 1) for u in torch.rand(2, generator=seeded(seed)).tolist())
        expected = F.adjust_contrast(F.adjust_brightness(sample.image, brightness), contrast)
        assert torch.equal(result.image, expected)
        assert torch.equal(result.boxes, sample.boxes)


@pytest.mark.parametrize("strength", [-0.1, 1.5, float("nan")])
def test_wrong_strength(strength):
    with pytest.raises(ConfigError) as refused:
        ColorJitter(strength)
    assert refused.value.code == "C03"
    assert str(strength) in str(refused.value)


@pytest.mark.parametrize(("size", "new_size"), [((480, 640), (800, 1066)), ((640, 480), (213, 160)), ((9, 7), (9, 31))])
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("name", ["BILINEAR", "BICUBIC"])
def test_resize_equals_pillow(size, new_size, channels_last, name):
    image = photo(*size)
    expected = pillow(image).resize((new_size[1], new_size[0]), PIL.Image.Resampling[name])
    result = resize_image(image if channels_last else image.contiguous(), new_size, InterpolationMode[name])
    assert result.dtype == torch.uint8
    assert distance(result, expected) <= (1 if name == "BILINEAR" else 2)
    assert (result.stride(0) == 1) == channels_last
