"""The benchmark of large data opens what it writes, and gives a row for each kind of data."""

import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from regard.benchmarks.data import run, table, write_coco
from regard.data.coco.dataset import open_detection


def test_generated_outlines_are_like_those_of_coco(tmp_path: Path) -> None:
    write_coco(tmp_path, 40, 3000, outlined=True)
    data = open_detection(tmp_path, "train", masks=True)
    assert [issue.code for issue in data.annotations.report.issues if issue.severity == "error"] == []
    objects = data.annotations.objects
    assert len(data) == 40 and len(objects.labels) == 3000 and objects.has_outline.all()
    assert 0.005 < objects.is_crowd.mean() < 0.025
    lengths = [len(polygon) for k in range(3000) if not objects.is_crowd[k] for polygon in objects.segmentation(k)]
    assert 20 <= np.quantile(lengths, 0.25) < np.quantile(lengths, 0.75) <= 64


def test_run_and_table() -> None:
    pytest.importorskip("pycocotools")
    rows = run(1, num_images=3, num_objects=20, num_classes=2, num_files=8)
    assert [row.peer for row in rows] == ["pycocotools", "pycocotools", "torchvision"]
    assert all(row.ratio == row.peer_seconds / row.regard_seconds > 0 for row in rows)
    text = io.StringIO()
    Console(file=text, width=160).print(table(rows))
    assert f"{rows[0].ratio:.2f}x" in text.getvalue()
