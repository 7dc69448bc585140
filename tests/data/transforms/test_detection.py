"""Transforms against a second implementation with Pillow, the authors' sizes, and what no step may change."""

import json
import math
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from regard.data.samples import Sample
from regard.data.transforms.detection import (
    EvaluationResize,
    Pipeline,
    RandomChoice,
    RandomResize,
    RandomSizeCrop,
    ScaleJitter,
    crop,
    paper_augmentation,
    resize,
    resized_size,
    small_augmentation,
)
from regard.data.transforms.image import RandomFlip, flip
from regard.errors import ConfigError
from regard.structures.image_batch import IMAGENET_MEAN

GOLDEN = json.loads((Path(__file__).parents[2] / "golden/eval_resize.json").read_text())


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def photo(height: int, width: int, seed: int = 0) -> Tensor:
    """Smooth colours with some grain, channels last: (3, H, W)."""
    rng = np.random.default_rng(seed)
    coarse = PIL.Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), PIL.Image.Resampling.BICUBIC)).astype(int)
    grain = rng.integers(-12, 13, smooth.shape)
    return torch.from_numpy((smooth + grain).clip(0, 255).astype(np.uint8)).permute(2, 0, 1)


def sample_of(height: int, width: int, seed: int = 0, objects: int = 6) -> Sample:
    """A photo with random boxes whose masks fill them."""
    generator = seeded(seed)
    x = torch.randint(0, width + 1, (objects, 2), generator=generator).sort(1).values
    y = torch.randint(0, height + 1, (objects, 2), generator=generator).sort(1).values
    x[:, 1], y[:, 1] = x[:, 1].clamp(min=1), y[:, 1].clamp(min=1)
    x[:, 0], y[:, 0] = torch.minimum(x[:, 0], x[:, 1] - 1), torch.minimum(y[:, 0], y[:, 1] - 1)
    boxes = torch.stack((x[:, 0], y[:, 0], x[:, 1], y[:, 1]), dim=1)
    masks = torch.zeros(objects, height, width, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.tolist(), strict=True):
        mask[y0:y1, x0:x1] = True
    return Sample(photo(height, width, seed), boxes.float(), torch.arange(objects), masks)


def box_of(mask: Tensor) -> list[int]:
    """xyxy of the true pixels of (H, W)."""
    rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
    return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]


# --- a second implementation, on Pillow images and lists of boxes, that makes the same draws ---


class PillowAugmentation:
    def __init__(self, image: PIL.Image.Image, boxes: list[list[float]], generator: torch.Generator) -> None:
        self.image, self.boxes, self.kept, self.generator = image, boxes, list(range(len(boxes))), generator

    def run(self, unit: float, max_size: int) -> None:
        """`unit` is the short side over 800."""
        scales = [round((480 + 32 * i) * unit) for i in range(11)]
        if self.heads():
            self.flip()
        if self.heads():
            self.scale(scales, max_size)
        else:
            self.scale([round(side * unit) for side in (400, 500, 600)], math.inf)
            self.crop(round(384 * unit), round(600 * unit))
            self.scale(scales, max_size)

    def heads(self) -> bool:
        return float(torch.rand((), generator=self.generator)) < 0.5

    def draw(self, low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=self.generator))

    def flip(self) -> None:
        width = self.image.width
        self.image = self.image.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT)
        self.boxes = [[width - x1, y0, width - x0, y1] for x0, y0, x1, y1 in self.boxes]

    def scale(self, sides: list[int], limit: float) -> None:
        side = sides[self.draw(0, len(sides) - 1)]
        width, height = self.image.size
        short, long = min(width, height), max(width, height)
        if side * long / short > limit:
            side = round(limit * short / long)
        size = (side, int(side * height / width)) if width < height else (int(side * width / height), side)
        self.image = self.image.resize(size, PIL.Image.Resampling.BILINEAR)
        across, down = size[0] / width, size[1] / height
        self.boxes = [[x0 * across, y0 * down, x1 * across, y1 * down] for x0, y0, x1, y1 in self.boxes]

    def crop(self, low: int, high: int) -> None:
        width, height = self.image.size
        new_width = self.draw(min(low, width), min(high, width))
        new_height = self.draw(min(low, height), min(high, height))
        top, left = self.draw(0, height - new_height), self.draw(0, width - new_width)
        self.image = self.image.crop((left, top, left + new_width, top + new_height))
        pairs = []
        for index, (x0, y0, x1, y1) in zip(self.kept, self.boxes, strict=True):
            x0, x1 = (min(max(x - left, 0), new_width) for x in (x0, x1))
            y0, y1 = (min(max(y - top, 0), new_height) for y in (y0, y1))
            if x1 > x0 and y1 > y0:
                pairs.append((index, [x0, y0, x1, y1]))
        self.kept, self.boxes = [i for i, _ in pairs], [box for _, box in pairs]


