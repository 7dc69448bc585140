"""`Detections`: order, selection, conversions, pictures, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from refusals import refused
from regard.drawing.boxes import class_color
from regard.errors import ConfigError, DataError, DivergedError, MachineError, RegardError
from regard.results.detections import Detections
from regard.structures.categories import Category

CATEGORIES = (Category(7, "raccoon"), Category(3, "dog"), Category(90, "Waschbär"))


def detections(**changes: object) -> Detections:
    values: dict = {
        "scores": torch.tensor([0.25, 0.75, 0.5, 0.5]),
        "labels": torch.tensor([1, 0, 0, 2]),
        "boxes": torch.tensor([[0.0, 1, 2, 3], [10.25, 20.5, 40, 60], [-5, 0, 5, 8], [1, 1, 2, 4]]),
        "categories": CATEGORIES,
        "size": (80, 100),
        "image": torch.full((3, 80, 100), 200, dtype=torch.uint8),
    }
    return Detections(**{**values, **changes})


class TestDetections:
    def test_are_sorted_together_and_ties_stay_in_order(self) -> None:
        found = detections()
        assert found.scores.tolist() == [0.75, 0.5, 0.5, 0.25]
        assert found.labels.tolist() == [0, 0, 2, 1]
        assert found.boxes[:, 0].tolist() == [10.25, -5, 1, 0]
        assert found.names == ["raccoon", "raccoon", "Waschbär", "dog"]
        assert found.category_ids == [7, 7, 90, 3]

    def test_selecting(self) -> None:
        found = detections()
        kept = [
            found[1:3],
            found[torch.tensor([False, True, True, False])],
            found[[1, 2]],
            found[(found.scores == 0.5).numpy()],
        ]
        for part in kept:
            assert part.boxes.tolist() == [[-5, 0, 5, 8], [1, 1, 2, 4]]
            assert part.names == ["raccoon", "Waschbär"]
        for position in ([2], torch.tensor([2])):
            assert found[position].names == ["Waschbär"]
        assert found[::-1].scores.tolist() == found.scores.tolist() and found[::-2].names == ["raccoon", "dog"]
        assert len(found[:1][torch.tensor([False])]) == len(found[:1][[False]]) == 0
        assert len(found[[]]) == len(found[:0][[]]) == len(found[:0][torch.zeros(0, dtype=torch.bool)]) == 0
        with pytest.raises(IndexError):
            found[torch.tensor([True, False])]

    def test_is_a_sequence_of_rows(self) -> None:
        found = detections()
        assert [found[i] for i in range(len(found))] == list(found) == found.to_dicts()
        for position in (np.int64(2), np.array(2), torch.tensor(2), -2):
            assert found[position]["label"] == "Waschbär"
        for position in (4, np.int64(4), torch.tensor(-5)):
            with pytest.raises(IndexError):
                found[position]

    def test_above_leaves_out_the_threshold_itself(self) -> None:
        assert len(detections().above(0.5)) == 1
        assert len(detections().above(0.49)) == 3
        assert detections().above(0.99).to_dicts() == []

    def test_dicts_have_the_shape_of_the_transformers_pipeline(self) -> None:
        first = detections().to_dicts()[0]
        assert first == {
            "label": "raccoon",
            "label_id": 0,
            "score": 0.75,
            "box": {"xmin": 10.25, "ymin": 20.5, "xmax": 40, "ymax": 60},
        }
        assert json.loads(detections().to_json()) == detections().to_dicts()
        assert "Waschbär" in detections().to_json()

    def test_coco_rows_are_what_pycocotools_loads(self) -> None:
        coco_module = pytest.importorskip("pycocotools.coco")
        rows = detections().to_coco(image_id=42)
        assert rows[0] == {**detections().to_coco()[0], "image_id": 42}
        assert rows[0] == {"image_id": 42, "category_id": 7, "bbox": [10.25, 20.5, 29.75, 39.5], "score": 0.75}
        truth = coco_module.COCO()
        truth.dataset = {
            "images": [{"id": 42}], "annotations": [], "categories": [{"id": c.id, "name": c.name} for c in CATEGORIES]
        }  # fmt: skip
        truth.createIndex()
        loaded = truth.loadRes(rows)
        assert [a["area"] for a in loaded.loadAnns(loaded.getAnnIds())] == [29.75 * 39.5, 80, 3, 4]

    def test_pandas(self) -> None:
        pytest.importorskip("pandas")
        table = detections(path="a.png").to_pandas()
        assert list(table.columns) == [
            "path", "label", "label_id", "category_id", "score", "xmin", "ymin", "xmax", "ymax"
        ]  # fmt: skip
        assert table.iloc[0].tolist() == ["a.png", "raccoon", 0, 7, 0.75, 10.25, 20.5, 40, 60]
        empty = detections()[:0].to_pandas()
        assert len(empty) == 0
        assert empty.dtypes[["category_id", "score", "xmin"]].tolist() == ["int64", "float32", "float32"]

    @pytest.mark.filterwarnings("ignore:OpenCV")
    def test_supervision(self) -> None:
        supervision = pytest.importorskip("supervision")
        bridge = detections().to_supervision()
        assert bridge.xyxy.tolist() == detections().boxes.tolist()
        assert bridge.class_id.tolist() == [0, 0, 2, 1]
        assert bridge.confidence.tolist() == [0.75, 0.5, 0.5, 0.25]
        sure = bridge[bridge.confidence > 0.3]
        assert sure.data["class_name"].tolist() == ["raccoon", "raccoon", "Waschbär"]
        assert len(detections()[:0].to_supervision()) == 0
        assert len(supervision.Detections.merge([bridge, detections().to_supervision()])) == 8

    def test_the_bridge_shares_no_memory(self) -> None:
        pytest.importorskip("supervision")
        found = detections()
        found.to_supervision().xyxy[:] = 0
        assert found.boxes.any()

    @pytest.mark.parametrize(("package", "call"), [("pandas", "to_pandas"), ("supervision", "to_supervision")])
    def test_missing_packages_are_named(self, package: str, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(__import__("sys").modules, package, None)
        with refused(MachineError, f"pip install {package}"):
            getattr(detections(), call)()

    def test_summary(self) -> None:
        assert detections().summary() == "2 raccoon, 1 Waschbär, 1 dog"
        assert detections()[:0].summary() == "nothing"
        assert repr(detections(path="a\nb.png")) == r"Detections(2 raccoon, 1 Waschbär, 1 dog; a\nb.png, 80x100)"

    def test_half_precision_with_gradient_comes_in(self) -> None:
        found = detections(scores=torch.tensor([0.25, 0.75, 0.5, 0.5], dtype=torch.bfloat16, requires_grad=True))
        assert found.scores.dtype == torch.float32
        assert not found.scores.requires_grad

    @pytest.mark.parametrize(
        ("changes", "error", "names"),
        [
            ({"labels": torch.tensor([0, 1, 2, 3])}, ConfigError, ("label 3 ", "3 categories")),
            ({"labels": torch.tensor([0, 1, 2, -1])}, ConfigError, ("label -1 ", "3 categories")),
            ({"labels": torch.tensor([0])}, ConfigError, ("(4,), (1,) and (4, 4)",)),
            ({"scores": torch.tensor(0.5)}, ConfigError, ("(), (4,) and (4, 4)",)),
            ({"boxes": torch.zeros(4, 5)}, ConfigError, ("(4,), (4,) and (4, 5)",)),
            ({"scores": torch.tensor([0.1, float("nan"), 0, 0])}, DivergedError, ("finite",)),
            ({"boxes": torch.full((4, 4), float("inf"))}, DivergedError, ("finite",)),
        ],
    )  # fmt: skip
    def test_what_does_not_fit_is_refused(
        self, changes: dict[str, Tensor], error: type[RegardError], names: tuple[str, ...]
    ) -> None:
        with refused(error, *names):
            detections(**changes)


class TestPictures:
    def test_plot_draws_what_is_above_the_threshold(self) -> None:
        found = detections(
            scores=torch.tensor([0.9, 0.4]), labels=torch.tensor([0, 1]),
            boxes=torch.tensor([[10.0, 20, 30, 60], [60, 20, 90, 60]]),
        )  # fmt: skip
        factor = found.plot().width // 100
        right, left = (90 * factor, 40 * factor), (30 * factor, 40 * factor)
        assert found.plot().getpixel(left) == class_color(0)
        assert found.plot().getpixel(right) == class_color(1)
        assert found.plot(threshold=0.5).getpixel(left) == class_color(0)
        assert found.plot(threshold=0.5).getpixel(right) == (200, 200, 200)
        assert (found.image == 200).all()  # type: ignore[union-attr]

    def test_the_file_is_read_when_it_is_needed(self, tmp_path: Path) -> None:
        path = tmp_path / "street.png"
        found = detections(image=None, path=str(path))
        with refused(DataError, path, code="I29"):
            found.plot()
        Image.new("RGB", (400, 400), (1, 2, 3)).save(path)
        assert found[:0].plot().getcolors() == [(160000, (1, 2, 3))]

    def test_without_any_image(self) -> None:
        with refused(ConfigError, "Detections", "path"):
            detections(image=None).plot()

    @pytest.mark.parametrize("name", ["a.png", "deep/er/a.jpg", "a.webp", "a.tiff"])
    def test_save(self, name: str, tmp_path: Path) -> None:
        detections().save(tmp_path / name, threshold=0.3)
        with Image.open(tmp_path / name) as saved:
            assert saved.size == detections().plot().size

    def test_save_says_what_is_wrong_with_the_path(self, tmp_path: Path) -> None:
        with refused(ConfigError, tmp_path / "a.xyz", ".png"):
            detections().save(tmp_path / "a.xyz")
        (tmp_path / "file").write_text("")
        with refused(MachineError, tmp_path / "file" / "a.png"):
            detections().save(tmp_path / "file" / "a.png")
