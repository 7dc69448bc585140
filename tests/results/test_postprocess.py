"""Detections, segments and masks from raw outputs: against the authors' numbers, transformers and plain loops."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file

from refusals import refused
from regard.errors import ConfigError
from regard.results.postprocess import (
    ImageSizes,
    instance_masks,
    panoptic_segments,
    postprocess,
    score_queries,
    segment_method,
    segment_queries,
)
from regard.structures.categories import Category
from regard.structures.outputs import DetectionOutput

GOLDEN = Path(__file__).parents[1] / "golden"
CATEGORIES = (Category(1, "cat"), Category(2, "dog"), Category(3, "grass", False), Category(4, "sky", False))


def published(scores, labels, masks, size, original):
    """PostProcessPanoptic, step by step, for an image without padding: ids, labels."""
    masks = F.interpolate(masks[:, None], size, mode="bilinear")[:, 0].flatten(1)
    stuff = {}
    for k, label in enumerate(labels.tolist()):
        if not CATEGORIES[label].is_thing:
            stuff.setdefault(label, []).append(k)

    def assign(masks, merge):
        ids = masks.T.softmax(-1).argmax(-1).reshape(size) if len(masks) else torch.zeros(size, dtype=torch.long)
        if merge:
            for same in stuff.values():
                for k in same:
                    ids[ids == k] = same[0]
        picture = Image.fromarray(ids.numpy().astype(np.uint8))
        ids = np.asarray(picture.resize((original[1], original[0]), Image.Resampling.NEAREST))
        return ids, [(ids == k).sum() for k in range(len(masks))]

    ids, areas = assign(masks, merge=True)
    while any(area <= 4 for area in areas):
        kept = torch.tensor([bool(area > 4) for area in areas])
        scores, labels, masks = scores[kept], labels[kept], masks[kept]
        ids, areas = assign(masks, merge=False)
    return (ids + 1 if len(labels) else np.zeros(original, int)), labels


@pytest.mark.parametrize("seed", range(12))
def test_published_is_the_algorithm_of_the_authors(seed):
    """Blobs, of which some are tiny and many of the same stuff; other sizes up and down."""
    g = torch.Generator().manual_seed(seed)
    m = seed  # also none at all
    size, original = ((40, 56), (61, 83)) if seed % 2 else ((40, 56), (23, 31))
    labels = torch.randint(4, (m,), generator=g)
    scores = torch.rand(m, generator=g)
    masks = 3 * torch.randn(m, 10, 14, generator=g)
    masks[m // 2 :] -= 4  # lose nearly everywhere
    found = panoptic_segments(scores, labels, masks, ImageSizes(size, size, original), CATEGORIES)
    ids, expected = published(scores, labels, masks, size, original)
    assert np.array_equal(found.ids.numpy(), ids)
    assert torch.equal(found.labels, expected)
    assert (found.areas > 4).all()


def quadrants(*parts):
    """(M, 8, 8) logits: each is high in a part (rows, columns)."""
    masks = torch.full((len(parts), 8, 8), -5.0)
    for mask, (rows, columns) in zip(masks, parts, strict=True):
        mask[rows, columns] = 5
    return masks


LEFT, RIGHT, CORNER = np.s_[:, :4], np.s_[:, 4:], np.s_[:1, :2]


def test_stuff_is_merged_and_things_are_not():
    sizes = ImageSizes((32, 32), (32, 32), (32, 32))
    scores = torch.tensor([0.9, 0.95])
    for label, count in ((0, 2), (2, 1)):
        for method in ("published", "clean"):
            labels = torch.tensor([label, label])
            found = panoptic_segments(scores, labels, quadrants(LEFT, RIGHT), sizes, CATEGORIES, method)
            if count == 2 or method == "clean":
                assert len(found) == count
        assert found.scores[0] == scores[0]


def test_clean_keeps_stuff_in_one_piece_where_the_published_order_does_not():
    """Published: the merged half counts as empty, is left out, and its pixels go to the cat in front of it."""
    left, right = torch.tensor([0.0, 5.0, 3.0]), torch.tensor([5.0, 0.0, -3.0])  # grass, grass, cat
    masks = torch.stack((left, right), dim=1)[:, None].repeat_interleave(4, dim=2).repeat(1, 8, 1)
    masks[2, 6:] = 9  # the cat is there at all
    labels, scores = torch.tensor([2, 2, 0]), torch.ones(3)
    sizes = ImageSizes((32, 32), (32, 32), (16, 16))
    clean = panoptic_segments(scores, labels, masks, sizes, CATEGORIES, "clean")
    assert clean.names == ["grass", "cat"] and clean.areas[1] < 80
    found = panoptic_segments(scores, labels, masks, sizes, CATEGORIES)
    assert found.names == ["grass", "cat"] and found.areas[1] > 140


def test_clean_drops_small_segments():
    sizes = ImageSizes((8, 8), (8, 8), (8, 8))
    masks, labels = quadrants(CORNER, LEFT, RIGHT), torch.tensor([0, 2, 3])
    masks[0] += 1
    found = panoptic_segments(torch.ones(3), labels, masks, sizes, CATEGORIES, "clean")
    assert found.names == ["grass", "sky"] and found.areas.tolist() == [32, 32]


@pytest.mark.parametrize("method", ["published", "clean"])
def test_padding_is_cut_off_not_squeezed_in(method):
    """Alone and padded to the double width, an image has the same segments."""
    g = torch.Generator().manual_seed(0)
    masks, labels, scores = torch.randn(5, 8, 10, generator=g), torch.tensor([0, 1, 2, 3, 0]), torch.rand(5)
    alone = panoptic_segments(scores, labels, masks, ImageSizes((32, 40), (32, 40), (50, 70)), CATEGORIES, method)
    padded = torch.cat((masks, masks[:, :, -1:].expand(-1, -1, 10)), dim=2)
    cut = panoptic_segments(scores, labels, padded, ImageSizes((32, 80), (32, 40), (50, 70)), CATEGORIES, method)
    assert torch.equal(alone.ids, cut.ids) and torch.equal(alone.labels, cut.labels)
    both = instance_masks(masks, ImageSizes((32, 40), (32, 40), (50, 70)))
    assert torch.equal(both, instance_masks(padded, ImageSizes((32, 80), (32, 40), (50, 70))))


def plain_scored(scores, labels, masks):
    """The rule of `scored`, pixel by pixel: [(label, set of pixels)]."""
    probability, (count, height, width) = masks.sigmoid(), masks.shape
    pixels = [(y, x) for y in range(height) for x in range(width)]

    def best(pixel, among):
        among = [k for k in among if probability[k][pixel] > 0]
        return max(among, key=lambda k: (float(scores[k] * probability[k][pixel]), -k), default=None)

    around = {p: [k for k in range(count) if probability[k][p] > 0.5] for p in pixels}
    first = {p: best(p, around[p]) for p in pixels}
    kept = []
    for k in range(count):
        shown, area = sum(first[p] == k for p in pixels), sum(k in around[p] for p in pixels)
        if shown > 4 and shown >= area / 2:
            kept.append(k)
    stuff = [k for k in range(count) if not CATEGORIES[labels[k]].is_thing]
    segments = {}
    for p in pixels:
        k = best(p, [k for k in around[p] if k in kept])
        k = best(p, stuff) if k is None else k
        if k is not None:
            label = int(labels[k])
            segments.setdefault(k if CATEGORIES[label].is_thing else f"stuff {label}", (label, set()))[1].add(p)
    return sorted((label, sorted(found)) for label, found in segments.values())


@pytest.mark.parametrize("seed", range(6))
def test_scored_is_its_rule_pixel_by_pixel(seed):
    g = torch.Generator().manual_seed(seed)
    count = 0 if seed == 5 else 7
    coarse = torch.randn(count, 1, 4, 4, generator=g) * 4
    masks = F.interpolate(coarse, (12, 9), mode="bilinear")[:, 0]
    scores, labels = torch.rand(count, generator=g), torch.randint(0, 4, (count,), generator=g)
    sizes = ImageSizes((12, 9), (12, 9), (12, 9))
    found = panoptic_segments(scores, labels, masks, sizes, CATEGORIES, "scored")
    mine = []
    for number, label in enumerate(found.labels.tolist(), 1):
        mine.append((label, sorted(map(tuple, (found.ids == number).nonzero().tolist()))))
    assert sorted(mine) == plain_scored(scores, labels, masks)


def test_scored_drops_the_same_object_found_twice_and_fills_with_stuff():
    masks = torch.full((4, 10, 10), -5.0)
    masks[0, 2:6, 2:6] = 3  # a cat
    masks[1, 2:6, 2:7] = 3  # the same cat, less sure
    masks[2, 7:9, 7:9] = 3  # too small
    masks[3, 9, 0] = -1  # grass, nowhere above one half
    scores, labels = torch.tensor([0.6, 0.3, 0.9, 0.2]), torch.tensor([0, 0, 1, 2])
    sizes = ImageSizes((10, 10), (10, 10), (20, 20))
    found = panoptic_segments(scores, labels, masks, sizes, CATEGORIES, "scored")
    assert found.labels.tolist() == [0, 2] and found.scores.tolist() == pytest.approx([0.6, 0.2])
    assert torch.bincount(found.ids.flatten()).tolist() == [0, 64, 400 - 64]  # at the original size, no pixel is left
    assert segment_method("auto", softmax=True) == "published" and segment_method("auto", softmax=False) == "scored"


def test_instance_masks_are_those_of_the_authors():
    masks = torch.randn(3, 8, 10, generator=torch.Generator().manual_seed(1))
    large = F.interpolate(masks[:, None], (32, 48), mode="bilinear", align_corners=False).sigmoid() > 0.5
    expected = F.interpolate(large[:, :, :30, :40].float(), (61, 77), mode="nearest")[:, 0].bool()
    assert torch.equal(instance_masks(masks, ImageSizes((32, 48), (30, 40), (61, 77))), expected)
    assert instance_masks(masks[:0], ImageSizes((32, 48), (30, 40), (61, 77))).shape == (0, 61, 77)


@pytest.mark.parametrize("multi_label", [False, True])
def test_duplicates_of_a_class_are_dropped(multi_label):
    """The worse of two cats at an IoU of 0.8 goes; a dog at the same place and a cat elsewhere stay."""
    boxes = torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.5, 0.5, 0.4, 0.32], [0.5, 0.5, 0.4, 0.4], [0.2, 0.2, 0.1, 0.1]])
    logits = torch.tensor([[1.0, -9.0], [2.0, -9.0], [-9.0, 3.0], [0.0, -9.0]])
    both = DetectionOutput(torch.stack((logits, logits.flip(0))), torch.stack((boxes, boxes.flip(0))))
    found = score_queries(both._replace(duplicate_iou=0.7), softmax=False, multi_label=multi_label)
    assert sorted(found.query[found.image == 0].tolist()) == [1, 2, 3]
    assert sorted(found.query[found.image == 1].tolist()) == [0, 1, 2]
    for other in (0.85, 1.0):
        assert len(score_queries(both._replace(duplicate_iou=other), softmax=False).query) == 8
    sizes = [(100, 200), (50, 50)]
    assert [len(part[0]) for part in postprocess(both._replace(duplicate_iou=0.7), sizes, softmax=False)] == [3, 3]


def test_queries_above_the_threshold_are_chosen():
    logits = torch.full((2, 3, 3), -9.0)
    logits[0, 0, 1], logits[0, 1, 2], logits[1, 2, 0], logits[1, 0, 0] = 9, 9, 9, -8
    chosen = segment_queries(DetectionOutput(logits, torch.zeros(2, 3, 4)), softmax=True, threshold=0.85)
    assert list(zip(chosen.image.tolist(), chosen.query.tolist(), chosen.labels.tolist(), strict=True)) == [
        (0, 0, 1),
        (1, 2, 0),
    ]
    rows = chosen.rows(1)
    assert rows.tolist() == [1] and chosen.labels[rows].tolist() == [0] and chosen.scores[rows][0] > 0.99
    chosen = segment_queries(DetectionOutput(logits, torch.zeros(2, 3, 4)), softmax=False, threshold=0.3)
    assert chosen.labels.tolist() == [1, 2, 0]


def random_output(batch: int, queries: int, classes: int, seed: int = 0) -> DetectionOutput:
    g = torch.Generator().manual_seed(seed)
    return DetectionOutput(
        3 * torch.randn(batch, queries, classes, generator=g), torch.rand(batch, queries, 4, generator=g)
    )


class TestPostprocess:
    def test_equals_the_authors(self) -> None:
        raw = load_file(GOLDEN / "detr_resnet50.outputs.safetensors")
        expected = load_file(GOLDEN / "detr_resnet50.detections.safetensors")
        output = DetectionOutput(raw["pred_logits"], raw["pred_boxes"])
        found = postprocess(output, [(480, 640), (600, 536)], softmax=True)
        assert len(found) == 2
        for i, (scores, labels, boxes) in enumerate(found):
            torch.testing.assert_close(scores, expected[f"{i}.scores"], atol=1e-6, rtol=0)
            assert torch.equal(labels, expected[f"{i}.labels"])
            torch.testing.assert_close(boxes, expected[f"{i}.boxes"], atol=1e-4, rtol=0)

    @pytest.mark.parametrize("classes", [1, 4])
    def test_sigmoid_takes_the_best_pairs(self, classes: int) -> None:
        output = random_output(2, 6, classes)
        sizes = [(50, 200), (33, 77)]
        for i, (scores, labels, boxes) in enumerate(postprocess(output, sizes, softmax=False)):
            height, width = sizes[i]
            pairs = []
            for query in range(6):
                cx, cy, w, h = output.boxes[i, query].tolist()
                box = [(cx - w / 2) * width, (cy - h / 2) * height, (cx + w / 2) * width, (cy + h / 2) * height]
                probabilities = output.logits[i, query].sigmoid().tolist()
                pairs += [(probability, label, box) for label, probability in enumerate(probabilities)]
            pairs.sort(key=lambda pair: -pair[0])
            pairs = pairs[:6]
            torch.testing.assert_close(scores, torch.tensor([pair[0] for pair in pairs]))
            assert labels.tolist() == [pair[1] for pair in pairs]
            torch.testing.assert_close(boxes, torch.tensor([pair[2] for pair in pairs]), atol=1e-4, rtol=1e-5)

    @pytest.mark.slow  # importing transformers takes most of it
    def test_sigmoid_equals_transformers(self) -> None:
        transformers = pytest.importorskip("transformers")
        from transformers.models.deformable_detr.modeling_deformable_detr import DeformableDetrObjectDetectionOutput

        output = random_output(2, 30, 9, seed=1)
        sizes = [(480, 640), (600, 536)]
        peer = transformers.DeformableDetrImageProcessor().post_process_object_detection(
            DeformableDetrObjectDetectionOutput(logits=output.logits, pred_boxes=output.boxes),
            threshold=0.0, target_sizes=sizes, top_k=30,
        )  # fmt: skip
        for (scores, labels, boxes), expected in zip(postprocess(output, sizes, softmax=False), peer, strict=True):
            torch.testing.assert_close(scores, expected["scores"])
            assert torch.equal(labels, expected["labels"])
            torch.testing.assert_close(boxes, expected["boxes"])

    def test_no_object_is_never_returned(self) -> None:
        logits = torch.tensor([[[0.0, 1.0, 50.0]]])
        [(scores, labels, _)] = postprocess(DetectionOutput(logits, torch.rand(1, 1, 4)), [(9, 9)], softmax=True)
        assert labels.tolist() == [1]
        assert scores.item() < 1e-20

    def test_boxes_are_not_cut(self) -> None:
        output = DetectionOutput(torch.zeros(1, 1, 3), torch.tensor([[[0.0, 0.5, 1.0, 2.0]]]))
        for softmax in (True, False):
            [(_, _, boxes)] = postprocess(output, [(10, 20)], softmax=softmax)
            assert boxes.tolist() == [[-10.0, -5.0, 10.0, 15.0]]

    @pytest.mark.parametrize("softmax", [True, False])
    def test_half_precision_costs_no_more_than_its_own_rounding(self, softmax: bool) -> None:
        exact = random_output(1, 20, 5)
        half = DetectionOutput(exact.logits.bfloat16(), exact.boxes.bfloat16())
        rounded = DetectionOutput(half.logits.float(), half.boxes.float())
        found, expected = (postprocess(o, [(1000, 1500)], softmax=softmax)[0] for o in (half, rounded))
        assert found[0].dtype == found[2].dtype == torch.float32
        for a, b in zip(found, expected, strict=True):
            assert torch.equal(a, b)

    @pytest.mark.parametrize("sizes", [[(10, 10)], [(10, 10)] * 3])
    def test_one_size_for_each_image(self, sizes: list[tuple[int, int]]) -> None:
        with refused(ConfigError, f"{len(sizes)} sizes", "2 images"):
            postprocess(random_output(2, 3, 4), sizes, softmax=True)

    @pytest.mark.parametrize("softmax", [True, False])
    def test_masks_of_the_same_queries_belong_to_the_boxes(self, softmax: bool) -> None:
        """`postprocess` and `score_queries` make one choice: its queries have the boxes."""
        output = random_output(2, 7, 3, seed=2)
        queries = score_queries(output, softmax=softmax)
        for number, (scores, labels, boxes) in enumerate(postprocess(output, [(1, 1)] * 2, softmax=softmax)):
            rows = queries.rows(number)
            assert torch.equal(queries.scores[rows], scores) and torch.equal(queries.labels[rows], labels)
            chosen = output.boxes[number, queries.query[rows]]
            torch.testing.assert_close((boxes[:, :2] + boxes[:, 2:]) / 2, chosen[:, :2])
