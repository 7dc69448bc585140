"""Batches of images: where the padding is, and that normalising a batch equals normalising its images."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.transforms import functional as F

from regard.structures.image_batch import IMAGENET_MEAN, IMAGENET_STD, ImageBatch

SIZES = [(5, 7), (6, 3), (1, 1)]


def images(sizes: list[tuple[int, int]] = SIZES, seed: int = 0) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 256, (3, h, w), generator=g, dtype=torch.uint8) for h, w in sizes]


def test_images_lie_at_the_top_left() -> None:
    singles = images()
    batch = ImageBatch.from_images(singles)
    assert batch.pixels.shape == (3, 3, 6, 7)
    assert batch.pixels.dtype == torch.uint8
    assert batch.sizes == tuple(SIZES) and len(batch) == 3
    for place, image, (h, w) in zip(batch.pixels, singles, SIZES, strict=True):
        assert torch.equal(place[:, :h, :w], image)
        assert place.sum() == image.sum()  # nothing anywhere else


def test_padding_mask_cell_by_cell() -> None:
    batch = ImageBatch.from_images(images())
    mask = batch.padding_mask()
    assert mask is not None and mask.dtype == torch.bool and mask.shape == (3, 6, 7)
    for i, (h, w) in enumerate(SIZES):
        for y in range(6):
            for x in range(7):
                assert mask[i, y, x].item() == (y >= h or x >= w)


def test_images_of_one_size_have_no_mask() -> None:
    batch = ImageBatch.from_images(images([(4, 6), (4, 6)]))
    assert not batch.is_padded
    assert batch.padding_mask() is None
    assert ImageBatch.from_images(images([(4, 6), (3, 6)])).is_padded


@pytest.mark.parametrize("sizes", [SIZES, [(4, 6), (4, 6)]])
def test_normalising_the_batch_is_normalising_each_image(sizes: list[tuple[int, int]]) -> None:
    singles = images(sizes)
    batch = ImageBatch.from_images(singles).normalized()
    assert batch.pixels.dtype == torch.float32
    height, width = batch.pixels.shape[-2:]
    for place, image, (h, w) in zip(batch.pixels, singles, sizes, strict=True):
        alone = F.normalize(image / 255, list(IMAGENET_MEAN), list(IMAGENET_STD))
        expected = F.pad(alone, [0, 0, width - w, height - h])
        torch.testing.assert_close(place, expected, atol=1e-5, rtol=0)
        assert (place[:, h:] == 0).all() and (place[:, :, w:] == 0).all()


def test_normalised_floats_stay_as_they_are() -> None:
    batch = ImageBatch.from_images([torch.randn(3, 4, 5), torch.randn(3, 5, 4)])
    assert batch.normalized() is batch


def test_memory_order_of_decoders_is_kept() -> None:
    planes = images()
    interleaved = [image.permute(1, 2, 0).contiguous().permute(2, 0, 1) for image in planes]
    batch = ImageBatch.from_images(interleaved)
    assert batch.pixels.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(batch.pixels, ImageBatch.from_images(planes).pixels)


def test_the_batch_does_not_share_memory_with_its_images() -> None:
    singles = images()
    batch = ImageBatch.from_images(singles)
    before = batch.pixels.clone()
    for image in singles:
        image.zero_()
    assert torch.equal(batch.pixels, before)


def test_to_keeps_the_sizes() -> None:
    moved = ImageBatch.from_images(images()).to("meta")
    assert moved.pixels.device.type == "meta" and moved.sizes == tuple(SIZES)
