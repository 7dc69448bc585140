"""COCO's AP of boxes: the 12 numbers that detection papers report, and AP per class. For AP of masks see masks.py.

hotcoco computes AP; tests compare it with pycocotools. Only `regard.metrics` imports it. Ids are renumbered first, so
any integers work: 0, negative ones, gaps, numbers beyond the precision of float64.
"""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from regard.errors import HAS, DataError, MachineError, counted, escape, install_command
from regard.metrics.summary import NOT_AVAILABLE, mean, percent

if TYPE_CHECKING:
    from rich.table import Table

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

# COCO's maximum of detections per class and image, and the bounds of its area ranges in square pixels.
MAX_DETECTIONS = 100
AREAS = {"": (0.0, 1e10), "s": (0.0, 32.0**2), "m": (32.0**2, 96.0**2), "l": (96.0**2, 1e10)}


@dataclass(frozen=True)
class CocoDetections:
    """N detections of a whole data set, with the columns of COCO's result files.

    image_ids, category_ids: (N,) integers, ids of the annotation file.
    boxes_xywh: (N, 4) left, top, width, height in pixels of the image file. Convert corners to float64 before you
        subtract them: float32 rounds the difference, which changes the fifth decimal of AP.
    scores: (N,) finite. Of equal scores the earlier row ranks first.
    """

    image_ids: npt.NDArray[Any]
    category_ids: npt.NDArray[Any]
    boxes_xywh: npt.NDArray[Any]
    scores: npt.NDArray[Any]

    def __len__(self) -> int:
        return len(self.image_ids)


class ClassScore(NamedTuple):
    """Scores of one class: AP at IoU 0.50:0.95 and at 0.50, fractions 0..1; None without ground truth."""

    name: str
    category_id: int
    ap: float | None
    ap50: float | None
    objects: int


@dataclass(frozen=True)
class DetectionScores:
    """COCO scores of boxes or masks.

    stats: AP, AP50, AP75, APs, APm, APl, AR1, AR10, AR100, ARs, ARm, ARl as fractions 0..1; None if the
        ground truth has no object of that size (pycocotools: -1).
    per_class: in the order of the category ids.
    images, objects, detections: numbers of each; `objects` does not count crowds.
    kind: `Box` or `Mask`, whose IoU decides.
    """

    stats: dict[str, float | None]
    per_class: tuple[ClassScore, ...]
    images: int
    objects: int
    detections: int
    kind: str = "Box"

    def table(self) -> Table:
        """Return a table for the terminal, in percent. The means come last, so that they are not scrolled away."""
        from rich.table import Table

        table = Table.grid()
        table.add_row(self._class_table())
        table.add_row(self._stats_table())
        absent = sum(score.ap is None for score in self.per_class)
        if absent:
            count = counted(absent, "class", "classes", of=len(self.per_class), verb=HAS)
            note = f"{count} no ground truth: left out of means"
            table.add_row(f"{NOT_AVAILABLE}: {note}")
        return table

    def _class_table(self) -> Table:
        from rich.table import Table
        from rich.text import Text

        title = f"{self.kind} AP: {counted(self.images, 'image')}, {counted(self.detections, 'detection')}"
        table = Table(title=title, title_justify="left")
        table.add_column("class")
        for header in ("objects", "AP", "AP50"):
            table.add_column(header, justify="right")
        for score in self.per_class:
            # Text, not str: a class may be called "[red]".
            name = Text(escape(score.name))
            table.add_row(name, f"{score.objects:,}", percent(score.ap), percent(score.ap50))
        table.add_section()
        means = percent(self.stats["AP"]), percent(self.stats["AP50"])
        table.add_row("all", f"{self.objects:,}", *means, style="bold")
        return table

    def _stats_table(self) -> Table:
        from rich.table import Table

        table = Table(show_header=False)
        cells = [f"{name:<5} {percent(value):>5}" for name, value in self.stats.items()]
        for start in range(0, len(cells), 3):
            table.add_row(*cells[start : start + 3])
        return table

    def to_dict(self) -> dict[str, Any]:
        """Return the scores as values for JSON."""
        return {**asdict(self), "per_class": [score._asdict() for score in self.per_class]}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DetectionScores:
        """Return the scores of which `to_dict` returned `values`."""
        return cls(**{**values, "per_class": tuple(ClassScore(**score) for score in values["per_class"])})


