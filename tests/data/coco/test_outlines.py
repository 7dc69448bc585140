"""Masks of instances equal those of pycocotools, and masks follow their image through the augmentations."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from refusals import refused
from regard.data.coco.dataset import open_detection
from regard.data.coco.panoptic_png import boxes_of
from regard.data.samples import Sample
from regard.data.transforms.detection import paper_augmentation, small_augmentation
from regard.errors import DataError


def outlines(root: Path) -> tuple[Path, dict]:
    """Polygons in several parts, reaching out of the image; both kinds of run lengths; one object without."""
    coco_mask = pytest.importorskip("pycocotools.mask")
    rng = np.random.default_rng(2)
    rows: list[dict] = []
    for number in range(12):
        parts = [rng.uniform(-8, 48, 2 * rng.integers(3, 9)).round(2).tolist() for _ in range(number % 3 + 1)]
        rle = coco_mask.encode(np.asfortranarray(rng.random((30, 40)) < 0.3, dtype=np.uint8))
        rle = {"size": rle["size"], "counts": rle["counts"].decode()}
        runs = {"size": [30, 40], "counts": [int(n) for n in (rng.multinomial(1200, np.ones(7) / 7))]}
        segmentation = [parts, rle, runs][number % 3 if number > 5 else 0]
        row = {"id": number + 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 30, 20], "iscrowd": int(number == 7)}
        rows.append({**row, "segmentation": segmentation} if number != 3 else row)
    document = {
        "images": [{"id": 1, "file_name": "a.png", "height": 30, "width": 40}],
        "annotations": rows,
        "categories": [{"id": 1, "name": "cell"}],
    }
    (root / "annotations").mkdir(parents=True)
    (root / "val").mkdir()
    (root / "annotations/instances_val.json").write_text(json.dumps(document))
    Image.new("RGB", (40, 30)).save(root / "val/a.png")
    return root, document


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_instance_masks_are_those_of_pycocotools(tmp_path: Path) -> None:
    from pycocotools import mask as coco_mask

    root, document = outlines(tmp_path)
    data = open_detection(root, "val", masks=True)
    sample = data[0]
    expected = []
    for row in document["annotations"]:
        if "segmentation" in row and not row["iscrowd"]:
            rle = (
                coco_mask.frPyObjects(row["segmentation"], 30, 40)
                if not (isinstance(row["segmentation"], dict) and isinstance(row["segmentation"]["counts"], str))
                else row["segmentation"]
            )
            rle = coco_mask.merge(rle) if isinstance(rle, list) else rle
            expected.append(coco_mask.decode(rle).astype(bool))
    assert sample.masks.dtype == torch.bool and np.array_equal(sample.masks.numpy(), np.stack(expected))
    assert len(sample.boxes) == len(sample.labels) == len(expected) == 10
    assert any("1 of 11 objects has no segmentation" in issue.what for issue in data.annotations.report.issues)
    assert open_detection(root, "val")[0].masks is None and len(open_detection(root, "val")[0].boxes) == 11


def test_masks_of_boxes_alone(tmp_path: Path) -> None:
    root, document = outlines(tmp_path)
    rows = [{k: v for k, v in row.items() if k != "segmentation"} for row in document["annotations"]]
    (root / "annotations/instances_val.json").write_text(json.dumps({**document, "annotations": rows}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with refused(DataError, "segmentation", code="A37"):
            open_detection(root, "val", masks=True)


def test_augmented_masks_follow_the_image() -> None:
    """Segments are painted in one colour each: after any augmentation a mask covers its colour."""
    ids = torch.from_numpy(np.kron(np.arange(6).reshape(2, 3), np.ones((60, 50), int)))
    masks = ids == torch.arange(6)[:, None, None]
    image = (ids * 50).to(torch.uint8).expand(3, -1, -1)
    boxes = torch.from_numpy(boxes_of(ids.numpy() + 1, 6))
    sample = Sample(image, boxes, torch.arange(6), masks)
    for transform in (paper_augmentation(160), small_augmentation(64).steps[1]):
        for seed in range(4):
            result = transform(sample, torch.Generator().manual_seed(seed))
            assert len(result.masks) == len(result.labels) == len(result.boxes) > 0
            assert result.masks.shape[1:] == result.image.shape[1:] and result.masks.dtype == torch.bool
            for mask, label, box in zip(result.masks, result.labels.tolist(), result.boxes, strict=True):
                if mask.sum() < 100:
                    continue
                assert (result.image[0][mask].float() - 50 * label).abs().median() <= 1
                x0, y0, x1, y1 = boxes_of(mask.numpy().astype(int), 1)[0].tolist()
                # The nearest rule moves an edge by less than a pixel at each of up to three resizes.
                assert (box - torch.tensor([x0, y0, x1, y1])).abs().max() <= 4


def test_objects_without_a_pixel_leave_with_the_square() -> None:
    """A box may reach into a crop that its mask, two far corners, does not reach."""
    masks = torch.zeros(2, 64, 64, dtype=torch.bool)
    masks[0, 0, 0] = masks[0, 63, 63] = True
    masks[1] = True
    sample = Sample(
        torch.zeros(3, 64, 64, dtype=torch.uint8), torch.tensor([[0.0, 0, 64, 64]] * 2), torch.arange(2), masks
    )
    jitter = small_augmentation(64).steps[1]
    found = [jitter(sample, torch.Generator().manual_seed(seed)) for seed in range(20)]
    assert {tuple(result.labels.tolist()) for result in found} == {(0, 1), (1,)}
    assert all(result.masks.flatten(1).any(1).all() for result in found)
