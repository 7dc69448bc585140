"""The matcher against the authors' indices, all permutations, and batches that are empty, crowded or broken."""

from __future__ import annotations

import itertools
import json
import math

import pytest
import torch
from torch import Tensor

from loss_cases import GOLDEN, golden_output, golden_targets, random_output, random_targets
from refusals import refused
from regard.errors import DivergedError
from regard.losses import HungarianMatcher
from regard.structures.boxes import cxcywh_to_xyxy
from regard.structures.outputs import DetectionOutput


def plain_cost(logits: Tensor, box: Tensor, label: int, target: Tensor, *, focal: bool) -> float:
    """Cost of one query for one target, in plain numbers. DETR eq. 2 and Deformable DETR's focal variant."""
    if focal:
        p = 1 / (1 + math.exp(-logits[label].item()))
        class_cost = 0.25 * (1 - p) ** 2 * -math.log(p + 1e-8) - 0.75 * p**2 * -math.log(1 - p + 1e-8)
    else:
        powers = [math.exp(value) for value in logits.tolist()]
        class_cost = -powers[label] / sum(powers)
    l1 = sum(abs(a - b) for a, b in zip(box.tolist(), target.tolist(), strict=True))
    a, b = (cxcywh_to_xyxy(x).tolist() for x in (box, target))
    area_a, area_b = ((x[2] - x[0]) * (x[3] - x[1]) for x in (a, b))
    overlap = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    union = area_a + area_b - overlap
    giou = overlap / union - (hull - union) / hull
    return (2 if focal else 1) * class_cost + 5 * l1 - 2 * giou


def matcher_of(focal: bool) -> HungarianMatcher:
    return HungarianMatcher(class_cost=2, classification="focal") if focal else HungarianMatcher()


def as_lists(pairs: list[tuple[Tensor, Tensor]]) -> list[tuple[list[int], list[int]]]:
    return [(query.tolist(), target.tolist()) for query, target in pairs]


class TestAuthors:
    def test_indices_of_every_layer(self) -> None:
        golden = json.loads((GOLDEN / "detr_resnet50.losses.json").read_text())
        last = golden_output()
        for output, expected in zip([*last.auxiliary, last], golden["indices_per_layer"], strict=True):
            found = HungarianMatcher()(output, golden_targets(golden))
            assert as_lists(found) == [tuple(pair) for pair in expected]


class TestAssignment:
    @pytest.mark.parametrize("focal", [False, True])
    @pytest.mark.parametrize("count", [0, 1, 3, 5, 6])
    def test_is_the_cheapest_of_all_permutations(self, count: int, focal: bool) -> None:
        for seed in range(3):
            output, targets = random_output(1, 5, 4, seed), random_targets([count], 3, seed)
            cost = [
                [
                    plain_cost(output.logits[0, q], output.boxes[0, q], int(label), box, focal=focal)
                    for label, box in zip(targets[0]["labels"], targets[0]["boxes"], strict=True)
                ]
                for q in range(5)
            ]
            pairs = min(5, count)
            best = min(
                sum(cost[q][t] for q, t in zip(queries, columns, strict=True))
                for queries in itertools.permutations(range(5), pairs)
                for columns in itertools.combinations(range(count), pairs)
            )
            ((query, target),) = matcher_of(focal)(output, targets)
            assert query.dtype == target.dtype == torch.int64
            assert len(query) == len(target) == pairs
            assert len(set(query.tolist())) == len(set(target.tolist())) == pairs
            assert query.tolist() == sorted(query.tolist())
            found = sum(cost[q][t] for q, t in zip(query.tolist(), target.tolist(), strict=True))
            assert found == pytest.approx(best, abs=1e-5)

    @pytest.mark.parametrize("focal", [False, True])
    def test_costs_are_the_formula(self, focal: bool) -> None:
        output, targets = random_output(2, 3, 4), random_targets([2, 1], 3)
        costs = matcher_of(focal).costs(output.logits[None], output.boxes[None], targets)
        assert costs.shape == (1, 2, 3, 2) and costs.dtype == torch.float32
        for i, target in enumerate(targets):
            for q in range(3):
                for t, (label, box) in enumerate(zip(target["labels"], target["boxes"], strict=True)):
                    expected = plain_cost(output.logits[i, q], output.boxes[i, q], int(label), box, focal=focal)
                    assert costs[0, i, q, t].item() == pytest.approx(expected, abs=1e-5)

    def test_weights_of_the_terms(self) -> None:
        output, targets = random_output(1, 4, 3), random_targets([2], 2)
        parts = [
            HungarianMatcher(class_cost=c, bbox_cost=l1, giou_cost=giou).costs(
                output.logits[None], output.boxes[None], targets
            )
            for c, l1, giou in ((1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 5, 2))
        ]
        torch.testing.assert_close(parts[0] + 5 * parts[1] + 2 * parts[2], parts[3])


