"""What a user may name as images."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from refusals import refused
from regard.data.sources import check_sources, expand, is_many, is_video, read_source, source_name
from regard.errors import DataError, ImageError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.jpg", "b.png", "deep/c.jpg", "deep/er/d.jpg", "x[1].jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6), (200, 10, 10)).save(tmp_path / name)
    (tmp_path / "clip.mp4").touch()
    (tmp_path / "notes.txt").touch()
    return tmp_path


def names(paths: list, folder: Path) -> list[str]:
    return [Path(path).relative_to(folder).as_posix() for path in paths]


def test_patterns(folder, monkeypatch):
    cases = {
        "*.jpg": ["a.jpg", "x[1].jpg"], "*.???": ["a.jpg", "b.png", "clip.mp4", "x[1].jpg"],
        "[ab].*": ["a.jpg", "b.png"],
        "**/*.jpg": ["a.jpg", "deep/c.jpg", "deep/er/d.jpg", "x[1].jpg"], "deep/*": ["deep/c.jpg"],
    }  # fmt: skip
    for pattern, found in cases.items():
        assert names(expand(f"{folder}/{pattern}"), folder) == found, pattern
    assert names(expand(str(folder / "x[1].jpg")), folder) == ["x[1].jpg"]  # a file of such a name
    monkeypatch.chdir(folder)
    assert expand("*.png") == [Path("b.png")]
    for pattern, word in (("*.gif", "no file"), ("*.txt", "no image")):
        with refused(DataError, pattern, word, code="I29"):
            expand(pattern)


def test_folders_and_files(folder):
    assert names(expand(folder), folder) == ["a.jpg", "b.png", "deep/c.jpg", "deep/er/d.jpg", "x[1].jpg"]
    assert expand(folder / "b.png") == [folder / "b.png"]
    with refused(ImageError, "none.jpg", code="I29"):
        expand(folder / "none.jpg")


def test_kinds(folder):
    assert [is_many(str(folder)), is_many("*.jpg"), is_many("http://a.b/*.jpg"), is_many("-")] == [
        True,
        True,
        False,
        False,
    ]
    videos = [
        is_video(source) for source in ("a.MP4", "camera:0", "http://a.b/c.mp4", "a.gif", Path("camera:0"), folder)
    ]
    assert videos == [True, True, False, False, False, False]
    assert [source_name(s) for s in ("-", "camera:2", "http://a.b/c.jpg?x=1", Path("d/e.jpg"))] == [
        "stdin", "camera-2", "c.jpg", "e.jpg",
    ]  # fmt: skip


def test_check_sources(folder):
    check_sources(["-", "camera:0", "http://a.b/c.jpg", str(folder), f"{folder}/*.jpg", str(folder / "a.jpg")])
    for wrong in (str(folder / "none.jpg"), f"{folder}/*.gif", str(folder / "none.mp4")):
        with refused(DataError, wrong, code="I29"):
            check_sources([wrong])


def test_standard_input(monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(file.getvalue())))
    assert np.array_equal(read_source("-").permute(1, 2, 0).numpy(), pixels)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"")))
    with refused(ImageError, "standard input", code="I01"):
        read_source("-")


def test_a_video_among_images(folder):
    with refused(ImageError, "clip.mp4", code="I31"):
        read_source(folder / "clip.mp4")
