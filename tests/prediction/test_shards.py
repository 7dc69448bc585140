"""`--shard I/N`: each image in one shard, and what the shards recorded joined to the file of one process."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from command_line import run
from photo_folder import write_photos
from refusals import refused
from regard.errors import ConfigError, DataError
from regard.models.build import create
from regard.prediction import writers
from regard.prediction.files import predict_files
from regard.prediction.options import JobOptions, PredictionOptions
from regard.prediction.records import records_folder
from regard.prediction.shards import Shard, check_job_options, parse_shard
from run_files import small_detector, write_run

EVERYTHING = PredictionOptions(threshold=0.0)
SHAPES = ((40, 60), (60, 40), (33, 47))


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    return write_photos(tmp_path / "photos", 10, SHAPES)


def lines_of(net, photos, target, shard=None, **options) -> list[str]:
    """The lines of `predict_files`, one image a batch, so that results are equal to the last bit."""
    job_options = JobOptions(shard=shard)
    return list(
        predict_files(net, photos, json_file=target, options=EVERYTHING, batch_size=1, job=job_options, **options)
    )


@pytest.mark.parametrize("parts", [1, 2, 3, 10, 13])
@pytest.mark.parametrize("images", [0, 1, 10])
def test_each_image_is_in_one_shard(parts, images):
    shards = [list(Shard(number, parts).numbers(images)) for number in range(parts)]
    assert sorted(number for shard in shards for number in shard) == list(range(images))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


@pytest.mark.parametrize("parts", [1, 3, 13])  # one process, several, more than there are images
def test_joined_shards_are_the_file_of_one_process(photos, tmp_path, capsys, parts):
    net, plain, target = small_detector(), tmp_path / "plain.json", tmp_path / "found.json"
    expected = lines_of(net, photos, plain)
    told = [lines_of(net, photos, target, f"{number}/{parts}") for number in reversed(range(parts))]
    assert sorted(line for lines in told for line in lines) == expected and not target.exists()
    assert len(list(records_folder(target).iterdir())) == min(parts, len(photos))
    capsys.readouterr()
    assert lines_of(net, photos, target) == []
    assert "10 of 10 images are done already" in capsys.readouterr().err
    assert target.read_bytes() == plain.read_bytes() and not records_folder(target).exists()


def test_classes_and_segments_are_joined(photos, tmp_path):
    panoptic = create("detr_tiny_panoptic").eval()
    panoptic.card = replace(panoptic.card, panoptic=True)
    for net in (create("deit_nano_patch4_32"), panoptic):
        for folder, shards in (("plain", [None]), ("joined", ["1/2", "0/2", None])):
            for shard in shards:
                lines_of(net, photos[:4], tmp_path / net.card.name / folder / "found.json", shard)
        plain, joined = (
            {path.relative_to(tmp_path / net.card.name / folder): path.read_bytes() for path in files if path.is_file()}
            for folder in ("plain", "joined")
            for files in [sorted((tmp_path / net.card.name / folder).rglob("*"))]
        )
        assert plain == joined and len(plain) == (5 if net is panoptic else 1)


def test_a_shard_that_begins_while_another_writes_its_first_png_file(photos, tmp_path, monkeypatch):
    """The other one announces its files, and writes one, just after this one has looked for announced files."""
    net, target = create("detr_tiny_panoptic").eval(), tmp_path / "found.json"
    net.card = replace(net.card, panoptic=True)
    read = writers.png_names

    def read_too_soon(path: Path) -> set[str]:
        names = read(path)
        monkeypatch.setattr(writers, "png_names", read)
        assert len(lines_of(net, photos[:4], target, "0/2")) == 2
        return names

    monkeypatch.setattr(writers, "png_names", read_too_soon)
    assert len(lines_of(net, photos[:4], target, "1/2")) == 2
    assert lines_of(net, photos[:4], target) == [] and len(list((tmp_path / "found").iterdir())) == 4


def test_a_shard_without_images_is_no_failure(photos, tmp_path, capsys):
    assert lines_of(small_detector(), photos[:2], tmp_path / "found.json", "2/3") == []
    assert "shard 2/3 is done: 0 of 2 images" in capsys.readouterr().err


def test_pictures_of_shards(photos, tmp_path):
    for shard in ("0/2", "1/2"):
        lines_of(small_detector(), [*photos, *photos], None, shard, output=tmp_path / "drawn")
    assert sorted(path.stem for path in (tmp_path / "drawn").iterdir()) == [path.stem for path in photos]


def test_an_image_that_cannot_be_read_is_told_by_its_shard_and_at_the_join(photos, tmp_path):
    net, target = small_detector(), tmp_path / "found.json"
    photos[3].write_bytes(b"")
    with refused(DataError, photos[3], code="I01"):
        lines_of(net, photos, tmp_path / "plain.json")
    lines_of(net, photos, target, "0/2")
    for shard in ("1/2", None):
        with refused(DataError, photos[3], code="I01"):
            lines_of(net, photos, target, shard)
    assert target.read_bytes() == (tmp_path / "plain.json").read_bytes()


@pytest.mark.parametrize(
    ("text", "code"),
    [("3", "C02"), ("a/b", "C02"), ("", "C02"), ("-1/3", "C02"), ("1/3/5", "C02"), ("1 /3", "C02"), ("٣/٤", "C02"),
     ("3/3", "C03"), ("0/0", "C03"), ("1/0", "C03")],
)  # fmt: skip
def test_wrong_shards(text, code):
    with refused(ConfigError, text, code=code):
        parse_shard(text)


def test_what_processes_cannot_share():
    for files in (["-"], ["camera:0"], [Path("clip.mp4")]):
        for job in (JobOptions(shard="0/2"), JobOptions(engine="ray")):
            with refused(ConfigError, files[0], code="C09"):
                check_job_options(job, files, None)
        assert check_job_options(JobOptions(), files, None) is None
    with refused(ConfigError, "--shard 0/2", code="C09"):
        check_job_options(JobOptions(shard="0/2", engine="ray"), [], None)
    with refused(ConfigError, "'dask'", "ray", code="C02"):
        check_job_options(JobOptions(engine="dask"), [], None)  # type: ignore[arg-type]
    with refused(ConfigError, "--parquet", code="C09"):
        check_job_options(JobOptions(parquet=Path("a.parquet")), [], Path("a.json"))


def test_the_command(photos, tmp_path, capsys, monkeypatch):
    write_run(tmp_path / "run", small_detector(), {1: 0.5})
    words = ["predict", tmp_path / "run", photos[0].parent, "--threshold", "0", "--json", tmp_path / "found.json"]
    for shard in ("0/2", "1/2"):
        assert run(capsys, *words, "--shard", shard).worked().count("\n") == 5
    assert run(capsys, *words).worked() == "" and (tmp_path / "found.json").exists()
    run(capsys, *words, "--shard", "2/2").refused(2, "C03", "shard=2/2", "0/2 to 1/2")
    run(capsys, *words, "--shard", "one").refused(2, "C02", "shard='one'", "--shard 0/8")
    run(capsys, *words, "--engine", "spark").refused(2, None)
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    run(capsys, *words, "--engine", "ray").refused(6, None, "ray", "install 'ray[data]'")
    table = [*words[:-2], "--parquet", tmp_path / "found.parquet"]
    run(capsys, *table).refused(6, None, "install pyarrow")
