"""Panoptic data sets in COCO's format, read and written: every pixel is of a thing, of stuff or of nothing.

A JSON file tells class and id of every segment; a PNG file per image has the id of the segment in each pixel, as
id = R + 256 G + 65536 B, 0 for void (Kirillov et al. 2019, and https://cocodataset.org/#format-data).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from regard.data.coco.annotations import CocoAnnotations, to_coco
from regard.data.coco.dataset import (
    find_annotations,
    fingerprint,
    has_detection,
    open_detection,
    order_of_categories,
    read_as_annotated,
    split_of,
)
from regard.data.coco.outlines import run_lengths
from regard.data.coco.panoptic_annotations import PanopticAnnotations, read_panoptic, unfitting
from regard.data.coco.tables import ImageRecord, first_repeat
from regard.data.images import read_image
from regard.data.paths import open_file
from regard.data.samples import Sample
from regard.data.splits import Split
from regard.errors import ConfigError, DataError, escape
from regard.safe_files import replace_text
from regard.structures.categories import Category
from regard.structures.segments import PanopticSegments

# COCO as published, and the plain names. {} is the name of the split; the PNG files are in the folder of that name.
ANNOTATION_FILES = ("annotations/panoptic_{}2017.json", "annotations/panoptic_{}.json", "panoptic_{}.json")


class PanopticDataset:
    """Images with segments, in ascending order of the image ids; `dataset[i]` decodes image i into a `Sample`.

    Things and stuff are objects alike: labels index `categories`, boxes are those around the masks. Crowds are left
    out, as they are of boxes; the authors' `coco_panoptic.py` keeps them, so that a query learns to call a crowd one
    thing. Holds no open files and can be sent to the workers of a data loader.

    masks: whether samples have masks; without them they are what the first stage of DETR's training learns from.
    instances: annotations of the things of the same images as objects, if there are any: the truth for AP.
    """

    def __init__(
        self,
        annotations: PanopticAnnotations,
        split: str,
        *,
        masks: bool = True,
        instances: CocoAnnotations | None = None,
    ) -> None:
        assert annotations.image_folder is not None
        self.annotations = annotations
        self.image_folder = annotations.image_folder
        self.split = split
        self.masks = masks
        self.instances = instances

    def __len__(self) -> int:
        return len(self.annotations.images)

    def __getitem__(self, index: int) -> Sample:
        """Raises DataError for an image that cannot be read or has another size (A33), and for a PNG file that does
        not fit the JSON file (A42)."""
        record = self.annotations.images[index]
        table, rows = self.annotations.segments, self.annotations.rows_of(index)
        learned = np.flatnonzero(~table.is_crowd[rows])
        ids = read_segments(self.annotations, index)
        masks = None
        if self.masks:
            kind = np.uint8 if len(table.labels[rows]) < 256 else ids.dtype  # a quarter of the time
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

    def image(self, index: int) -> Tensor:
        """The image alone, (3, H, W) uint8."""
        record = self.annotations.images[index]
        return read_as_annotated(self.image_folder / record.file_name, record, self.annotations.path)

    def segments(self, index: int) -> PanopticSegments:
        """The truth about image `index`, crowds marked. The image itself is not read."""
        return segments_of(self.annotations, index)

    def to_coco(self, *, masks: bool = False) -> dict[str, Any]:
        """The ground truth for box AP, and for mask AP if `masks`: things alone.

        As the authors judge panoptic models (main.py: "on original coco DS"): by the annotations of the same images'
        objects. Where the folder has none, by the things of the panoptic annotations; that reads every PNG file.
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
        return {"images": truth["images"], "annotations": rows, "categories": _category_rows(things)}

    def objects(self, indices: Sequence[int], *, masks: bool = False) -> dict[str, Any]:
        """All segments of some images as objects, things and stuff, as a COCO dictionary. Reads their PNG files."""
        rows: list[dict[str, Any]] = []
        records = [self.annotations.images[index] for index in indices]
        for index, record in zip(indices, records, strict=True):
            truth = self.segments(index)
            for info in _segment_rows(truth, record.file_name):
                row = {**info, "id": len(rows) + 1, "image_id": record.id}
                if masks:
                    mask = (truth.ids == info["id"]).numpy()
                    row["segmentation"] = {"size": list(mask.shape), "counts": run_lengths(mask)}
                rows.append(row)
        return {
            "images": _image_rows(records),
            "annotations": rows,
            "categories": _category_rows(self.categories),
        }

    @property
    def categories(self) -> tuple[Category, ...]:
        """What the labels of samples index."""
        return self.annotations.categories

    @property
    def image_ids(self) -> tuple[int, ...]:
        """The data set's own id of each image."""
        return tuple(image.id for image in self.annotations.images)

    @property
    def names(self) -> tuple[str, ...]:
        """The file name of each image, below `image_folder`."""
        return tuple(image.file_name for image in self.annotations.images)

    @property
    def max_objects(self) -> tuple[int, str]:
        """The largest number of segments to learn in one image, and the file name of that image."""
        is_crowd = self.annotations.segments.is_crowd
        counts = [int((~is_crowd[self.annotations.rows_of(k)]).sum()) for k in range(len(self))]
        largest = int(np.argmax(counts))
        return counts[largest], self.names[largest]

    def fingerprint(self) -> str:
        """sha256 of the JSON file and of names and sizes in bytes of images and PNG files; none is read."""
        images = fingerprint(self.annotations.path, self.image_folder, self.names)
        return (
            images[:32]
            + fingerprint(self.annotations.path, self.annotations.segment_folder, self.annotations.files)[:32]
        )


