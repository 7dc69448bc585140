"""Panoptic data sets in COCO's format: every pixel belongs to a thing, to stuff or to nothing (void).

A JSON file has the class and id of every segment. A PNG file for each image has the segment id of every pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from regard.data.coco.annotated_images import AnnotatedImages, fingerprint
from regard.data.coco.annotations import CocoAnnotations, to_coco
from regard.data.coco.categories import order_of_categories
from regard.data.coco.dataset import open_detection
from regard.data.coco.layout import find_panoptic, has_coco, has_own_panoptic_validation
from regard.data.coco.outlines import run_lengths
from regard.data.coco.panoptic_annotations import PanopticAnnotations, read_panoptic, select_panoptic
from regard.data.coco.panoptic_png import boxes_of, read_segments, segments_of
from regard.data.coco.panoptic_writer import category_rows, segment_rows
from regard.data.coco.tables import image_rows
from regard.data.formats.held_out import split_by_content
from regard.data.report import Issue
from regard.data.samples import Sample
from regard.data.splits import Split
from regard.errors import HAS, DataError, counted
from regard.structures.categories import Category
from regard.structures.segments import PanopticSegments


class PanopticDataset(AnnotatedImages[PanopticAnnotations]):
    """Images with segments; `dataset[i]` decodes image i into a `Sample`.

    Things and stuff are objects alike, with boxes around their masks. Crowds are left out, as in detection. The
    authors' `coco_panoptic.py` keeps them, so that a query learns to predict a crowd as one thing.

    Args:
        masks: whether samples have masks. The first stage of DETR's panoptic training uses none.
        instances: annotations of the things of the same images as objects, the ground truth for AP; None if the
            folder has none.
    """

    def __init__(
        self,
        annotations: PanopticAnnotations,
        split: Split,
        *,
        masks: bool = True,
        instances: CocoAnnotations | None = None,
    ) -> None:
        super().__init__(annotations, split, masks=masks)
        self.instances = instances

    def __getitem__(self, index: int) -> Sample:
        """Decode an image with its targets.

        Raises:
            ImageError: the image cannot be decoded, or has another size than annotated (A33).
            DataError: the PNG file does not match the JSON file (A42).
        """
        record = self.annotations.images[index]
        table, rows = self.annotations.segments, self.annotations.rows_of(index)
        learned = np.flatnonzero(~table.is_crowd[rows])
        ids = read_segments(self.annotations, index)
        masks = None
        if self.masks:
            kind = np.uint8 if len(table.labels[rows]) < 256 else ids.dtype  # bytes take a quarter of the time
            masks = torch.from_numpy(ids.astype(kind) == (learned + 1).astype(kind)[:, None, None])
        return Sample(
            image=self.image(index),
            boxes=torch.from_numpy(boxes_of(ids, len(table.labels[rows]))[learned]),
            labels=torch.from_numpy(table.labels[rows][learned]),
            masks=masks,
            image_id=record.id,
            original_size=(record.height, record.width),
            path=str(self.image_folder / record.file_name),
        )

    @property
    def max_objects(self) -> tuple[int, str]:
        """The maximum number of segments to learn in one image, and the file name of that image."""
        counts = self.annotations.count_per_image(~self.annotations.segments.is_crowd)
        return int(counts.max()), self.names[int(counts.argmax())]

    def segments(self, index: int) -> PanopticSegments:
        """Return the ground truth of image `index`, crowds included. Does not read the image."""
        return segments_of(self.annotations, index)

    def to_coco(self, *, masks: bool = False) -> dict[str, Any]:
        """Return the ground truth for box AP, and for mask AP if `masks`: things only.

        The authors evaluate panoptic models on the instance annotations of the same images (main.py: "on original coco
        DS"). Without such annotations, the things of the panoptic annotations are used, which reads every PNG file.
        """
        things = [category for category in self.categories if category.is_thing]
        ids = {category.name: category.id for category in things}
        if self.instances is not None:
            own = {category.id: ids[category.name] for category in self.instances.categories}
            truth = to_coco(self.instances, masks=masks)
            rows = [{**row, "category_id": own[row["category_id"]]} for row in truth["annotations"]]
        else:
            truth = self.objects(range(len(self)), masks=masks)
            rows = [row for row in truth["annotations"] if row["category_id"] in ids.values()]
        return {"images": truth["images"], "annotations": rows, "categories": category_rows(things)}

    def objects(self, indices: Sequence[int], *, masks: bool = False) -> dict[str, Any]:
        """Return the segments of some images, things and stuff, as objects of a COCO dictionary. Reads PNG files."""
        rows: list[dict[str, Any]] = []
        records = [self.annotations.images[index] for index in indices]
        for index, record in zip(indices, records, strict=True):
            truth = self.segments(index)
            for info in segment_rows(truth, record.file_name):
                row = {**info, "id": len(rows) + 1, "image_id": record.id}
                if masks:
                    mask = (truth.ids == info["id"]).numpy()
                    row["segmentation"] = {"size": list(mask.shape), "counts": run_lengths(mask)}
                rows.append(row)
        return {"images": image_rows(records), "annotations": rows, "categories": category_rows(self.categories)}

    def fingerprint(self) -> str:
        """Return a hash of the JSON file and of names and sizes in bytes of images and PNG files. Reads none."""
        path, folder = self.annotations.path, self.annotations.segment_folder
        images, segments = (
            fingerprint(path.read_bytes(), *files)
            for files in ((self.image_folder, self.names), (folder, self.annotations.files))
        )
        return images[:32] + segments[:32]


def open_panoptic(
    path: str | Path, split: Split, *, categories: Sequence[Category] | None = None, masks: bool = True
) -> PanopticDataset:
    """Open one split of a panoptic data set.

    Args:
        path: a folder with `annotations/panoptic_train2017.json` and the PNG folder `annotations/panoptic_train2017`
            (COCO as published; the PNG folder may also be next to `annotations`), or the same without the year.
        split: `val` also matches `valid`, `validation` and `test`, in this order. Without any of them, a fifth of the
            images, chosen by their content, is `val`.
        categories: those of the checkpoint or the training split. Labels then follow their order. The file must have
            the same names; ids may differ.
        masks: whether samples have masks.

    Raises:
        DataError: no panoptic annotations, the split is missing, or annotations are wrong.
    """
    root = Path(path)
    file, folders = find_panoptic(root, split)
    own_folder = file.with_suffix("")
    segment_folder = own_folder if own_folder.is_dir() else root / file.stem
    annotations = read_panoptic(file, segment_folder=segment_folder, image_folders=folders)
    if not has_own_panoptic_validation(root):
        annotations = _part(annotations, split)
    if categories is not None:
        annotations = _with_categories(annotations, categories)
    if split == "train" and annotations.segments.is_crowd.all():
        remedy = "check that this is the right file"
        raise annotations.report.error("A09", "no segments to learn", "annotations", remedy=remedy)
    instances = _instances_of(root, annotations, masks) if split == "val" else None
    return PanopticDataset(annotations, split, masks=masks, instances=instances)


def _part(annotations: PanopticAnnotations, split: Split) -> PanopticAnnotations:
    """Return the images of a split of data without a validation split, as the readers of objects choose them."""
    folder = annotations.image_folder
    assert folder is not None
    files = [folder / image.file_name for image in annotations.images]
    return select_panoptic(annotations, *split_by_content(files, split, annotations.report))


def find_bad_segments(dataset: PanopticDataset) -> tuple[list[DataError], Issue | None]:
    """Decode every PNG file.

    Returns:
        The error of each image that cannot be used, and a warning about segments with another area than stated, or
        None.
    """

    def check(index: int) -> DataError | list[str]:
        try:
            areas = dataset.segments(index).areas.numpy()
        except DataError as error:
            return error
        stated = dataset.annotations.segments.areas[dataset.annotations.rows_of(index)]
        place = "annotations", int(dataset.annotations.rows[index]), "segments_info"
        return [
            f"{dataset.annotations.report.at(*place, k, 'area')} ({stated[k]:g} instead of {areas[k]})"
            for k in np.flatnonzero(np.isfinite(stated) & (stated != areas)).tolist()
        ]

    errors: list[DataError] = []
    wrong: list[str] = []
    with ThreadPoolExecutor(2) as pool:
        for result in pool.map(check, range(len(dataset))):
            if isinstance(result, DataError):
                errors.append(result)
            else:
                wrong += result
    if not wrong:
        return errors, None
    what = f"{counted(len(wrong), 'segment', verb=HAS)} another area than stated; the pixels count"
    return errors, Issue("A42", "warn", what, wrong[0], len(wrong), tuple(wrong[1:]))


def _instances_of(root: Path, annotations: PanopticAnnotations, masks: bool) -> CocoAnnotations | None:
    """Return the instance annotations of the validation images, if the folder has them for the same images and things.

    masks: whether all of them must have outlines.
    """
    if not has_coco(root, "val") and (has_own_panoptic_validation(root) or not has_coco(root, "train")):
        return None
    found = open_detection(root, "val").annotations
    same_images = {image.id for image in found.images} == {image.id for image in annotations.images}
    things = {category.name for category in annotations.categories if category.is_thing}
    same_classes = {category.name for category in found.categories} == things
    outlined = not masks or bool(found.objects.has_outline.all())
    return found if same_images and same_classes and outlined else None


def _with_categories(annotations: PanopticAnnotations, categories: Sequence[Category]) -> PanopticAnnotations:
    """Return the annotations with labels in the order of `categories`; ids and isthing stay the file's."""
    order = order_of_categories(annotations.categories, categories, annotations.report)
    ordered = tuple(annotations.categories[label] for label in order)
    changed = next(
        (own for own, other in zip(ordered, categories, strict=True) if own.is_thing != other.is_thing), None
    )
    if changed is not None:
        here, there = ("thing", "stuff") if changed.is_thing else ("stuff", "thing")
        what = f"{changed.name!r:.40} is {here}, but {there} in the model or the training split"
        raise annotations.report.error("A42", what, "categories", remedy="give both the same isthing")
    labels = np.argsort(np.array(order))[annotations.segments.labels]
    return replace(annotations, categories=ordered, segments=replace(annotations.segments, labels=labels))