@pytest.mark.parametrize(("short_side", "max_size"), [(800, 1333), (256, 400)])
@pytest.mark.parametrize("seed", range(12))
def test_paper_augmentation_equals_pillow(seed: int, short_side: int, max_size: int) -> None:
    height, width = random.Random(seed).choice([(480, 640), (640, 427), (375, 500), (200, 640), (640, 640)])
    sample = replace(sample_of(height, width, seed), masks=None)
    image = PIL.Image.fromarray(sample.image.permute(1, 2, 0).numpy())
    expected = PillowAugmentation(image, sample.boxes.tolist(), seeded(seed))
    expected.run(short_side / 800, max_size)
    result = paper_augmentation(short_side, max_size)(sample, seeded(seed))
    assert result.size == (expected.image.height, expected.image.width)
    assert result.labels.tolist() == expected.kept
    # Pillow's boxes are double precision here; 3e-7 is two roundings of a float32.
    torch.testing.assert_close(result.boxes, torch.tensor(expected.boxes).reshape(-1, 4), rtol=3e-7, atol=1e-4)
    difference = np.asarray(expected.image).astype(int) - result.image.permute(1, 2, 0).numpy()
    assert np.abs(difference).mean() < 0.1
    assert np.abs(difference).max() <= 2  # two resizes, one level each


def test_these_seeds_crop_objects_away() -> None:
    """The test above proves less if its seeds keep all objects."""
    removed = sum(len(paper_augmentation()(sample_of(480, 640, seed), seeded(seed)).boxes) < 6 for seed in range(12))
    assert removed >= 2


@pytest.mark.parametrize(("before", "after"), GOLDEN["width_height_before_after"])
def test_evaluation_size_is_the_authors(before: list[int], after: list[int]) -> None:
    width, height = before
    assert resized_size(height, width, GOLDEN["short_side"], GOLDEN["max_size"]) == (after[1], after[0])


@given(st.integers(1, 40000), st.integers(1, 40000), st.integers(1, 1000), st.integers(1, 1500))
def test_no_side_becomes_zero_and_sides_swap(height: int, width: int, short_side: int, max_size: int) -> None:
    size = resized_size(height, width, short_side, max_size)
    assert min(size) >= 1
    assert resized_size(width, height, short_side, max_size) == size[::-1]


@pytest.mark.parametrize(("height", "width"), [(10, 30000), (30000, 10), (1, 1), (1, 500)])
def test_extreme_images_pass_every_pipeline(height: int, width: int) -> None:
    sample = Sample(photo(height, width), torch.tensor([[0.0, 0.0, width, height]]), torch.tensor([3]))
    # Beyond 1333 only by the authors' rounding of the short side: 1 x 500 becomes 3 x 1500.
    assert max(EvaluationResize()(sample).size) <= 1500
    for seed in range(6):
        for transform in (paper_augmentation(), small_augmentation(64)):
            result = transform(sample, seeded(seed))
            assert min(result.size) >= 1
            assert max(result.size) <= 2 * 1333
            assert len(result.boxes) == len(result.labels)


def test_layout_and_pixels_are_kept_where_nothing_changes() -> None:
    sample = sample_of(48, 64)
    assert resize(sample, (48, 64)) is sample
    assert crop(sample, 0, 0, 48, 64) is sample
    for transform in (paper_augmentation(80, 133), small_augmentation(40), EvaluationResize(60, 100)):
        for seed in range(30):
            assert transform(sample, seeded(seed)).image.permute(1, 2, 0).is_contiguous()


def test_masks_are_resized_like_the_authors() -> None:
    masks = torch.rand(3, 37, 53, generator=seeded(0)) > 0.5
    sample = Sample(photo(37, 53), torch.rand(3, 4), torch.arange(3), masks)
    for size in ((80, 100), (20, 31), (37, 60)):
        expected = torch.nn.functional.interpolate(masks[:, None].float(), size, mode="nearest")[:, 0] > 0.5
        assert torch.equal(resize(sample, size).masks, expected)