def open_panoptic(
    path: str | Path, split: Split, *, categories: Sequence[Category] | None = None, masks: bool = True
) -> PanopticDataset:
    """Open one split of a panoptic data set.

    Args:
        path: a folder with `annotations/panoptic_train2017.json` and the PNG folder `annotations/panoptic_train2017`
            (COCO as published; the folder may also lie beside `annotations`), or the same without the year.
        split: `val` also finds what is called `valid`, `validation` or `test`, in this order.
        categories: those of the checkpoint or of the training split. Labels then follow their order; the file
            must have the same names, under whatever ids.
        masks: whether samples have masks.

    Raises DataError if there are no such annotations, the split is not there, or anything in the annotations is wrong.
    """
    root = Path(path)
    found = find_annotations(root, ANNOTATION_FILES)
    if not found:
        looked = ", ".join(pattern.format("train") for pattern in ANNOTATION_FILES)
        raise DataError(f"no panoptic annotations; looked for {looked}", where=root, remedy="add them")
    file, folders = split_of(found, split, root)
    beside = file.with_suffix("")
    segment_folder = beside if beside.is_dir() else root / file.stem
    annotations = read_panoptic(file, segment_folder=segment_folder, image_folders=folders)
    if categories is not None:
        annotations = _with_categories(annotations, categories)
    if split == "train" and annotations.segments.is_crowd.all():
        remedy = "is this the right file?"
        raise annotations.report.error("A09", "there are no segments to learn", "annotations", remedy=remedy)
    instances = _instances_of(root, annotations, masks) if split == "val" else None
    return PanopticDataset(annotations, split, masks=masks, instances=instances)


def has_panoptic(path: str | Path) -> bool:
    """Whether a folder has panoptic annotations."""
    return bool(find_annotations(Path(path), ANNOTATION_FILES))


def _instances_of(root: Path, annotations: PanopticAnnotations, masks: bool) -> CocoAnnotations | None:
    """The validation images' things annotated as objects, if the folder has just them; with outlines if `masks`."""
    if not has_detection(root, "val"):
        return None
    found = open_detection(root, "val").annotations
    same_images = {image.id for image in found.images} == {image.id for image in annotations.images}
    things = {category.name for category in annotations.categories if category.is_thing}
    same_classes = {category.name for category in found.categories} == things
    outlined = not masks or bool(found.objects.has_outline.all())
    return found if same_images and same_classes and outlined else None


