"""Box AP next to pycocotools on random data, its edges, and the pictures."""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from charts import looks_drawn
from refusals import refused
from regard.errors import DataError, MachineError
from regard.metrics.charts.detection import plot_dataset, plot_detections
from regard.metrics.curves import confusion_matrix, count_per_image, detection_curves
from regard.metrics.detection import CocoDetections, DetectionScores, evaluate_detections, warn_of_surplus


def random_problem(
    seed: int,
    *,
    images: int = 12,
    first_id: int = 1,
    num_classes: int = 5,
    per_image: int = 25,
    area: str = "all",
) -> tuple[dict[str, Any], CocoDetections]:
    """Objects, crowds, images with neither objects nor detections, and detections with many equal scores."""
    rng = np.random.default_rng(seed)
    category_ids = np.sort(rng.choice(np.arange(0, 91), num_classes, replace=False)).tolist()
    image_ids = rng.choice(10**6, images, replace=False).tolist()
    largest = {"all": 200, "small": 20}[area]
    annotations: list[dict[str, Any]] = []
    rows = []
    for image_id in image_ids:
        for _ in range(rng.integers(0, 9) if rng.random() > 0.2 else 0):
            x, y, w, h = (*rng.uniform(0, 300, 2), *rng.uniform(2, largest, 2))
            annotations.append(
                {
                    "id": first_id + len(annotations),
                    "image_id": image_id,
                    # The last class has no ground truth.
                    "category_id": category_ids[rng.integers(0, num_classes - 1)],
                    "bbox": [x, y, w, h],
                    # As of a mask, so that the area bin of an object is not that of its box.
                    "area": w * h * rng.uniform(0.4, 1),
                    "iscrowd": int(rng.random() < 0.15),
                }
            )
        here = [a for a in annotations if a["image_id"] == image_id]
        for _ in range(per_image if rng.random() > 0.2 else 0):
            box, category = rng.uniform(5, largest, 4), rng.choice(category_ids)
            if here and rng.random() < 0.7:
                target = here[rng.integers(len(here))]
                box = np.array(target["bbox"]) + rng.normal(0, 0.05, 4) * np.tile(target["bbox"][2:], 2)
                category = target["category_id"] if rng.random() < 0.8 else category
            rows.append((image_id, category, *np.abs(box), rng.integers(0, 10) / 10))
    table = np.array(rows, np.float64)
    truth = {
        "images": [{"id": i, "width": 640, "height": 480, "file_name": f"{i}.jpg"} for i in image_ids],
        "categories": [{"id": c, "name": f"class {c}"} for c in reversed(category_ids)],
        "annotations": annotations,
    }
    ids = table[:, :2].astype(np.int64)
    return truth, CocoDetections(ids[:, 0], ids[:, 1], table[:, 2:6], table[:, 6])