def test_flip_twice_is_identity_and_flip_moves_the_right_pixels() -> None:
    sample = sample_of(30, 41)
    once, twice = flip(sample), flip(flip(sample))
    assert torch.equal(once.image[..., 0], sample.image[..., -1])
    assert torch.equal(twice.image, sample.image)
    assert torch.equal(twice.boxes, sample.boxes)
    assert torch.equal(twice.masks, sample.masks)
    assert [box_of(mask) for mask in once.masks] == once.boxes.tolist()


def test_crop_removes_objects_with_labels_and_masks_together() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30], [5, 5, 25, 25], [0, 0, 50, 8], [10, 10, 10, 30]])
    masks = torch.stack([torch.full((40, 50), i % 2 == 0) for i in range(5)])
    result = crop(Sample(photo(40, 50), boxes, torch.arange(5), masks), top=8, left=10, height=20, width=15)
    assert result.labels.tolist() == [1, 2]  # the others lie outside, touch the edge only, or have no width
    assert result.boxes.tolist() == [[10, 12, 15, 20], [0, 0, 15, 17]]
    assert torch.equal(result.masks, masks[1:3, 8:28, 10:25])
    nothing = crop(result, 0, 0, 1, 1)
    assert crop(nothing, 0, 0, 1, 1) is nothing
    nothing = crop(replace(result, boxes=result.boxes[:1], labels=result.labels[:1], masks=masks[:1]), 0, 0, 2, 2)
    assert (nothing.boxes.shape, nothing.labels.shape, nothing.masks.shape) == ((0, 4), (0,), (0, 2, 2))
    assert resize(nothing, (5, 7)).masks.shape == (0, 5, 7)


@pytest.mark.parametrize("name", ["paper", "small", "evaluation"])
def test_boxes_and_masks_follow_the_pixels(name: str) -> None:
    """A white rectangle on black stays inside its box, and its box around it."""
    transform = {
        "paper": paper_augmentation(),
        "small": Pipeline((RandomFlip(), ScaleJitter(200, 0.7, 1.3))),
        "evaluation": EvaluationResize(600, 900),
    }[name]
    seen = 0
    for seed in range(12):
        draw = random.Random(seed)
        x0, y0 = draw.randrange(0, 500), draw.randrange(0, 350)
        x1, y1 = draw.randrange(x0 + 40, 641), draw.randrange(y0 + 40, 481)
        masks = torch.zeros(1, 480, 640, dtype=torch.bool)
        masks[0, y0:y1, x0:x1] = True
        image = (masks[0] * 255).to(torch.uint8).expand(3, -1, -1)
        sample = Sample(image, torch.tensor([[x0, y0, x1, y1]]).float(), torch.tensor([5]), masks)
        result = transform(sample, seeded(seed))
        if not len(result.boxes):
            continue
        box = result.boxes[0]
        if min(box[2] - box[0], box[3] - box[1]) < 8:
            continue
        seen += 1
        assert (box - torch.tensor(box_of(result.image[0] > 127))).abs().max() <= 1.5
        # The nearest rule moves an edge by less than a pixel each time; enlarging magnifies the first move.
        assert (box - torch.tensor(box_of(result.masks[0]))).abs().max() <= (3.1 if name == "paper" else 1)
        assert result.labels.tolist() == [5]
    assert seen >= 8


@pytest.mark.parametrize("size", [(96, 130), (33, 200), (30, 41), (7, 5)])
def test_there_and_back(size: tuple[int, int]) -> None:
    """Resized and flipped, then back: boxes to a thousandth of a pixel (0.5 would do), masks to the pixels of a step.

    A mask takes the nearest pixel each time, so that an edge moves by less than the larger of both pixels.
    """
    sample = sample_of(30, 41)
    back = flip(resize(flip(resize(sample, size)), (30, 41)))
    torch.testing.assert_close(back.boxes, sample.boxes, rtol=0, atol=1e-3)
    assert back.labels.tolist() == sample.labels.tolist() and back.image.shape == sample.image.shape
    coarse = max(1.0, 30 / size[0], 41 / size[1])
    for mask, box in zip(back.masks, sample.boxes.tolist(), strict=True):
        if mask.any():
            assert max(abs(a - b) for a, b in zip(box_of(mask), box, strict=True)) <= coarse
        else:  # thinner than a pixel of the smaller image
            assert min(box[2] - box[0], box[3] - box[1]) < coarse