def segments_of(annotations: PanopticAnnotations, index: int) -> PanopticSegments:
    """The segments of image `index` of a panoptic file, ground truth or predictions, in the order of the file.

    Scores are 1: the format has none. Raises DataError for a PNG file that does not fit (A42).
    """
    table, rows = annotations.segments, annotations.rows_of(index)
    labels = torch.from_numpy(table.labels[rows])
    return PanopticSegments(
        ids=torch.from_numpy(read_segments(annotations, index)),
        labels=labels,
        scores=torch.ones(len(labels)),
        categories=annotations.categories,
        is_crowd=torch.from_numpy(table.is_crowd[rows]),
    )


def read_segments(annotations: PanopticAnnotations, index: int) -> NDArray[np.int32]:
    """(H, W) for image `index`: 0 for void, else 1 + the place of the pixel's segment in the file.

    Raises DataError (A42): the PNG file has no RGB pixels or another size than the image, it has an id that the JSON
    file lacks, or the JSON file one that no pixel has.
    """
    record = annotations.images[index]
    ids = _read_ids(annotations, index)
    if ids.shape != (record.height, record.width):
        what = f"the PNG is {ids.shape[1]}x{ids.shape[0]}, its image is stated as {record.width}x{record.height}"
        raise unfitting(annotations, index, what, None, "write the PNG at the size of its image")
    known = np.concatenate(([0], annotations.segments.ids[annotations.rows_of(index)]))
    order = np.argsort(known)
    # Neighbours mostly belong to one segment: runs are looked up, a hundredth of the pixels.
    flat = ids.ravel()
    starts = np.concatenate(([0], np.flatnonzero(flat[1:] != flat[:-1]) + 1))
    values = flat[starts]
    places = np.minimum(np.searchsorted(known[order], values), len(known) - 1)
    strays = values[known[order[places]] != values]
    if strays.size:
        what = f"pixels have the id {strays[0]}, which segments_info lacks"
        raise unfitting(annotations, index, what, None, "add the segment, or paint it void (0)")
    segments = order[places].astype(np.int32)
    absent = np.bincount(segments, minlength=len(known))[1:] == 0
    if absent.any():
        segment = int(absent.argmax())
        what = f"no pixel has the id {known[segment + 1]}"
        raise unfitting(annotations, index, what, segment, "remove the segment from the JSON file, or paint it")
    return np.repeat(segments, np.diff(np.concatenate((starts, [flat.size])))).reshape(ids.shape)


def find_bad_segments(dataset: PanopticDataset, *, images: bool = False) -> tuple[list[DataError], str | None]:
    """Decode every PNG file, and every image if `images`: why those that cannot be used cannot, and a line about
    segments whose area is not the stated one."""

    def look(index: int) -> DataError | list[str]:
        try:
            found = dataset.segments(index).areas.numpy()
            if images:
                dataset.image(index)
        except DataError as error:
            return error
        stated = dataset.annotations.segments.areas[dataset.annotations.rows_of(index)]
        place = "annotations", int(dataset.annotations.rows[index]), "segments_info"
        return [
            f"{stated[k]:g} instead of {found[k]} at {dataset.annotations.report.at(*place, k, 'area')}"
            for k in np.flatnonzero(np.isfinite(stated) & (stated != found)).tolist()
        ]

    errors: list[DataError] = []
    wrong: list[str] = []
    with ThreadPoolExecutor(2) as pool:
        for result in pool.map(look, range(len(dataset))):
            if isinstance(result, DataError):
                errors.append(result)
            else:
                wrong += result
    if not wrong:
        return errors, None
    what = f"{len(wrong)} segments have another area than stated; pixels are what counts"
    return errors, escape(f"warn[A42]: {what} — first: {wrong[0]}")