def reference(truth: dict[str, Any], found: CocoDetections) -> Any:
    """pycocotools' evaluator after its work. It takes id 0 for "not matched": annotations start at 1."""
    coco_module = pytest.importorskip("pycocotools.coco")
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        coco = coco_module.COCO()
        coco.dataset = {
            **truth,
            "annotations": [{**a, "id": i + 1} for i, a in enumerate(truth["annotations"])],
        }
        coco.createIndex()
        columns = (found.image_ids, found.category_ids, found.boxes_xywh, found.scores)
        results = coco.loadRes(
            [
                {"image_id": int(i), "category_id": int(c), "bbox": b.tolist(), "score": float(s)}
                for i, c, b, s in zip(*columns, strict=True)
            ]
        )
        evaluator = COCOeval(coco, results, "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator


def assert_equal(value: float | None, expected: float) -> None:
    if expected == -1:
        assert value is None
    else:
        assert value == pytest.approx(expected, abs=1e-9)


def simple_problem() -> tuple[dict[str, Any], CocoDetections]:
    """Three images, the classes cat, dog and cow, and detections for `test_confusion_matrix_by_hand`."""
    objects = [
        (1, 3, [0, 0, 100, 100], 0),
        (1, 7, [200, 0, 100, 100], 0),
        (2, 3, [0, 0, 100, 100], 0),
        (2, 3, [200, 0, 100, 100], 0),
        (2, 7, [0, 200, 300, 200], 1),
        (3, 9, [0, 0, 50, 50], 0),
    ]
    truth = {
        "images": [{"id": i, "width": 400, "height": 400} for i in (1, 2, 3)],
        "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}, {"id": 9, "name": "cow"}],
        "annotations": [
            {"id": n, "image_id": i, "category_id": c, "bbox": b, "area": b[2] * b[3], "iscrowd": crowd}
            for n, (i, c, b, crowd) in enumerate(objects)
        ],
    }
    rows = [
        (
            1,
            7,
            [0, 0, 100, 95],
            0.95,
        ),  # a dog on the cat, surer than the cat: the cat is matched first all the same
        (1, 3, [0, 0, 100, 90], 0.9),  # right
        (1, 9, [200, 0, 100, 60], 0.8),  # the dog taken for a cow
        (2, 3, [0, 0, 100, 100], 0.25),  # right, at the threshold
        (2, 3, [2, 0, 100, 100], 0.2),  # below the threshold
        (2, 7, [10, 210, 30, 30], 0.7),  # on the crowd: does not count
        (2, 9, [50, 210, 30, 30], 0.6),  # on a crowd of another class: made up
        (3, 3, [300, 300, 50, 50], 0.5),  # made up; the cow is missed
    ]
    images, categories, boxes, scores = zip(*rows, strict=True)
    return truth, CocoDetections(np.array(images), np.array(categories), np.array(boxes), np.array(scores))


@pytest.mark.parametrize(
    ("seed", "settings"),
    [
        *((seed, {}) for seed in range(8)),
        (20, {"first_id": 0}),
        (21, {"area": "small"}),
        (22, {"images": 40, "per_image": 5, "num_classes": 12}),
        (23, {"num_classes": 2, "per_image": 160}),
    ],
)
def test_scores_equal_pycocotools(seed: int, settings: dict[str, Any]) -> None:
    truth, found = random_problem(seed, **settings)
    scores = evaluate_detections(truth, found)
    expected = reference(truth, found)
    for value, expected_value in zip(scores.stats.values(), expected.stats, strict=True):
        assert_equal(value, expected_value)
    assert list(scores.stats)[:3] == ["AP", "AP50", "AP75"] and scores.stats["AP"] != 0
    precision = expected.eval["precision"][:, :, :, 0, 2]
    assert [score.category_id for score in scores.per_class] == expected.params.catIds
    for k, score in enumerate(scores.per_class):
        for value, part in ((score.ap, precision[:, :, k]), (score.ap50, precision[:1, :, k])):
            assert_equal(value, part[part > -1].mean() if (part > -1).any() else -1)
        of_class = [a for a in truth["annotations"] if a["category_id"] == score.category_id]
        assert score.objects == sum(not a["iscrowd"] for a in of_class)
        assert score.name == f"class {score.category_id}"
    assert scores.per_class[-1].ap is None and scores.per_class[-1].objects == 0
    assert (scores.images, scores.detections) == (len(truth["images"]), len(found))


def test_a_hundred_random_sets_equal_pycocotools() -> None:
    for seed in range(100, 200):
        truth, found = random_problem(seed, images=5, per_image=8, num_classes=3, first_id=seed % 2)
        expected = reference(truth, found).stats
        for value, expected_value in zip(evaluate_detections(truth, found).stats.values(), expected, strict=True):
            assert_equal(value, expected_value)


def test_boxes_keep_their_bits() -> None:
    """IoU 0.5 to the last bit: a rounding to float32 on the way would lose the match."""
    truth, _ = simple_problem()
    box = [0.1, 0.2, 33.3, 77.7]
    truth["annotations"] = [{**truth["annotations"][0], "bbox": box, "area": box[2] * box[3]}]
    for width in [33.3 / 2, *np.nextafter(33.3 / 2, [0, 100]).tolist()]:
        boxes = np.array([[0.1, 0.2, width, 77.7]])
        found = CocoDetections(np.array([1]), np.array([3]), boxes, np.array([0.3]))
        assert_equal(evaluate_detections(truth, found).stats["AP50"], reference(truth, found).stats[1])


def test_ids_do_not_matter() -> None:
    """Ids that no float64 holds apart, and negative ones, score as the small ones do."""
    truth, found = random_problem(5)
    expected = evaluate_detections(truth, found)

    def moved(id: int) -> int:
        return int(id) * 2 - 1 if id < 500_000 else 2**60 + int(id)

    renamed = {
        "images": [{**image, "id": moved(image["id"])} for image in truth["images"]],
        "categories": [{**category, "id": category["id"] - 50} for category in truth["categories"]],
        "annotations": [
            {**a, "image_id": moved(a["image_id"]), "category_id": a["category_id"] - 50} for a in truth["annotations"]
        ],
    }
    image_ids = np.array([moved(id) for id in found.image_ids])
    renamed_found = CocoDetections(image_ids, found.category_ids - 50, found.boxes_xywh, found.scores)
    assert evaluate_detections(renamed, renamed_found).stats == expected.stats


@pytest.mark.parametrize("seed", range(4))
def test_the_order_of_images_objects_and_categories_does_not_matter(seed: int) -> None:
    """To 1e-12. Detections of one image and score keep their order, in which COCO's rule takes them."""
    truth, found = random_problem(seed)
    expected = evaluate_detections(truth, found)
    rng = np.random.default_rng(seed)
    shuffled = {key: [rows[k] for k in rng.permutation(len(rows))] for key, rows in truth.items()}
    place = {id: k for k, id in enumerate(rng.permutation(np.unique(found.image_ids)).tolist())}
    order = np.argsort([place[id] for id in found.image_ids.tolist()], kind="stable")
    columns = (found.image_ids, found.category_ids, found.boxes_xywh, found.scores)
    other = evaluate_detections(shuffled, CocoDetections(*(column[order] for column in columns)))
    for name, value in expected.stats.items():
        assert other.stats[name] == (None if value is None else pytest.approx(value, abs=1e-12)), name
    of_class = {score.category_id: score.ap for score in other.per_class}
    for score in expected.per_class:
        assert of_class[score.category_id] == (None if score.ap is None else pytest.approx(score.ap, abs=1e-12))


def test_no_detections_score_zero_and_no_objects_score_none() -> None:
    truth, found = simple_problem()
    none = CocoDetections(np.array([]), np.array([]), np.zeros((0, 4)), np.array([]))
    scores = evaluate_detections(truth, none)
    assert scores.stats["AP"] == scores.stats["AR100"] == scores.per_class[0].ap == 0
    assert scores.stats["APs"] is None and scores.detections == 0 and scores.objects == 5
    empty = {**truth, "annotations": []}
    for detections in (none, found):
        assert set(evaluate_detections(empty, detections).stats.values()) == {None}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"scores": np.array([0.5, np.nan])}, ["1 of 2", "score", "nan", "detection 1", "image 2"]),
        ({"boxes_xywh": np.array([[0, 0, 1, 1], [0, np.inf, 1, 1]])}, ["1 of 2", "[0.0, inf, 1.0, 1.0]"]),
        ({"boxes_xywh": np.array([[0, 0, 1, 1], [9, 9, -1, 1]])}, ["[9.0, 9.0, -1.0, 1.0]", "detection 1", "image 2"]),
        ({"image_ids": np.array([1, 77])}, ["1 of 2", "image ids", "77", "detection 1"]),
        ({"category_ids": np.array([4, 7])}, ["1 of 2", "category ids", ": 4", "detection 0"]),
        ({"category_ids": np.array([3.0, 7.0])}, ["category ids", "float64"]),
        ({"scores": np.array([0.5])}, ["(2,), (2,), (2, 4) and (1,)"]),
    ],
)
def test_wrong_detections_are_refused(change: dict[str, Any], named: list[str]) -> None:
    truth, _ = simple_problem()
    columns: dict[str, Any] = {
        "image_ids": np.array([1, 2]),
        "category_ids": np.array([3, 7]),
        "boxes_xywh": np.ones((2, 4)),
        "scores": np.array([0.5, 0.4]),
    }
    evaluate_detections(truth, CocoDetections(**columns))
    with pytest.raises(DataError) as raised:
        evaluate_detections(truth, CocoDetections(**{**columns, **change}))
    assert raised.value.code == "A47" and all(part in str(raised.value) for part in named)


