"""Tiles and mirror images: what the plain path finds in parts is found in the whole, once."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from refusals import refused
from regard.errors import ConfigError
from regard.models.configs.detr import DETRConfig
from regard.models.detr import DETR
from regard.prediction.predict import predict
from regard.prediction.tiles import View, ViewedBoxes, merge, views_of
from regard.structures.boxes import iou, xyxy_to_cxcywh
from regard.structures.categories import Category, ModelCard
from regard.structures.image_batch import IMAGENET_MEAN, IMAGENET_STD, ImageBatch
from regard.structures.outputs import DetectionOutput
from run_files import small_detector

QUERIES = 40
CONFIG = DETRConfig(
    num_classes=2, backbone="small", embed_dim=16, num_heads=2, encoder_layers=1, decoder_layers=1,
    feedforward_dim=16, num_queries=QUERIES,
)  # fmt: skip
LEAST = 5  # pixels of the model's input; smaller objects are not seen


class BlobFinder(DETR):
    """Finds red and green blobs of at least `LEAST` pixels a side in its input, as any detector that works."""

    def __init__(self, side: int = 64) -> None:
        super().__init__(CONFIG)
        self.card = ModelCard("blobs", (Category(1, "red"), Category(2, "green")), short_side=side, max_size=side)
        self.sizes: list[tuple[int, int]] = []

    def forward(
        self, images: ImageBatch | Sequence[Tensor], targets: Sequence[Mapping[str, Tensor]] | None = None
    ) -> DetectionOutput:
        assert isinstance(images, ImageBatch)
        mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
        logits = torch.full((len(images.pixels), QUERIES, 3), -20.0)
        logits[..., 2] = 0
        boxes = torch.full((len(images.pixels), QUERIES, 4), 0.5)
        for row, (pixels, (height, width)) in enumerate(zip(images.pixels, images.sizes, strict=True)):
            self.sizes.append((height, width))
            image = (pixels[:, :height, :width] * std + mean).numpy()
            found = 0
            for label in (0, 1):
                blobs, _ = ndimage.label(image[label] > 0.5)
                for y, x in ndimage.find_objects(blobs):
                    if min(y.stop - y.start, x.stop - x.start) >= LEAST:
                        corners = torch.tensor([x.start / width, y.start / height, x.stop / width, y.stop / height])
                        boxes[row, found] = xyxy_to_cxcywh(corners)
                        logits[row, found, label] = 3 + 0.01 * (y.stop - y.start)
                        found += 1
        return DetectionOutput(logits, boxes)


def scene(objects: Sequence[tuple[int, int, int, int, int]], size: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) uint8: rectangles (x0, y0, x1, y1, class) on black."""
    image = np.zeros((*size, 3), np.uint8)
    for x0, y0, x1, y1, label in objects:
        image[y0:y1, x0:x1, label] = 255
    return image


def assert_found_once(result, objects, tolerance: float = 3.0) -> None:
    """Each object has one box, and each box its object."""
    assert len(result) == len(objects), (result.boxes, objects)
    for x0, y0, x1, y1, label in objects:
        near = (result.boxes - torch.tensor([x0, y0, x1, y1])).abs().amax(1) <= tolerance
        assert (near & (result.labels == label)).sum() == 1, (x0, y0, x1, y1, label)


def random_objects(seed: int, size: tuple[int, int], sides: tuple[int, int]) -> list[tuple[int, int, int, int, int]]:
    """Objects that do not touch each other."""
    rng = np.random.default_rng(seed)
    taken = np.zeros(size, bool)
    objects = []
    for _ in range(60):
        height, width = rng.integers(*sides, 2)
        y, x = rng.integers(0, size[0] - height), rng.integers(0, size[1] - width)
        if not taken[max(0, y - 6) : y + height + 6, max(0, x - 6) : x + width + 6].any():
            taken[y : y + height, x : x + width] = True
            objects.append((int(x), int(y), int(x + width), int(y + height), int(rng.integers(2))))
    return objects


def test_views():
    assert views_of((100, 100), None, 0.2, flip=False) == [View(0, 0, 100, 100)]
    assert views_of((64, 50), 64, 0.2, flip=True) == [View(0, 0, 50, 64), View(0, 0, 50, 64, True)]
    whole, *tiles = views_of((150, 333), 64, 0.25, flip=False)
    assert whole == View(0, 0, 333, 150)
    covered = np.zeros((150, 333), int)
    for tile in tiles:
        assert tile.size == (64, 64) and tile.left >= 0 and tile.top >= 0
        covered[tile.top : tile.bottom, tile.left : tile.right] += 1
    assert covered.min() == 1
    columns = sorted({tile.left for tile in tiles})
    assert all(right - left <= 48 for left, right in itertools.pairwise(columns))


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_small_objects_of_a_large_image(seed, flip):
    """Each object is found once, wherever the borders of tiles cut it. Without tiles nothing is large enough."""
    size = (260, 340)
    objects = random_objects(seed, size, (8, 13))
    assert len(objects) > 20
    image, net = scene(objects, size), BlobFinder()
    assert len(predict(net, image)) == 0
    result = predict(net, image, tile_size=64, tile_overlap=0.25, flip=flip, batch_size=3)
    assert_found_once(result, objects)


