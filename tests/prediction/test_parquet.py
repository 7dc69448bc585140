"""`--parquet`: a table with the values of the JSON file."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from photo_folder import write_photos
from refusals import refused
from regard.errors import ConfigError
from regard.models.build import create
from regard.prediction.files import predict_files
from regard.prediction.options import JobOptions, PredictionOptions
from run_files import small_detector


@pytest.mark.parametrize("kind", ["detector", "masks", "classifier", "nothing"])
def test_a_table_has_the_values_of_the_json_file(tmp_path, kind):
    photos = write_photos(tmp_path / "photos", 4, ((40, 60), (60, 40)))
    nets = {"classifier": lambda: create("deit_nano_patch4_32"), "masks": lambda: create("detr_tiny_panoptic").eval()}
    net = nets.get(kind, small_detector)()
    options = PredictionOptions(threshold=1.0 if kind == "nothing" else 0.0)
    target = tmp_path / "found.parquet"
    list(predict_files(net, photos, json_file=tmp_path / "found.json", options=options))
    for _ in range(2):  # an earlier result is replaced
        list(predict_files(net, photos, options=options, job=JobOptions(parquet=target)))
    table = parquet.read_table(target)
    assert table.to_pylist() == json.loads((tmp_path / "found.json").read_text())
    assert "classes" in table.column_names if kind == "classifier" else "bbox" in table.column_names


def test_only_an_earlier_table_is_replaced(tmp_path):
    photos, target = write_photos(tmp_path / "photos", 1, ((40, 60),)), tmp_path / "mine.parquet"
    parquet.write_table(pa.table({"file_name": ["a"]}), target)
    for content in (target.read_bytes(), b"PAR1", b"PAR1 and more", b""):
        target.write_bytes(content)
        with refused(ConfigError, target, code="C11"):
            list(predict_files(small_detector(), photos, job=JobOptions(parquet=target)))
        assert target.read_bytes() == content


def test_segments_have_no_table(tmp_path):
    net = create("detr_tiny_panoptic").eval()
    net.card = net.card.__class__(**{**vars(net.card), "panoptic": True})
    photos = write_photos(tmp_path / "photos", 1, ((40, 60),))
    with refused(ConfigError, "--json", code="C09"):
        list(predict_files(net, photos, job=JobOptions(parquet=Path(tmp_path / "a.parquet"))))