def test_scales_are_drawn_uniformly_and_crops_from_the_whole_range() -> None:
    sample = Sample(torch.zeros(3, 6, 6, dtype=torch.uint8))
    generator = seeded(0)
    step = RandomResize(tuple(range(5, 16)), 1333)
    counts = Counter(step(sample, generator).size[0] for _ in range(3300))
    assert sorted(counts) == list(range(5, 16))
    chi_square = sum((count - 300) ** 2 / 300 for count in counts.values())
    assert chi_square < 29.6  # the 0.1 % point at 10 degrees of freedom
    wide = Sample(torch.zeros(3, 20, 9, dtype=torch.uint8))
    sizes = [RandomSizeCrop(8, 12)(wide, generator).size for _ in range(500)]
    assert {height for height, _ in sizes} == {8, 9, 10, 11, 12}
    assert {width for _, width in sizes} == {8, 9}
    assert len(set(sizes)) == 10  # the two sides are drawn separately


def test_crop_shorter_than_its_lower_bound_keeps_the_side() -> None:
    result = RandomSizeCrop(384, 600)(Sample(torch.zeros(3, 100, 700, dtype=torch.uint8)), seeded(0))
    assert result.size[0] == 100
    assert 384 <= result.size[1] <= 600


def test_flip_and_choice_happen_half_of_the_time() -> None:
    generator = seeded(0)
    sample = Sample(torch.tensor([[[0, 1]]], dtype=torch.uint8).expand(3, 1, 2))
    flips = sum(int(RandomFlip()(sample, generator).image[0, 0, 0]) for _ in range(1000))
    assert 440 < flips < 560
    choice = RandomChoice(RandomResize((3,), 99), RandomResize((5,), 99))
    firsts = sum(choice(sample, generator).size[0] == 3 for _ in range(1000))
    assert 440 < firsts < 560


def test_paper_numbers() -> None:
    scales = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
    _, choice = paper_augmentation().steps
    assert choice.first == RandomResize(scales, 1333)
    to_crop, cut, to_scale = choice.second.steps
    assert to_crop.short_sides == (400, 500, 600)
    assert cut == RandomSizeCrop(384, 600)
    assert to_scale == choice.first
    _, choice = paper_augmentation(400, 666).steps
    assert choice.first == RandomResize(tuple(side // 2 for side in scales), 666)
    assert choice.second.steps[0].short_sides == (200, 250, 300)
    assert choice.second.steps[1] == RandomSizeCrop(192, 300)


@pytest.mark.parametrize("transform", [paper_augmentation(200, 300), small_augmentation(64)], ids=["paper", "small"])
def test_a_sample_depends_on_its_generator_alone(transform: Pipeline) -> None:
    sample = sample_of(120, 160)
    image, boxes = sample.image.clone(), sample.boxes.clone()
    results = []
    for seed in (7, 8, 7):
        random.seed(len(results))
        torch.manual_seed(len(results))
        results.append(transform(sample, seeded(seed)))
    first, other, again = results
    assert first.size != other.size or not torch.equal(first.image, other.image)
    assert torch.equal(first.image, again.image)
    assert torch.equal(first.boxes, again.boxes)
    assert torch.equal(first.masks, again.masks)
    assert torch.equal(sample.image, image)  # a cached sample is safe
    assert torch.equal(sample.boxes, boxes)


def test_small_augmentation_gives_squares_with_a_mean_border() -> None:
    black = Sample(torch.zeros(3, 40, 80, dtype=torch.uint8))
    borders = 0
    for seed in range(20):
        image = ScaleJitter(64, 0.7, 1.3)(black, seeded(seed)).image
        assert image.shape == (3, 64, 64)
        bright = image.amax(0) > 0
        borders += bool(bright.any())
        expected = (torch.tensor(IMAGENET_MEAN) * 255).round().to(torch.uint8)
        assert (image[:, bright] == expected[:, None]).all()
    assert borders == 20  # 2:1 never fills a square below 2 times its size
    sizes = {small_augmentation(64)(sample_of(50, 70, seed), seeded(seed)).size for seed in range(10)}
    assert sizes == {(64, 64)}


@pytest.mark.parametrize(
    "make",
    [
        lambda: paper_augmentation(0),
        lambda: paper_augmentation(800, -1),
        lambda: EvaluationResize(max_size=0),
        lambda: small_augmentation(0),
    ],
)
def test_sizes_below_one_pixel_are_refused(make) -> None:
    with pytest.raises(ConfigError) as refused:
        make()
    assert refused.value.code == "C03"