def test_a_composite_holds_what_its_parts_hold():
    size = (64, 64)
    parts = [[random_objects(10 * row + column, size, (8, 20)) for column in range(3)] for row in range(2)]
    net = BlobFinder()
    moved = []
    for row, line in enumerate(parts):
        for column, objects in enumerate(line):
            assert_found_once(predict(net, scene(objects, size)), objects)
            # two pixels of black around each part, so that objects of neighbours stay two
            dx, dy = column * 68 + 2, row * 68 + 2
            moved += [(x0 + dx, y0 + dy, x1 + dx, y1 + dy, label) for x0, y0, x1, y1, label in objects]
    image = scene(moved, (136, 204))
    assert_found_once(predict(net, image, tile_size=64, tile_overlap=0.4), moved)


@pytest.mark.parametrize("overlap", [0.0, 0.2, 0.5])
def test_an_object_longer_than_the_overlap_is_one_box(overlap):
    """The whole image is too coarse for it, and each tile sees a part: the parts are joined."""
    objects = [(20, 100, 330, 112, 0), (200, 20, 212, 90, 1), (150, 150, 350, 162, 1)]
    result = predict(BlobFinder(), scene(objects, (400, 400)), tile_size=64, tile_overlap=overlap)
    assert_found_once(result, objects)


def test_a_large_object_is_not_cut_to_pieces():
    objects = [(30, 40, 300, 280, 0), (320, 300, 330, 310, 1)]
    result = predict(BlobFinder(), scene(objects, (340, 340)), tile_size=64, tile_overlap=0.2)
    assert_found_once(result, objects, tolerance=6)


def test_parts_of_objects_that_are_found_whole_are_not_joined():
    """Three objects in a row that overlap: the whole image shows each, tiles show parts that seem to go on."""
    views = [View(0, 0, 280, 100), View(0, 0, 100, 100), View(90, 0, 190, 100), View(180, 0, 280, 100)]
    whole = [(10, 20, 105, 60), (85, 20, 195, 60), (175, 20, 270, 60)]
    parts = [(10, 20, 100, 60), (90, 20, 190, 60), (180, 20, 270, 60)]
    found = ViewedBoxes(
        torch.tensor([*whole, *parts], dtype=torch.float32), torch.tensor([0.5] * 3 + [0.9] * 3),
        torch.zeros(6, dtype=torch.int64), torch.tensor([0, 0, 0, 1, 2, 3]),
    )  # fmt: skip
    assert sorted(map(tuple, merge(found, views, (100, 280)).boxes.int().tolist())) == whole


def test_boxes_of_one_view_never_drop_each_other():
    boxes = torch.tensor([[10.0, 10, 50, 50], [12, 11, 52, 50]])
    views = [View(0, 0, 100, 100), View(0, 0, 100, 100, True)]
    one = ViewedBoxes(boxes, torch.tensor([0.9, 0.8]), torch.zeros(2, dtype=torch.int64), torch.tensor([0, 0]))
    assert len(merge(one, views, (100, 100)).scores) == 2
    both = one._replace(view=torch.tensor([0, 1]))
    assert merge(both, views, (100, 100)).scores.tolist() == pytest.approx([0.9])
    classes = both._replace(labels=torch.tensor([0, 1]))
    assert len(merge(classes, views, (100, 100)).scores) == 2
    assert len(merge(one.where(torch.zeros(2, dtype=torch.bool)), views, (100, 100)).scores) == 0


def test_the_mirror_image_has_mirrored_boxes():
    """A network's boxes of the mirror image, mirrored back, are among the merged ones."""
    net = small_detector()
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    plain, mirrored = (predict(net, picture, threshold=0) for picture in (image, image[:, ::-1].copy()))
    back = mirrored.boxes.clone()
    back[:, [0, 2]] = 60 - mirrored.boxes[:, [2, 0]]
    merged = predict(net, image, threshold=0, flip=True)
    best = max(plain.scores[0], mirrored.scores[0])
    assert merged.scores[0] == pytest.approx(float(best), abs=1e-6)
    every = torch.cat((plain.boxes, back))
    assert (iou(merged.boxes[:, None], every[None]).amax(1) > 0.99).all()


def test_what_cannot_be_cut_into_tiles():
    for options in ({"tile_size": 4}, {"tile_size": 64, "tile_overlap": 0.95}, {"tile_size": 64, "tile_overlap": -1}):
        with refused(ConfigError, *[f"{list(options)[-1]}="], code="C03"):
            predict(BlobFinder(), scene([], (80, 80)), **options)
    from regard.models.build import create

    for options in ({"tile_size": 64}, {"flip": True}, {"multi_label": True}):
        with refused(ConfigError, next(iter(options)), code="C09"):
            predict(create("aa_resnet20"), scene([], (80, 80)), **options)
    with refused(ConfigError, "multi_label", "blobs", code="C09"):
        predict(BlobFinder(), scene([], (80, 80)), multi_label=True)


def test_nothing_in_any_tile_tells_the_best():
    net = BlobFinder()
    result = predict(net, scene([(10, 10, 30, 30, 0)], (200, 200)), tile_size=64, threshold=0.99)
    assert result.summary().startswith("nothing above 0.99; best score 0.9") and result.summary().endswith("red")
