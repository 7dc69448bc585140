"""What `regard data check` looks for among objects that could be trained on as they are."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from regard.data.coco.annotations import CocoAnnotations
from regard.data.report import Issue
from regard.errors import HAS, counted

_MANY = 100  # DETR's object queries


def check_objects(annotations: CocoAnnotations) -> Iterator[Issue]:
    """Warn of objects that are the same (A52), and tell of images with more objects than DETR has queries (A43)."""
    objects = annotations.objects
    rows = np.flatnonzero(objects.is_target)
    image_of = np.repeat(np.arange(len(annotations.images)), np.diff(annotations.first_row))
    columns = (image_of[:, None], objects.labels[:, None], objects.boxes_xywh)
    table = np.ascontiguousarray(np.concatenate(columns, axis=1)[rows] + 0.0)
    keys = table.view(np.dtype((np.void, table.itemsize * 6))).ravel()
    _, first = np.unique(keys, return_index=True)
    again = np.delete(rows, first).tolist()
    if again:
        places = [annotations.report.at("annotations", objects.row_in_file(row), "bbox") for row in again[:100]]
        what = f"{counted(len(again), 'object', verb=HAS)} the image, class and box of another one"
        yield Issue("A52", "warn", what, places[0], len(again), tuple(places[1:]), "remove the copies")
    counts = annotations.count_per_image(objects.is_target)
    if counts.max() > _MANY:
        what = f"up to {counts.max()} objects in an image: a detector needs as many queries (num_queries)"
        yield Issue("A43", "note", what, annotations.images[int(counts.argmax())].file_name or str(annotations.path))