def boxes_of(ids: NDArray[Any], count: int) -> NDArray[np.float32]:
    """Boxes (count, 4) xyxy in pixels around the segments 1..count of (H, W); 0, 0, 0, 0 for one without pixels.

    From the outer edge of the first pixel to that of the last, as COCO's own boxes. The authors' `masks_to_boxes`
    (util/box_ops.py) ends one pixel earlier, so that a segment one pixel wide has no area there.
    """
    width = ids.shape[1]
    starts = np.flatnonzero(np.diff(ids, axis=1, prepend=-1))  # of runs; every row starts one
    stops = np.append(starts[1:], ids.size)
    segments = ids.ravel()[starts]
    low = np.full((count + 1, 2), max(ids.shape))
    high = np.zeros((count + 1, 2), dtype=low.dtype)
    for axis, first, last in ((0, starts % width, (stops - 1) % width), (1, starts // width, starts // width)):
        np.minimum.at(low[:, axis], segments, first)
        np.maximum.at(high[:, axis], segments, last + 1)
    low[high[:, 0] == 0] = 0
    return np.concatenate((low, high), axis=1)[1:].astype(np.float32)


def rgb_of(ids: NDArray[Any]) -> NDArray[np.uint8]:
    """Ids (H, W) 0..2**24 - 1 as pixels (H, W, 3) uint8: id = R + 256 G + 65536 B."""
    return np.stack([ids & 255, ids >> 8 & 255, ids >> 16], axis=-1).astype(np.uint8)


def ids_of(rgb: NDArray[np.uint8]) -> NDArray[np.int32]:
    """The inverse of `rgb_of`."""
    red, green, blue = rgb.astype(np.int32).transpose(2, 0, 1)
    return red + 256 * green + 65536 * blue


class PanopticWriter:
    """Writes segments as `path` (JSON) and a folder of that name with a PNG file per image, one by one.

    The format of COCO's ground truth and of submissions to its server, to panopticapi and the like. What is written
    is read back by `read_panoptic` and `segments_of` exactly, but for scores, which the format does not have.

    Args:
        path: of the JSON file; it is written by `close`, the folder made when something is written to it.
        description: what the file says of itself under `info`.
        categories: those of all segments; of the segments that are written if None.

    Raises:
        ConfigError: a path without suffix, which is that of the folder (C09).
    """

    def __init__(
        self, path: str | Path, description: str | None = None, *, categories: Sequence[Category] | None = None
    ) -> None:
        self.path = Path(path)
        self.folder = self.path.with_suffix("")
        if self.folder == self.path:
            what = "PNG files go to a folder of the file's name without its suffix, and it has none"
            raise ConfigError(what, where=path, remedy=f"name it {self.path.name}.json", code="C09")
        self.info = {} if description is None else {"info": {"description": description}}
        self.images: list[ImageRecord] = []
        self.rows: list[dict[str, Any]] = []
        self.categories = () if categories is None else tuple(categories)

    def add(self, image: ImageRecord, segments: PanopticSegments, name: str) -> None:
        """Write the PNG file `name` of an image.

        Raises:
            ConfigError: another size than the image's, or a segment without pixels, which the format does not have.
        """
        if segments.size != (image.height, image.width):
            height, width = segments.size
            what = f"segments of {width}x{height} for an image of {image.width}x{image.height} pixels"
            raise ConfigError(what, where=image.file_name)
        info = _segment_rows(segments, image.file_name)
        self.folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rgb_of(segments.ids.numpy())).save(self.folder / name)
        self.images.append(image)
        self.rows.append({"image_id": image.id, "file_name": name, "segments_info": info})
        self.categories = segments.categories

    def close(self) -> None:
        """Write the JSON file."""
        rows = {"images": _image_rows(self.images), "annotations": self.rows}
        content = {**self.info, **rows, "categories": _category_rows(self.categories)}
        self.folder.mkdir(parents=True, exist_ok=True)
        replace_text(self.path, json.dumps(content, separators=(",", ":")))


def write_panoptic(path: str | Path, images: Sequence[ImageRecord], segments: Iterable[PanopticSegments]) -> Path:
    """Write the segments of all images of a data set, see `PanopticWriter`; returns the folder of PNG files.

    Args:
        images: what the segments are of, for instance `dataset.annotations.images`.
        segments: one for each image, in this order; made and written one by one.

    Raises:
        ConfigError: not one for each image, or as `PanopticWriter.add`.
    """
    writer = PanopticWriter(path)
    remaining = iter(segments)
    for image, name in zip(images, png_names(images), strict=True):
        found = next(remaining, None)
        if found is None:
            raise ConfigError(f"segments of {len(writer.rows)} images for {len(images)} images", where=path)
        writer.add(image, found, name)
    if next(remaining, None) is not None:
        raise ConfigError(f"segments of more than {len(images)} images for as many images", where=path)
    writer.close()
    return writer.folder


def png_names(images: Sequence[ImageRecord]) -> list[str]:
    """A name for the PNG file of each image: that of the image, or its id where two images have the same."""
    names = [PurePosixPath(image.file_name).stem + ".png" for image in images]
    return names if first_repeat(names) is None else [f"{image.id}.png" for image in images]


def _segment_rows(found: PanopticSegments, where: str) -> list[dict[str, Any]]:
    areas = found.areas.tolist()
    if 0 in areas:
        raise ConfigError(f"segment {areas.index(0) + 1} has no pixels", where=where, remedy="leave such segments out")
    crowd = [False] * len(found) if found.is_crowd is None else found.is_crowd.tolist()
    boxes = boxes_of(found.ids.numpy(), len(found)).astype(int)
    boxes[:, 2:] -= boxes[:, :2]
    columns = zip(found.labels.tolist(), areas, crowd, boxes.tolist(), strict=True)
    return [
        {"id": k, "category_id": found.categories[label].id, "iscrowd": int(is_crowd), "bbox": box, "area": area}
        for k, (label, area, is_crowd, box) in enumerate(columns, start=1)
    ]


def _read_ids(annotations: PanopticAnnotations, index: int) -> NDArray[np.int32]:
    """(H, W) the ids of the segments in the pixels of a PNG file."""
    path = annotations.segment_folder / annotations.files[index]
    with open_file(path) as file:
        head = file.read(26)
    # Other kinds of pixels would be turned into RGB on the way, and ids into other ids.
    bits, colour = (head[24], head[25]) if head[:8] == b"\x89PNG\r\n\x1a\n" and len(head) == 26 else (0, 0)
    if (bits, colour) != (8, 2):
        kinds = {0: "grey", 2: "RGB", 3: "palette", 4: "grey and alpha", 6: "RGBA"}
        what = f"PNG with {bits}-bit {kinds.get(colour, 'other')} pixels" if bits else "not a PNG file"
        raise unfitting(annotations, index, f"{what}, not RGB with 8 bits", None, "write id = R + 256 G + 65536 B")
    return ids_of(read_image(path).permute(1, 2, 0).numpy())


def _with_categories(annotations: PanopticAnnotations, categories: Sequence[Category]) -> PanopticAnnotations:
    """The annotations with labels in the order of `categories`; ids and the kind of class stay the file's."""
    order = order_of_categories(annotations.categories, categories, annotations.report)
    ordered = tuple(annotations.categories[label] for label in order)
    changed = [own.name for own, other in zip(ordered, categories, strict=True) if own.is_thing != other.is_thing]
    if changed:
        what = f"{changed[0]!r:.40} is a thing in one and stuff in the other, the model or training split"
        raise annotations.report.error("A42", what, "categories", remedy="give both the same isthing")
    labels = np.argsort(np.array(order))[annotations.segments.labels]
    return replace(annotations, categories=ordered, segments=replace(annotations.segments, labels=labels))


def _image_rows(images: Sequence[ImageRecord]) -> list[dict[str, Any]]:
    return [{"id": i.id, "file_name": i.file_name, "height": i.height, "width": i.width} for i in images]


def _category_rows(categories: Sequence[Category]) -> list[dict[str, Any]]:
    return [{"id": c.id, "name": c.name, "isthing": int(c.is_thing)} for c in categories]
