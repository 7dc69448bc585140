"""COCO's AP of masks: AP of detection.py with the IoU of masks, equal to `segm` of pycocotools."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from regard.errors import HAS, DataError, counted
from regard.metrics.detection import CocoColumns, CocoDetections, DetectionScores, import_hotcoco, run_evaluator


def encode_masks(masks: Tensor) -> list[dict[str, Any]]:
    """Encode masks (N, H, W) bool as COCO's compressed run lengths.

    Returns:
        N dicts for JSON: `{"size": [H, W], "counts": text}`.

    Raises:
        MachineError: hotcoco is not installed.
    """
    if not len(masks):
        return []
    pixels = masks.detach().cpu().numpy().transpose(1, 2, 0).astype(np.uint8)
    encoded = import_hotcoco().mask.encode(pixels)
    return [{"size": list(rle["size"]), "counts": rle["counts"].decode()} for rle in encoded]


def evaluate_masks(
    ground_truth: dict[str, Any], detections: CocoDetections, masks: Sequence[dict[str, Any]]
) -> DetectionScores:
    """Compute COCO mask AP and AR.

    Args:
        ground_truth: as for `evaluate_detections`; every annotation also has a `segmentation`: `to_coco(annotations,
            masks=True)`.
        detections: as for `evaluate_detections`; boxes are ignored.
        masks: one per detection, at the size of its image, as from `encode_masks`.

    Raises:
        DataError: as for `evaluate_detections`; an object without an outline (A37); not one mask per detection, or a
            mask of another size than its image (A47).
        MachineError: hotcoco is not installed.
    """
    columns = CocoColumns.build(ground_truth, detections)
    hotcoco = import_hotcoco()
    outlines = check_outlines(ground_truth)
    sizes = {row["id"]: [row["height"], row["width"]] for row in ground_truth["images"]}
    _check_masks(detections, masks, sizes)
    places = np.searchsorted(columns.image_ids, [row["id"] for row in ground_truth["images"]])
    truth = hotcoco.COCO.from_arrays(
        [
            {"id": int(place), "height": row["height"], "width": row["width"]}
            for place, row in zip(places, ground_truth["images"], strict=True)
        ],
        [{"id": i, "name": str(i)} for i in range(len(columns.names))],
        columns.truth_images,
        columns.truth_classes,
        columns.truth_boxes_xywh,
        area=columns.truth_areas,
        iscrowd=columns.truth_crowd,
        segmentation=outlines,
    )
    rows = zip(columns.images.tolist(), columns.classes.tolist(), columns.scores.tolist(), masks, strict=True)
    results = truth.load_res(
        [{"image_id": i, "category_id": c, "score": score, "segmentation": mask} for i, c, score, mask in rows]
    )
    return columns.summarize(run_evaluator(hotcoco.COCOeval(truth, results, "segm")), "Mask")


def check_outlines(ground_truth: dict[str, Any]) -> list[Any]:
    """Return the outline of every annotation of a COCO dict.

    Raises:
        DataError: an annotation has none (A37).
    """
    outlines = [row.get("segmentation") for row in ground_truth["annotations"]]
    if not all(outlines):
        missing = sum(not outline for outline in outlines)
        what = f"{counted(missing, 'object', of=len(outlines), verb=HAS)} no segmentation"
        raise DataError(what, remedy="annotate the outline of every object, or evaluate boxes", code="A37")
    return outlines


def _check_masks(detections: CocoDetections, masks: Sequence[dict[str, Any]], sizes: dict[int, list[int]]) -> None:
    if len(masks) != len(detections):
        what = f"{len(masks)} masks for {len(detections)} detections"
        raise DataError(what, remedy="pass one mask for each detection", code="A47")
    for row, (image_id, mask) in enumerate(zip(detections.image_ids.tolist(), masks, strict=True)):
        if list(mask["size"]) != sizes[image_id]:
            what = f"mask of height and width {list(mask['size'])}, expected those of its image, {sizes[image_id]}"
            remedy = "resize masks to their image before you encode them"
            raise DataError(what, where=f"detection {row}", remedy=remedy, code="A47")