def evaluate_detections(ground_truth: dict[str, Any], detections: CocoDetections) -> DetectionScores:
    """Compute COCO box AP and AR.

    Args:
        ground_truth: a validated COCO dict: every annotation has `bbox` (xywh, pixels), `area` and `iscrowd`.
            A detection on a crowd is ignored. Images without detections count too.
        detections: of all images, each image once: a repeated detection counts as a false positive. Samplers of
            distributed runs repeat images to fill the last batch.

    Raises:
        DataError: columns of different lengths, a score or box that is not finite, a box of negative size, or an
            image or category that the ground truth does not have (A47).
        MachineError: hotcoco is not installed.
    """
    columns = CocoColumns.build(ground_truth, detections)
    return columns.summarize(columns.evaluator())


@dataclass(frozen=True)
class CocoColumns:
    """Validated ground truth (G objects) and detections (N) in columns.

    image_ids, category_ids: sorted ids; `images`, `classes` and those of the truth are indices into them. The order is
        that of pycocotools: it decides between equal scores of different images.
    names: (K,) class names.
    """

    image_ids: Ints
    category_ids: Ints
    names: tuple[str, ...]
    truth_images: Ints
    truth_classes: Ints
    truth_boxes_xywh: Floats
    truth_areas: Floats
    truth_crowd: Bools
    images: Ints
    classes: Ints
    boxes_xywh: Floats
    scores: Floats

    @classmethod
    def build(cls, ground_truth: dict[str, Any], detections: CocoDetections) -> CocoColumns:
        """Validate and renumber.

        Raises:
            DataError: as for `evaluate_detections`.
        """
        objects = ground_truth["annotations"]
        names = {category["id"]: category["name"] for category in ground_truth["categories"]}
        image_ids = np.unique(_column(ground_truth["images"], "id", np.int64))
        category_ids = np.array(sorted(names), np.int64)
        boxes_xywh, scores = _checked_boxes(detections)
        return cls(
            image_ids=image_ids,
            category_ids=category_ids,
            names=tuple(names[id] for id in sorted(names)),
            truth_images=np.searchsorted(image_ids, _column(objects, "image_id", np.int64)),
            truth_classes=np.searchsorted(category_ids, _column(objects, "category_id", np.int64)),
            truth_boxes_xywh=_column(objects, "bbox", np.float64).reshape(-1, 4),
            truth_areas=_column(objects, "area", np.float64),
            truth_crowd=_column(objects, "iscrowd", np.bool_),
            images=_places(detections.image_ids, image_ids, "image"),
            classes=_places(detections.category_ids, category_ids, "category"),
            boxes_xywh=boxes_xywh,
            scores=scores,
        )

    def evaluator(self) -> Any:
        """Compute box AP. Returns hotcoco's evaluator, with the attributes of pycocotools: `eval["precision"]`, ..."""
        hotcoco = import_hotcoco()
        truth = hotcoco.COCO.from_arrays(
            [{"id": i} for i in range(len(self.image_ids))],
            [{"id": i, "name": str(i)} for i in range(len(self.names))],
            self.truth_images,
            self.truth_classes,
            self.truth_boxes_xywh,
            area=self.truth_areas,
            iscrowd=self.truth_crowd,
        )
        results = truth.load_res(np.column_stack([self.images, self.boxes_xywh, self.scores, self.classes]))
        return run_evaluator(hotcoco.COCOeval(truth, results, "bbox"))

    def summarize(self, evaluator: Any, kind: str = "Box") -> DetectionScores:
        """Return the scores of an evaluator that has run, of boxes or masks (`kind`)."""
        result = evaluator.eval
        precision = result["precision"][..., -1]  # (IoU thresholds, recall points, K, area bins)
        recall = result["recall"]  # (IoU thresholds, K, area bins, 1 or 10 or 100 detections)
        ap, ap50 = precision[..., 0], precision[0, ..., 0]
        stats = {
            "AP": _defined_mean(ap),
            "AP50": _defined_mean(ap50),
            "AP75": _defined_mean(precision[5, ..., 0]),
            **{f"AP{size}": _defined_mean(precision[..., i]) for i, size in enumerate(AREAS) if size},
            **{f"AR{count}": _defined_mean(recall[:, :, 0, i]) for i, count in enumerate((1, 10, MAX_DETECTIONS))},
            **{f"AR{size}": _defined_mean(recall[:, :, i, -1]) for i, size in enumerate(AREAS) if size},
        }
        objects = np.bincount(self.truth_classes[~self.truth_crowd], minlength=len(self.category_ids))
        per_class = tuple(
            ClassScore(name, int(id), _defined_mean(ap[..., k]), _defined_mean(ap50[:, k]), int(objects[k]))
            for k, (name, id) in enumerate(zip(self.names, self.category_ids, strict=True))
        )
        return DetectionScores(stats, per_class, len(self.image_ids), int(objects.sum()), len(self.images), kind)


