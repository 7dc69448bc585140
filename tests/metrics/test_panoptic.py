"""Panoptic quality compared with its formula in plain loops and with hotcoco; mask AP compared with pycocotools."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from panoptic_files import write_panoptic
from regard.data.coco.annotations import to_coco
from regard.data.coco.dataset import open_detection
from regard.data.coco.panoptic import open_panoptic
from regard.data.coco.panoptic_annotations import read_panoptic
from regard.data.coco.panoptic_png import segments_of
from regard.data.coco.tables import ImageRecord
from regard.data.generated.shapes import ShapesConfig, write_shapes
from regard.data.samples import Sample
from regard.errors import DataError
from regard.metrics.detection import CocoDetections, evaluate_detections
from regard.metrics.masks import encode_masks, evaluate_masks
from regard.metrics.panoptic import PanopticCounts, PanopticScores
from regard.structures.categories import Category
from regard.structures.segments import PanopticSegments

CLASSES = (
    Category(1, "cat"),
    Category(17, "dog"),
    Category(90, "never there"),
    Category(150, "sky", is_thing=False),
    Category(200, "ground", is_thing=False),
)
# Real images, where somebody has put them beside the checkout.
SAMPLES = Path(__file__).parents[3] / "shared/data"

Pair = tuple[PanopticSegments, PanopticSegments]


def compact(ids: np.ndarray, labels: np.ndarray, crowd: np.ndarray | None = None) -> PanopticSegments:
    """Segments of the ids that have pixels, numbered anew; labels: (S,) of ids 1..S."""
    present = [k for k in range(1, len(labels) + 1) if (ids == k).any()]
    table = np.zeros(len(labels) + 1, int)
    table[present] = np.arange(1, len(present) + 1)
    rows = np.array(present, int) - 1
    is_crowd = None if crowd is None else torch.from_numpy(crowd[rows])
    labels = torch.from_numpy(labels[rows])
    return PanopticSegments(torch.from_numpy(table[ids]), labels, torch.ones(len(rows)), CLASSES, is_crowd)


def random_pair(seed: int) -> Pair:
    """Overlapping rectangles, some void and crowds; predicted: the same a little off, relabelled, split, made up."""
    rng = np.random.default_rng(seed)
    height, width = rng.integers(6, 28, 2)
    count = int(rng.integers(0, 9))
    labels, crowd = rng.choice([0, 1, 3, 4], count), rng.random(count) < 0.25
    ids, found = np.zeros((height, width), int), np.zeros((height, width), int)
    found_labels = np.concatenate((labels, rng.choice(5, 4)))
    for k in range(count):
        top, left = rng.integers(0, (height, width))
        bottom, right = top + rng.integers(2, 14), left + rng.integers(2, 14)
        ids[top:bottom, left:right] = k + 1
        moves = np.maximum(0, np.array([top, bottom, left, right]) + rng.integers(-2, 3, 4) * (rng.random() < 0.7))
        if rng.random() < 0.85:
            found[moves[0] : moves[1], moves[2] : moves[3]] = k + 1
    for extra in range(4):
        if rng.random() < 0.4:
            top, left = rng.integers(0, (height, width))
            found[top : top + 4, left : left + 4] = count + 1 + extra
    swapped = rng.random(len(found_labels)) < 0.15
    found_labels[swapped] = rng.choice(5, int(swapped.sum()))
    return compact(ids, labels, crowd), compact(found, found_labels)


def by_the_formula(pairs: list[Pair]) -> dict[Any, dict[str, float]]:
    """PQ of sets of pixels, segment by segment: per category id, and for all, things and stuff."""
    iou_sum: dict[int, float] = defaultdict(float)
    tp: dict[int, int] = defaultdict(int)
    fp: dict[int, int] = defaultdict(int)
    fn: dict[int, int] = defaultdict(int)
    for truth, found in pairs:
        void = pixels(truth, 0)
        theirs = [(pixels(truth, k + 1), truth.labels[k].item()) for k in range(len(truth))]
        ours = [(pixels(found, k + 1), found.labels[k].item()) for k in range(len(found))]
        crowd = [False] * len(truth) if truth.is_crowd is None else truth.is_crowd.tolist()
        taken: set[int] = set()
        for (mine, label), is_crowd in zip(theirs, crowd, strict=True):
            if is_crowd:
                continue
            partner = None
            for k, (other, other_label) in enumerate(ours):
                iou = len(mine & other) / len((mine | other) - (void & other))
                if other_label == label and iou > 0.5:
                    assert partner is None, "more than one match"
                    partner = k
                    iou_sum[label] += iou
            if partner is None:
                fn[label] += 1
            else:
                tp[label] += 1
                taken.add(partner)
        for k, (other, label) in enumerate(ours):
            crowds = [mine for (mine, own), is_crowd in zip(theirs, crowd, strict=True) if is_crowd and own == label]
            ignored = void | (crowds[-1] if crowds else set())
            if k not in taken and len(other & ignored) <= len(other) / 2:
                fp[label] += 1
    result: dict[Any, dict[str, float]] = {}
    for label in {*tp, *fp, *fn}:
        weight = tp[label] + fp[label] / 2 + fn[label] / 2
        sq = iou_sum[label] / tp[label] if tp[label] else 0.0
        result[label] = {"PQ": iou_sum[label] / weight, "SQ": sq, "RQ": tp[label] / weight}
    for name, kinds in (("", (True, False)), ("_th", (True,)), ("_st", (False,))):
        rows = [result[label] for label in range(5) if label in result and CLASSES[label].is_thing in kinds]
        result[name] = {key: sum(row[key] for row in rows) / len(rows) for key in ("PQ", "SQ", "RQ") if rows}
    return result


def pixels(segments: PanopticSegments, number: int) -> set[tuple[int, int]]:
    return {(y, x) for y, row in enumerate(segments.ids.tolist()) for x, value in enumerate(row) if value == number}


def assert_formula(scores: PanopticScores, pairs: list[Pair]) -> None:
    expected = by_the_formula(pairs)
    for ending in ("", "_th", "_st"):
        for name in ("PQ", "SQ", "RQ"):
            value = expected[ending].get(name)
            assert scores.stats[name + ending] == (None if value is None else pytest.approx(value, abs=1e-9))
    for label, score in enumerate(scores.per_class):
        values = expected.get(label)
        assert (score.name, score.category_id) == (CLASSES[label].name, CLASSES[label].id)
        wanted = (None, None, None) if values is None else tuple(pytest.approx(v, abs=1e-9) for v in values.values())
        assert (score.pq, score.sq, score.rq) == wanted


def evaluate_panoptic(truth: Iterable[PanopticSegments], predictions: Iterable[PanopticSegments]) -> PanopticScores:
    """The scores of predictions for the same images in the same order."""
    truth = list(truth)
    counts = PanopticCounts(truth[0].categories)
    for pair in zip(truth, predictions, strict=True):
        counts.add(*pair)
    return counts.scores()


def test_equals_the_formula_on_random_pairs() -> None:
    """200 images: each alone, and all together."""
    pairs = [random_pair(seed) for seed in range(200)]
    for pair in pairs:
        assert_formula(evaluate_panoptic([pair[0]], [pair[1]]), [pair])
    together = evaluate_panoptic((truth for truth, _ in pairs), (found for _, found in pairs))
    assert_formula(together, pairs)
    assert (together.images, together.predictions) == (200, sum(len(found) for _, found in pairs))
    # The pairs prove something only if they have everything that the formula treats.
    assert 0.2 < together.stats["PQ"] < 0.9 and all(0 < s.tp < s.tp + s.fn for s in together.per_class if s.tp)
    assert together.per_class[2].fp > 0 == together.per_class[2].tp


def test_the_order_of_images_does_not_matter() -> None:
    """To 1e-12: sums of IoUs in another order."""
    pairs = [random_pair(seed) for seed in range(40)]
    one, other = (evaluate_panoptic(*zip(*these, strict=True)) for these in (pairs, pairs[::-1]))
    for name, value in one.stats.items():
        assert other.stats[name] == (None if value is None else pytest.approx(value, abs=1e-12)), name


def test_equals_hotcoco(tmp_path: Path) -> None:
    """An independent implementation, on the files that `PanopticWriter` writes."""
    panoptic = pytest.importorskip("hotcoco.panoptic")
    pairs = [random_pair(seed) for seed in range(60)]
    images = [ImageRecord(k + 1, f"{k}.jpg", *truth.size) for k, (truth, _) in enumerate(pairs)]
    for name, side in (("truth", 0), ("found", 1)):
        write_panoptic(tmp_path / f"{name}.json", images, (pair[side] for pair in pairs))
    evaluator = panoptic.PanopticEval(str(tmp_path / "truth.json"), str(tmp_path / "found.json"))
    evaluator.evaluate()
    theirs, ours = evaluator.results(), evaluate_panoptic(*zip(*pairs, strict=True))
    for group, ending in (("All", ""), ("Things", "_th"), ("Stuff", "_st")):
        for name in ("PQ", "SQ", "RQ"):
            assert ours.stats[name + ending] == pytest.approx(theirs[group][name.lower()], abs=1e-12)


def test_truth_against_itself_gives_100() -> None:
    truth = [random_pair(seed)[0] for seed in range(60)]
    crowds = [t.labels[t.is_crowd].tolist() for t in truth]
    # Of two crowds of one class panopticapi knows the last, and so do we.
    truth = [t for t, labels in zip(truth, crowds, strict=True) if len(set(labels)) == len(labels)]
    assert len(truth) > 40 and any(t.is_crowd.any() for t in truth)
    scores = evaluate_panoptic(truth, [replace(t, is_crowd=None) for t in truth])
    assert set(scores.stats.values()) == {1.0}
    assert sum(score.fp + score.fn for score in scores.per_class) == 0


def test_by_hand() -> None:
    """Two cats, one found at IoU 4/6, one at exactly 1/2; sky; the ground predicted on void and on nothing."""
    truth = np.array([[1, 1, 1, 1, 2, 2, 0, 0], [3] * 8])
    found = np.array([[1, 1, 1, 1, 1, 1, 2, 2], [3, 3, 3, 3, 4, 4, 4, 4]])
    scores = evaluate_panoptic([compact(truth, np.array([0, 0, 3]))], [compact(found, np.array([0, 4, 3, 3]))])
    cat, sky, ground = (next(s for s in scores.per_class if s.name == n) for n in ("cat", "sky", "ground"))
    assert (cat.tp, cat.fp, cat.fn) == (1, 0, 1)
    assert (cat.pq, cat.sq, cat.rq) == (pytest.approx(4 / 6 / 1.5), pytest.approx(4 / 6), pytest.approx(1 / 1.5))
    assert (sky.tp, sky.fp, sky.fn, sky.pq) == (0, 2, 1, 0.0)  # 1/2 is not enough
    assert (ground.fp, ground.pq) == (0, None)  # on void: neither right nor wrong
    assert scores.stats["PQ_th"] == cat.pq and scores.stats["PQ"] == cat.pq / 2 and scores.stats["PQ_st"] == 0.0
    assert (scores.images, scores.segments, scores.predictions) == (1, 3, 4)


def test_classes_are_matched_by_name() -> None:
    """A model may count in another order and know more; what the data do not have is counted nowhere."""
    more = (Category(5, "cow"), *CLASSES[::-1])
    pairs = [random_pair(seed) for seed in range(20)]
    expected = evaluate_panoptic(*zip(*pairs, strict=True))
    others = [replace(found, labels=5 - found.labels, categories=more) for _, found in pairs]
    assert evaluate_panoptic([truth for truth, _ in pairs], others) == expected
    cows = [replace(found, labels=torch.zeros_like(found.labels)) for found in others]
    scores = evaluate_panoptic([truth for truth, _ in pairs], cows)
    assert sum(score.tp + score.fp for score in scores.per_class) == 0
    fewer = replace(pairs[0][1], labels=pairs[0][1].labels * 0, categories=CLASSES[:2])
    with pytest.raises(DataError) as raised:
        evaluate_panoptic([pairs[0][0]], [fewer])
    assert raised.value.code == "K20" and "3 of 5" in str(raised.value) and CLASSES[2].name in str(raised.value)


def test_quality_of_one_image_is_pq_without_classes() -> None:
    for seed in range(8):
        counts = PanopticCounts(CLASSES)
        counts.add(*random_pair(seed))
        rows = [row for row in counts.scores().per_class if row.pq is not None]
        weights = [row.tp + (row.fp + row.fn) / 2 for row in rows]
        expected = sum(w * row.pq for w, row in zip(weights, rows, strict=True)) / sum(weights) if rows else 1.0
        assert counts.quality == pytest.approx(expected)
    truth, _ = random_pair(0)
    same = PanopticCounts(CLASSES)
    same.add(truth, replace(truth, is_crowd=None))
    assert same.quality <= 1.0 == PanopticCounts(CLASSES).quality


def test_counts_of_processes_add_up() -> None:
    pairs = [random_pair(seed) for seed in range(20)]
    parts = [PanopticCounts(CLASSES), PanopticCounts(CLASSES)]
    for k, pair in enumerate(pairs):
        parts[k % 2].add(*pair)
    first, second = pickle.loads(pickle.dumps(parts))  # as they are gathered
    first.merge(second)
    scores, expected = first.scores(), evaluate_panoptic(*zip(*pairs, strict=True))
    assert scores.stats == pytest.approx(expected.stats, abs=1e-12)
    assert (scores.images, scores.segments, scores.predictions) == (20, expected.segments, expected.predictions)


def test_empty_images() -> None:
    nothing = PanopticSegments(torch.zeros(4, 5), torch.zeros(0), torch.zeros(0), CLASSES)
    truth, found = random_pair(3)
    scores = evaluate_panoptic([nothing], [nothing])
    assert set(scores.stats.values()) == {None} and scores.segments == 0
    empty = replace(nothing, ids=torch.zeros(truth.size))
    assert sum(score.fn for score in evaluate_panoptic([truth], [empty]).per_class) == int((~truth.is_crowd).sum()) > 0
    assert sum(score.fp for score in evaluate_panoptic([empty], [found]).per_class) == 0  # all is void


def test_what_cannot_be_compared() -> None:
    truth, found = random_pair(3)
    small = replace(found, ids=found.ids[1:])
    empty = replace(found, labels=torch.cat((found.labels, found.labels[:1])), scores=torch.ones(len(found) + 1))
    (height, width), more = truth.size, replace(truth, categories=(*CLASSES, Category(7, "x")))
    for truths, predictions, named in (
        ([truth], [small], [f"{width}x{height - 1}", f"{width}x{height}"]),
        ([truth], [empty], [f"segment {len(empty)} "]),
        ([truth, more], [found, found], ["6 categories", "5"]),
    ):
        with pytest.raises(DataError) as raised:
            evaluate_panoptic(truths, predictions)
        assert raised.value.code == "A47" and all(part in str(raised.value) for part in named)


def test_table_and_json() -> None:
    pairs = [random_pair(seed) for seed in range(20)]
    scores = evaluate_panoptic(*zip(*pairs, strict=True))
    content = json.loads(json.dumps(scores.to_dict()))
    assert content["stats"] == scores.stats and content["per_class"][0] == scores.per_class[0]._asdict()
    console = Console(file=io.StringIO(), width=100)
    console.print(scores.table())
    text = console.file.getvalue()
    rows = [line.replace("│", " ").split() for line in text.splitlines()]
    all_row = next(row for row in rows if row and row[0] == "all")
    assert all_row[1:] == [str(scores.segments), *(f"{100 * scores.stats[n]:.1f}" for n in ("PQ", "SQ", "RQ"))]
    assert "sky (stuff)" in text and "20 images" in text


@pytest.mark.parametrize("name", ["coco_sample", "nuclei"])
def test_real_segments(name: str) -> None:
    """Truth against itself, and against itself moved and relabelled: as the formula has it."""
    if not (SAMPLES / name).is_dir():
        pytest.skip("no sample data beside the checkout")
    data = open_panoptic(SAMPLES / name, "val")
    truth = [data.segments(k) for k in range(8)]
    assert set(evaluate_panoptic(truth, truth).stats.values()) == {1.0}
    rng = np.random.default_rng(0)
    found = []
    for segments in truth:
        labels = segments.labels.clone()
        labels[:2] = int(rng.integers(len(segments.categories)))
        ids = segments.ids.roll(tuple(rng.integers(-12, 13, 2).tolist()), (0, 1))
        found.append(replace(segments, ids=ids, labels=labels, is_crowd=None))
    scores, expected = evaluate_panoptic(truth, found), by_unique_pairs(truth, found)
    assert 0.05 < scores.stats["PQ"] < 0.99
    assert {s.category_id: s.pq for s in scores.per_class if s.pq is not None} == pytest.approx(expected, abs=1e-9)
    assert scores.stats["PQ"] == pytest.approx(sum(expected.values()) / len(expected), abs=1e-9)


def by_unique_pairs(truth: list[PanopticSegments], found: list[PanopticSegments]) -> dict[int, float]:
    """PQ per category id of whole photographs: the formula above with pixels counted, not held as sets."""
    sums: dict[int, list[float]] = defaultdict(lambda: [0.0, 0.0])  # IoU, TP + FP / 2 + FN / 2
    for mine, theirs in zip(truth, found, strict=True):
        keys, counts = np.unique((mine.ids * 100_000 + theirs.ids).numpy(), return_counts=True)
        shared = {(int(k) // 100_000, int(k) % 100_000): int(c) for k, c in zip(keys, counts, strict=True)}
        area, other_area = mine.areas.tolist(), theirs.areas.tolist()
        matched: set[tuple[str, int]] = set()
        crowd = mine.is_crowd.tolist()
        ids = [category.id for category in mine.categories]
        for (i, j), pixels in shared.items():
            if i and j and not crowd[i - 1] and mine.labels[i - 1] == theirs.labels[j - 1]:
                iou = pixels / (area[i - 1] + other_area[j - 1] - pixels - shared.get((0, j), 0))
                if iou > 0.5:
                    row = sums[ids[mine.labels[i - 1]]]
                    row[0], row[1] = row[0] + iou, row[1] + 1
                    matched |= {("truth", i), ("found", j)}
        for i, label in enumerate(mine.labels.tolist(), start=1):
            if ("truth", i) not in matched and not crowd[i - 1]:
                sums[ids[label]][1] += 0.5
        for j, label in enumerate(theirs.labels.tolist(), start=1):
            same = [i for i, own in enumerate(mine.labels.tolist(), start=1) if crowd[i - 1] and own == label]
            ignored = shared.get((0, j), 0) + (shared.get((same[-1], j), 0) if same else 0)
            if ("found", j) not in matched and ignored / other_area[j - 1] <= 0.5:
                sums[ids[label]][1] += 0.5
    return {category: iou / weight for category, (iou, weight) in sums.items()}


def test_the_official_example(tmp_path: Path) -> None:
    """The two images that come with panopticapi: read, scored, written as a submission, read again."""
    file = SAMPLES / "panopticapi_sample/panoptic_examples.json"
    if not file.is_file():
        pytest.skip("no sample data beside the checkout")
    annotations = read_panoptic(file)
    truth = [segments_of(annotations, k) for k in range(2)]
    assert [len(t) for t in truth] == np.diff(annotations.first_row).tolist()
    assert sum(not c.is_thing for c in annotations.categories) == 53
    assert set(evaluate_panoptic(truth, truth).stats.values()) == {1.0}
    write_panoptic(tmp_path / "submission.json", annotations.images, truth)
    again = read_panoptic(tmp_path / "submission.json")
    assert evaluate_panoptic(truth, [segments_of(again, k) for k in range(2)]).stats["PQ"] == 1.0
    assert again.segments.areas.tolist() == annotations.segments.areas.tolist()


# ---- mask AP


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluation") / "shapes"
    write_shapes(ShapesConfig(size=96, train=1, val=10, classes=4, max_objects=6, seed=3), folder)
    return folder


def detections_of(data: Any, seed: int) -> tuple[CocoDetections, list[dict[str, Any]]]:
    """Masks near the true ones, a few empty or of another class, with many equal scores."""
    rng = np.random.default_rng(seed)
    rows, masks = [], []
    for index in range(len(data)):
        sample = data[index]
        for mask, label in zip(sample.masks, sample.labels.tolist(), strict=True):
            for _ in range(int(rng.integers(0, 4))):
                moved = mask.roll(tuple(rng.integers(-4, 5, 2).tolist()), (0, 1))
                masks.append(moved if rng.random() < 0.9 else torch.zeros_like(mask))
                other = int(rng.integers(len(data.categories)))
                category = data.categories[label if rng.random() < 0.8 else other]
                rows.append((sample.image_id, category.id, 0, 0, 1, 1, rng.integers(0, 10) / 10))
    table = np.array(rows)
    ids = table[:, :2].astype(np.int64)
    return CocoDetections(ids[:, 0], ids[:, 1], table[:, 2:6], table[:, 6]), encode_masks(torch.stack(masks))


def with_crowds(truth: dict[str, Any]) -> dict[str, Any]:
    rows = [{**row, "iscrowd": int(k % 7 == 3)} for k, row in enumerate(truth["annotations"])]
    return {**truth, "annotations": rows}


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("seed", range(3))
def test_mask_ap_equals_pycocotools(seed: int, shapes: Path) -> None:
    coco_module = pytest.importorskip("pycocotools.coco")
    from pycocotools.cocoeval import COCOeval

    data = open_detection(shapes, "val", masks=True)
    truth = with_crowds(to_coco(data.annotations, masks=True))
    found, masks = detections_of(data, seed)
    scores = evaluate_masks(truth, found, masks)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = coco_module.COCO()
        coco.dataset = json.loads(json.dumps(truth))
        for row in coco.dataset["annotations"]:
            row["segmentation"] = coco_module.maskUtils.frPyObjects(row["segmentation"], 96, 96)
        coco.createIndex()
        columns = zip(found.image_ids.tolist(), found.category_ids.tolist(), found.scores.tolist(), masks, strict=True)
        results = coco.loadRes(
            [{"image_id": i, "category_id": c, "score": s, "segmentation": m} for i, c, s, m in columns]
        )
        evaluator = COCOeval(coco, results, "segm")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    for value, expected in zip(scores.stats.values(), evaluator.stats, strict=True):
        assert (-1 if value is None else value) == pytest.approx(expected, abs=1e-12)
    assert 0.05 < scores.stats["AP"] < 0.95 and scores.kind == "Mask"
    assert scores.stats != evaluate_detections(truth, found).stats  # boxes are not what was compared


def things_of(sample: Sample, is_thing: torch.Tensor) -> Sample:
    kept = is_thing[sample.labels]
    return replace(sample, boxes=sample.boxes[kept], labels=sample.labels[kept], masks=sample.masks[kept])


def test_true_masks_give_1(shapes: Path) -> None:
    """Those of instances and those of things among segments are the same objects."""
    for data in (open_detection(shapes, "val", masks=True), open_panoptic(shapes, "val")):
        truth = data.to_coco(masks=True)
        is_thing = torch.tensor([category.is_thing for category in data.categories])
        samples = [things_of(data[k], is_thing) for k in range(len(data))]
        image_ids = np.repeat([s.image_id for s in samples], [len(s.labels) for s in samples])
        labels = torch.cat([s.labels for s in samples])
        category_ids = np.array([data.categories[label].id for label in labels])
        boxes = torch.cat([s.boxes for s in samples]).double().numpy()
        boxes[:, 2:] -= boxes[:, :2]
        found = CocoDetections(image_ids, category_ids, boxes, np.ones(len(labels)))
        masks = encode_masks(torch.cat([s.masks for s in samples]))
        scores = evaluate_masks(truth, found, masks)
        assert scores.stats["AP"] == evaluate_detections(truth, found).stats["AP"] == pytest.approx(1.0, abs=1e-12)
        console = Console(file=io.StringIO())
        console.print(scores.table())
        assert "Mask AP: 10 images" in console.file.getvalue()
        assert type(scores).from_dict(json.loads(json.dumps(scores.to_dict()))) == scores


def test_masks_that_do_not_fit(shapes: Path) -> None:
    data = open_detection(shapes, "val", masks=True)
    truth = to_coco(data.annotations, masks=True)
    found, masks = detections_of(data, 0)
    wrong = [*masks[:3], {**masks[3], "size": [95, 96]}, *masks[4:]]
    objects = len(truth["annotations"])
    for truths, encoded, code, named in (
        (truth, masks[1:], "A47", [f"{len(masks) - 1} masks", f"{len(masks)} detections"]),
        (truth, wrong, "A47", ["[95, 96]", "[96, 96]", "detection 3"]),
        (to_coco(data.annotations), masks, "A37", [f"{objects} of {objects}"]),
    ):
        with pytest.raises(DataError) as raised:
            evaluate_masks(truths, found, encoded)
        assert raised.value.code == code and all(part in str(raised.value) for part in named)
    assert encode_masks(torch.zeros(0, 3, 4, dtype=torch.bool)) == []