class TestBatches:
    COUNTS = (3, 0, 7, 1)

    @pytest.mark.parametrize("focal", [False, True])
    def test_a_batch_is_its_images_one_by_one(self, focal: bool) -> None:
        output, targets = random_output(4, 6, 5), random_targets(list(self.COUNTS), 4)
        together = as_lists(matcher_of(focal)(output, targets))
        for i, target in enumerate(targets):
            single = DetectionOutput(output.logits[i : i + 1], output.boxes[i : i + 1])
            assert as_lists(matcher_of(focal)(single, [target])) == [together[i]]

    def test_layers_together_are_layers_one_by_one(self) -> None:
        layers = [random_output(4, 6, 5, seed) for seed in range(3)]
        targets = random_targets(list(self.COUNTS), 4)
        matches = HungarianMatcher().match_layers(
            torch.stack([layer.logits for layer in layers]), torch.stack([layer.boxes for layer in layers]), targets
        )
        rows = sorted(zip(*(column.tolist() for column in matches[:4]), strict=True))
        expected = [
            (number, image, q, t)
            for number, layer in enumerate(layers)
            for image, (query, target) in enumerate(as_lists(HungarianMatcher()(layer, targets)))
            for q, t in zip(query, target, strict=True)
        ]
        assert rows == sorted(expected)
        assert torch.equal(matches.host, torch.stack(matches[:4]))

    def test_every_group_is_matched_on_its_own(self) -> None:
        output, targets = random_output(4, 12, 5), random_targets(list(self.COUNTS), 4)
        found = as_lists(HungarianMatcher()(output._replace(num_groups=3), targets))
        for i in range(4):
            expected_query, expected_target = [], []
            for group in range(3):
                part = slice(4 * group, 4 * group + 4)
                single = DetectionOutput(output.logits[i : i + 1, part], output.boxes[i : i + 1, part])
                ((query, target),) = as_lists(HungarianMatcher()(single, [targets[i]]))
                expected_query += [q + 4 * group for q in query]
                expected_target += target
            assert found[i] == (expected_query, expected_target)

    def test_nothing_to_match(self) -> None:
        output = random_output(2, 4, 3)
        found = HungarianMatcher()(output, random_targets([0, 0], 2))
        assert as_lists(found) == [([], []), ([], [])]
        assert all(index.dtype == torch.int64 for pair in found for index in pair)
        matches = HungarianMatcher().match_layers(output.logits[None], output.boxes[None], random_targets([0, 0], 2))
        assert [len(column) for column in matches[:4]] == [0, 0, 0, 0] and matches.host.shape == (4, 0)

    def test_more_targets_than_queries_take_every_query(self) -> None:
        ((query, target),) = HungarianMatcher()(random_output(1, 3, 4), random_targets([8], 3))
        assert query.tolist() == [0, 1, 2] and len(set(target.tolist())) == 3

    def test_boxes_without_area(self) -> None:
        output, targets = random_output(1, 3, 4), random_targets([2], 3)
        output.boxes[0, 0, 2:] = 0
        targets[0]["boxes"][0, 2:] = 0
        output.boxes[0, 1] = targets[0]["boxes"][0]  # twice the same point
        ((query, target),) = HungarianMatcher(class_cost=0)(output, targets)
        assert dict(zip(target.tolist(), query.tolist(), strict=True))[0] == 1

    def test_permuted_targets_are_matched_alike(self) -> None:
        output, targets = random_output(1, 8, 5), random_targets([6], 4)
        order = torch.tensor([3, 1, 5, 0, 4, 2])
        permuted = [{key: value[order] for key, value in targets[0].items()}]
        ((query, target),) = HungarianMatcher()(output, targets)
        ((query2, target2),) = HungarianMatcher()(output, permuted)
        assert torch.equal(query, query2) and torch.equal(target, order[target2])


class TestPrecision:
    def test_half_precision_is_matched_in_float32(self) -> None:
        output, targets = random_output(2, 8, 5), random_targets([4, 2], 4)
        half = DetectionOutput(output.logits.bfloat16(), output.boxes.bfloat16())
        rounded = DetectionOutput(half.logits.float(), half.boxes.float())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = as_lists(HungarianMatcher()(half, targets))
        assert found == as_lists(HungarianMatcher()(rounded, targets))

    @pytest.mark.parametrize("focal", [False, True])
    @pytest.mark.parametrize("part", ["logits", "boxes"])
    @pytest.mark.parametrize("image", [0, 1])
    def test_nan_is_an_error_that_names_the_image(self, image: int, part: str, focal: bool) -> None:
        output, targets = random_output(3, 4, 5), random_targets([2, 0, 2], 4)
        getattr(output, part)[image] = math.nan
        with refused(DivergedError, f"images [{image}]", code="T09"):
            matcher_of(focal)(output, targets)

    def test_no_gradient_flows_through_the_costs(self) -> None:
        output = random_output(1, 4, 3)
        output.logits.requires_grad_()
        assert (
            not HungarianMatcher().costs(output.logits[None], output.boxes[None], random_targets([2], 2)).requires_grad
        )
