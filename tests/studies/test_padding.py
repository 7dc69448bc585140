"""What padding costs: nothing alone or cut off, and much where images of other shapes share a batch."""

import pytest

from command_line import run
from regard.data.coco.panoptic import open_panoptic
from regard.data.generated.shapes import ShapesConfig, write_shapes
from regard.data.transforms.detection import resize
from regard.studies.padding import evaluate_padding


def mixed(sample):
    """Every second image in double height."""
    return resize(sample, (128 if sample.image_id % 2 else 64, 64))


def test_padding(tmp_path, capsys):
    write_shapes(ShapesConfig(train=1, val=6, size=64), tmp_path / "data")
    dataset = open_panoptic(tmp_path / "data", "val")
    alone = evaluate_padding(dataset, 1, mixed)
    assert alone[0].stats == alone[1].stats and alone[0].stats["PQ"] > 0.8
    cut, squeezed = evaluate_padding(dataset, 2, mixed)
    assert cut.stats["PQ"] == pytest.approx(alone[0].stats["PQ"], abs=0.02)
    assert squeezed.stats["PQ"] < cut.stats["PQ"] - 0.2
    text = run(capsys, "study", "padding", "--data", tmp_path / "data", "--batch-sizes", "2").worked()
    assert "squeezed in" in text