def test_too_many_detections_warn() -> None:
    truth, _ = simple_problem()
    n = 130
    categories = np.where(np.arange(n) < 105, 3, 7)
    found = CocoDetections(np.full(n, 2), categories, np.ones((n, 4)), np.linspace(0, 1, n))
    with pytest.warns(UserWarning) as warned:
        warn_of_surplus(truth, found)
    assert all(part in str(warned[0].message) for part in ("1 image has", "image 2 has 130", "ignores 5"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluate_detections(truth, found)  # which training does again and again
        half = np.where(np.arange(n) < 65, 3, 7)  # more than 100 in the image, but all count
        warn_of_surplus(truth, CocoDetections(np.full(n, 2), half, np.ones((n, 4)), np.linspace(0, 1, n)))
        none = np.zeros(0, np.int64)
        warn_of_surplus(truth, CocoDetections(none, none, np.zeros((0, 4)), np.zeros(0)))


def test_missing_package_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hotcoco", None)
    with refused(MachineError, "pip install hotcoco"):
        evaluate_detections(*simple_problem())


def test_table_and_json() -> None:
    truth, found = random_problem(3)
    truth["categories"][0]["name"] = "[bold]x[/nope]\n"
    scores = evaluate_detections(truth, found)
    assert DetectionScores.from_dict(json.loads(json.dumps(scores.to_dict()))) == scores
    console = Console(width=80, file=io.StringIO())
    console.print(scores.table())
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert f"{100 * (scores.stats['AP'] or 0):.1f}" in text and "[bold]x[/nope]\\n" in text
    assert "n/a: 1 of 5 classes has no ground truth" in text


def test_curves_have_the_scores_as_means() -> None:
    truth, found = random_problem(4)
    scores, curves = evaluate_detections(truth, found), detection_curves(truth, found)
    for name, key in (("0.50", "AP50"), ("0.75", "AP75"), ("0.50:0.95", "AP")):
        assert curves.mean_precision[name].mean() == pytest.approx(scores.stats[key], abs=1e-9)
    for precision, score in zip(curves.class_precision, scores.per_class, strict=True):
        assert np.isnan(precision).all() if score.ap50 is None else precision.mean() == pytest.approx(score.ap50)


def test_curves_and_confusions_agree_with_pycocotools_matches() -> None:
    truth, found = random_problem(6, images=30)
    parts = [e for e in reference(truth, found).evalImgs if e and e["aRng"] == [0, 1e10]]
    right = np.concatenate([(e["dtMatches"][0] > 0) & ~e["dtIgnore"][0] for e in parts])
    counted = np.concatenate([~e["dtIgnore"][0] for e in parts])
    scores = np.concatenate([e["dtScores"] for e in parts])
    objects = sum((e["gtIgnore"] == 0).sum() for e in parts)
    curves = detection_curves(truth, found)
    for i in (0, 33, 130):
        above = scores >= curves.thresholds[i]
        assert curves.threshold_recall[i] == (right & above).sum() / objects
        assert curves.threshold_precision[i] == (right & above).sum() / (counted & above).sum()
    assert np.isnan(curves.threshold_precision[-1]) and curves.threshold_recall[-1] == 0
    matrix = confusion_matrix(truth, found, score_threshold=0.4)
    assert matrix.diagonal().sum() == (right & (scores >= 0.4)).sum()
    # Every object is in one row, every detection that counts in one column.
    assert matrix[:-1].sum() == objects
    assert matrix[:, :-1].sum() == (counted & (scores >= 0.4)).sum()


@pytest.mark.parametrize("seed", [0, 1])
def test_counts_of_images_add_up_to_the_curves(seed: int) -> None:
    """The curves are computed from sorted scores, the counts image by image."""
    truth, found = random_problem(seed)
    curves = detection_curves(truth, found)
    for place in (0, 60, 120, 199):
        counts = count_per_image(truth, found, score_threshold=float(curves.thresholds[place]))
        hits, missed, false = (sum(getattr(c, name) for c in counts) for name in ("found", "missed", "false"))
        assert hits + missed == sum(not row["iscrowd"] for row in truth["annotations"])
        assert hits / (hits + missed) == pytest.approx(curves.threshold_recall[place])
        if hits + false:
            assert hits / (hits + false) == pytest.approx(curves.threshold_precision[place])
            assert 2 * hits / (2 * hits + missed + false) == pytest.approx(curves.f1[place])
        assert [c.image_id for c in counts] == sorted(image["id"] for image in truth["images"])
    best = curves.best
    assert best is not None and best[1] >= np.nanmax(curves.f1) - 1e-12


def test_counts_of_one_image_by_hand() -> None:
    box = {"bbox": [10, 10, 20, 20], "area": 400, "iscrowd": 0}
    truth = {
        "images": [{"id": 7}, {"id": 9}],
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
        "annotations": [
            {**box, "id": 1, "image_id": 7, "category_id": 1},
            {**box, "id": 2, "image_id": 7, "category_id": 2, "bbox": [50, 50, 20, 20]},
            {**box, "id": 3, "image_id": 7, "category_id": 2, "iscrowd": 1, "bbox": [100, 100, 90, 90]},
        ],
    }
    # Right, the same once more, a wrong class, one in the crowd (ignored), one below the threshold.
    boxes = [[10, 10, 20, 20], [10, 10, 20, 19], [50, 50, 20, 20], [110, 110, 20, 20], [50, 50, 20, 20]]
    columns = np.full(5, 7), np.array([1, 1, 1, 2, 2]), np.array(boxes, float), np.array([0.9, 0.8, 0.7, 0.6, 0.1])
    counts = count_per_image(truth, CocoDetections(*columns), score_threshold=0.5)
    assert [tuple(c) for c in counts] == [(7, 1, 1, 2), (9, 0, 0, 0)]
    assert (counts[0].f1, counts[1].f1) == (2 / 5, 1.0)


@pytest.mark.parametrize("seed", range(4))
def test_best_threshold_has_the_highest_f1(seed: int) -> None:
    """Against all thresholds, each counted from matrices of confusions at that threshold."""
    truth, found = random_problem(seed)
    best = detection_curves(truth, found).best
    assert best is not None
    objects = sum(not row["iscrowd"] for row in truth["annotations"])

    def f1(threshold: float) -> float:
        matrix = confusion_matrix(truth, found, score_threshold=threshold)
        hits, predicted = np.trace(matrix[:-1, :-1]), matrix[:, :-1].sum()
        return 2 * hits / (predicted + objects)

    highest = max(f1(score) for score in np.unique(found.scores))
    assert best[1] == pytest.approx(highest) and f1(best[0]) == pytest.approx(highest)


def test_best_threshold_by_hand() -> None:
    truth, found = simple_problem()
    nothing = CocoDetections(*(np.empty((0, *column.shape[1:])) for column in vars(found).values()))
    assert detection_curves(truth, nothing).best is None


def test_confusion_matrix_by_hand() -> None:
    expected = [
        # cat dog cow background
        [2, 0, 0, 1],
        [0, 0, 1, 0],
        [0, 0, 0, 1],
        [1, 1, 1, 0],
    ]
    assert confusion_matrix(*simple_problem()).tolist() == expected
    without = confusion_matrix(*simple_problem(), score_threshold=1.0)
    assert without[:, -1].tolist() == [3, 1, 1, 0] and without[:, :-1].sum() == 0


def test_pictures_of_detections(tmp_path: Path) -> None:
    truth, found = simple_problem()
    truth["categories"][0]["name"] = "$cat_{ \\frac a\nvery long name of a class that never ends"
    paths = plot_detections(truth, found, detection_curves(truth, found), tmp_path / "new" / "folder")
    assert [path.name for path in paths] == [
        "precision_recall.png",
        "score_threshold.png",
        "confusion_matrix.png",
    ]
    assert all(looks_drawn(path) for path in paths)
    empty = CocoDetections(np.array([]), np.array([]), np.zeros((0, 4)), np.array([]))
    for objects, detections in ((truth, empty), ({**truth, "annotations": []}, found)):
        curves = detection_curves(objects, detections)
        assert all(looks_drawn(path) for path in plot_detections(objects, detections, curves, tmp_path))


def test_confusions_are_those_above_the_best_threshold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores of a short training are low: at a fixed threshold nearly all objects would be missed, or nothing false."""
    drawn = []
    monkeypatch.setattr("regard.metrics.charts.style.save", lambda figure, path: path)

    def keep(matrix, names, title, *, background):
        drawn.append((matrix, title))

    monkeypatch.setattr("regard.metrics.charts.detection.draw_confusion_matrix", keep)
    truth, found = simple_problem()
    nothing = CocoDetections(*(np.empty((0, *column.shape[1:])) for column in vars(found).values()))
    for factor in (1.0, 0.1, 0.001):
        low = replace(found, scores=found.scores * factor)
        curves = detection_curves(truth, low)
        plot_detections(truth, low, curves, tmp_path)
        assert drawn[-1][0].tolist() == confusion_matrix(truth, low, score_threshold=curves.best[0]).tolist()
        assert drawn[-1][0].tolist() == drawn[0][0].tolist() and drawn[-1][0].trace() > 0
        assert float(re.search(r"score (\S+) \(best F1\)", drawn[-1][1])[1]) == pytest.approx(curves.best[0], rel=0.1)
    plot_detections(truth, nothing, detection_curves(truth, nothing), tmp_path)
    assert "no detection is right" in drawn[-1][1]


def test_picture_of_a_data_set(tmp_path: Path) -> None:
    truth, _ = random_problem(1, num_classes=12, images=30)
    path = plot_dataset(truth, tmp_path / "new")
    assert path == tmp_path / "new" / "dataset.png" and looks_drawn(path)
    assert looks_drawn(plot_dataset({**truth, "annotations": []}, tmp_path))


def test_pictures_leave_pyplot_alone() -> None:
    import subprocess

    code = "import sys, regard.metrics.charts.detection, regard.metrics.detection as d; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"matplotlib", "hotcoco", "scipy", "torch", "rich"} & set(modules)
