"""A job that was killed goes on: what is recorded is not done again, and nothing else counts as done."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from photo_folder import write_photos
from refusals import refused
from regard.errors import ConfigError
from regard.models.build import create
from regard.prediction import files
from regard.prediction.files import predict_files
from regard.prediction.options import JobOptions, PredictionOptions
from regard.prediction.records import records_folder
from run_files import small_detector

ALONE = JobOptions(shard="0/1")


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    return write_photos(tmp_path / "photos", 8, ((40, 60), (60, 40)))


def begun(net, photos, target, *, shard: str | None = "0/1", threshold=0.0, output=None) -> Iterator[str]:
    options = PredictionOptions(threshold=threshold)
    job_options = JobOptions(shard=shard)
    return predict_files(net, photos, json_file=target, options=options, batch_size=1, job=job_options, output=output)


def stopped_after(number: int, *job, **options) -> None:
    """Do the first images of a job, and no more."""
    lines = begun(*job, **options)
    for _ in range(number):
        next(lines)
    lines.close()


@pytest.fixture
def job(photos, tmp_path) -> tuple:
    """A model, images and a file of results. Five images are done."""
    job = small_detector(), photos, tmp_path / "found.json"
    stopped_after(5, *job)
    return job


def names(lines) -> list[str]:
    return [Path(line.split(": ")[0]).stem for line in lines]


def test_what_is_recorded_is_not_done_again(job, tmp_path, capsys):
    net, photos, target = job
    assert names(begun(*job)) == ["0005", "0006", "0007"]
    assert "5 of 8 images are done already" in capsys.readouterr().err
    assert list(begun(*job)) == []
    assert list(begun(*job, shard=None)) == []
    list(begun(net, photos, tmp_path / "plain.json", shard=None))
    assert target.read_bytes() == (tmp_path / "plain.json").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["found.json", "photos", "plain.json"]


def test_one_process_goes_on_with_what_shards_have_done(job):
    assert names(begun(*job, shard=None)) == ["0005", "0006", "0007"]


def test_a_line_that_is_cut_off_is_not_read(job):
    (record,) = records_folder(job[2]).iterdir()
    record.write_bytes(record.read_bytes()[:-10])
    assert names(begun(*job)) == ["0004", "0005", "0006", "0007"]


def test_an_image_that_changed_is_done_again(job):
    os.utime(job[1][2], (1, 1))
    assert names(begun(*job)) == ["0002", "0005", "0006", "0007"]


def test_records_of_another_job_are_not_used(job, capsys):
    net, photos, target = job
    everything = [path.stem for path in photos]
    other = small_detector(seed=1)
    with torch.no_grad():
        other.class_embed.bias.add_(0.1)
    assert names(begun(other, photos, target)) == everything
    assert "not used, and kept: 1 file of" in capsys.readouterr().err
    assert names(begun(net, photos, target, threshold=0.1)) == everything
    assert names(begun(net, photos[:-1], target)) == everything[:-1]
    assert names(begun(*job)) == ["0005", "0006", "0007"]  # still there
    list(begun(*job, shard=None))
    assert names(begun(other, photos, target)) == []  # nor did the join delete them


def test_a_join_with_another_option_is_refused_and_keeps_the_work(job, capsys):
    folder = records_folder(job[2])
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with refused(ConfigError, folder, "without --shard", f"rm -r {folder}", code="C13"):
        list(begun(*job, shard=None, threshold=0.1))
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert names(begun(*job, shard=None)) == ["0005", "0006", "0007"]
    assert not folder.exists()


def test_records_that_another_process_deletes_meanwhile(job):
    (record,) = records_folder(job[2]).iterdir()
    (record.parent / f"{record.name[:16]}-{'0' * 32}.jsonl").symlink_to("deleted")  # listed, and not there
    assert names(begun(*job)) == ["0005", "0006", "0007"]


@pytest.mark.parametrize("are_pictures_there", [True, False])
def test_a_join_without_output_takes_shards_that_drew(photos, tmp_path, are_pictures_there):
    job, output = (small_detector(), photos, tmp_path / "found.json"), tmp_path / "drawn"
    for shard in ("0/2", "1/2"):
        list(begun(*job, shard=shard, output=output))
    for picture in output.iterdir() if not are_pictures_there else ():
        picture.unlink()
    assert names(begun(*job, shard=None)) == []


def test_an_image_whose_picture_is_missing_is_done_again(photos, tmp_path):
    job, output = (small_detector(), photos, tmp_path / "found.json"), tmp_path / "drawn"
    stopped_after(5, *job, output=output)
    (output / "0001.jpg").unlink()
    assert names(begun(*job, output=output)) == ["0001", "0005", "0006", "0007"]
    assert len(list(output.iterdir())) == 8


def test_what_another_job_wrote_over_is_done_again(photos, tmp_path):
    """Pictures and PNG files: other options gave them other content, which does not go with the rows recorded."""
    panoptic = create("detr_tiny_panoptic").eval()
    panoptic.card = replace(panoptic.card, panoptic=True)
    for net, output in ((small_detector(), tmp_path / "drawn"), (panoptic, None)):
        job = net, photos[:3], tmp_path / net.card.name / "found.json"
        list(begun(*job, output=output))
        assert names(begun(*job, output=output)) == []
        assert names(begun(*job, output=output, threshold=1.0)) == ["0000", "0001", "0002"]
        assert names(begun(*job, output=output)) == ["0000", "0001", "0002"]


def test_a_plain_job_keeps_no_records(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "job_of", lambda *args: pytest.fail("the weights are read for nothing"))
    stopped_after(3, small_detector(), photos, tmp_path / "found.json", shard=None)
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_files_of_others_stay(job):
    folder = records_folder(job[2])
    (folder / "mine.jsonl").write_text("{}")
    assert len(list(begun(*job, shard=None))) == 3
    assert [path.name for path in folder.iterdir()] == ["mine.jsonl"]