def run_evaluator(evaluator: Any) -> Any:
    """Run an evaluator of hotcoco with COCO's parameters. Returns it."""
    evaluator.params.area_rng = [list(bounds) for bounds in AREAS.values()]
    evaluator.params.area_rng_lbl = [size or "all" for size in AREAS]
    evaluator.params.max_dets = [1, 10, MAX_DETECTIONS]
    evaluator.evaluate()
    evaluator.accumulate()
    return evaluator


def warn_of_surplus(ground_truth: dict[str, Any], detections: CocoDetections) -> None:
    """Warn about detections that are ignored because COCO counts at most 100 per class and image."""
    columns = CocoColumns.build(ground_truth, detections)
    groups = columns.images * len(columns.names) + columns.classes
    dropped = np.maximum(np.unique(groups, return_counts=True)[1] - MAX_DETECTIONS, 0).sum()
    if not dropped:
        return
    per_image = np.bincount(columns.images)
    worst = per_image.argmax()
    images = counted(int((per_image > MAX_DETECTIONS).sum()), "image", verb=HAS)
    warnings.warn(
        f"{images} more than {MAX_DETECTIONS} detections (image "
        f"{columns.image_ids[worst]} has {per_image[worst]}); COCO evaluates the {MAX_DETECTIONS} of highest score "
        f"for each class and image and ignores {dropped}",
        stacklevel=2,
    )


def import_hotcoco() -> ModuleType:
    """Import hotcoco.

    Raises:
        MachineError: hotcoco is not installed.
    """
    try:
        import hotcoco
    except ImportError as error:
        remedy = install_command("hotcoco")
        raise MachineError("COCO evaluation needs the package hotcoco", remedy=remedy) from error
    return hotcoco


def _column(rows: list[dict[str, Any]], key: str, dtype: type[Any]) -> npt.NDArray[Any]:
    return np.array([row[key] for row in rows], dtype)


def _checked_boxes(detections: CocoDetections) -> tuple[Floats, Floats]:
    boxes = np.asarray(detections.boxes_xywh, np.float64)
    scores = np.asarray(detections.scores, np.float64)
    boxes = boxes if boxes.size else boxes.reshape(-1, 4)
    n = len(detections)
    shapes = (np.shape(detections.image_ids), np.shape(detections.category_ids), boxes.shape, scores.shape)
    if shapes != ((n,), (n,), (n, 4), (n,)):
        what = "image_ids, category_ids, boxes_xywh and scores have the shapes {}, {}, {} and {}".format(*shapes)
        raise DataError(what, remedy="pass columns of one length N: (N,), (N,), (N, 4) and (N,)", code="A47")
    diverged = "the model diverged: use an earlier checkpoint"
    _refuse(np.asarray(~np.isfinite(scores)), detections, scores, "a score that is not finite", diverged)
    _refuse(np.asarray(~np.isfinite(boxes).all(axis=1)), detections, boxes, "a box that is not finite", diverged)
    negative = np.asarray((boxes[:, 2:] < 0).any(axis=1))
    _refuse(negative, detections, boxes, "a box of negative size", "pass left, top, width, height in pixels")
    return boxes, scores


def _refuse(wrong: Bools, detections: CocoDetections, values: Floats, kind: str, remedy: str) -> None:
    """Raise if any detection is `wrong` (N,); the message names the first one and its entry in `values` (N, ...)."""
    if wrong.any():
        row = int(wrong.argmax())
        what = f"{wrong.sum()} of {len(wrong)} detections have {kind}: {values[row].tolist()}"
        where = f"detection {row} (image {detections.image_ids[row]})"
        raise DataError(what, where=where, remedy=remedy, code="A47")


def _places(ids: npt.NDArray[Any], known: Ints, kind: str) -> Ints:
    """Return the indices (N,) of `ids` in `known`, which is sorted."""
    ids = np.asarray(ids)
    if not ids.size:
        return np.zeros(0, np.int64)
    if ids.dtype.kind not in "iu":
        what = f"{kind} ids of the detections have the type {ids.dtype}, expected integers"
        raise DataError(what, remedy=f"pass the {kind} ids of the annotation file", code="A47")
    ids = ids.astype(np.int64)
    unknown = ~np.isin(ids, known)
    if unknown.any():
        row = int(unknown.argmax())
        what = f"{unknown.sum()} of {len(ids)} detections have {kind} ids that the ground truth lacks: {ids[row]}"
        remedy = f"pass the {kind} ids of the annotation file"
        raise DataError(what, where=f"detection {row}", remedy=remedy, code="A47")
    return np.searchsorted(known, ids)


def _defined_mean(values: Floats) -> float | None:
    """Return the mean of the defined values; hotcoco marks undefined ones with -1."""
    return mean(values[values > -1])
