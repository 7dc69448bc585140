"""Videos: all frames, upright, at their times; what is no video is one line."""

from __future__ import annotations

import sys
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from refusals import refused
from regard.data.videos import VideoWriter, _upright, frame_rate, read_frames
from regard.errors import DataError, MachineError
from video_files import write_clip

av = pytest.importorskip("av")


@pytest.mark.parametrize("rate", [Fraction(25), Fraction(30000, 1001), Fraction(10)])
def test_frames_and_times(tmp_path, rate):
    images = [np.full((48, 64, 3), 10 * number, np.uint8) for number in range(20)]
    clip = write_clip(tmp_path / "a.mp4", images, rate)
    frames = list(read_frames(clip))
    assert len(frames) == 20 and frame_rate(clip) == rate
    for number, frame in enumerate(frames):
        assert frame.image.shape == (48, 64, 3) and frame.image.dtype == np.uint8
        assert abs(frame.image.mean() - 10 * number) < 6
        assert abs(frame.seconds - number / rate) < Fraction(1, 1000)


def test_frames_come_one_at_a_time(tmp_path):
    clip = write_clip(tmp_path / "a.mp4", [np.zeros((32, 32, 3), np.uint8)] * 50, Fraction(25))
    frames = read_frames(clip)
    assert next(frames).seconds == 0
    frames.close()


@pytest.mark.parametrize("size", [(64, 48), (63, 47), (320, 321)])
def test_writing_and_reading_again(tmp_path, size):
    """Times are kept, even ones without a fixed rate; odd sides lose a pixel."""
    seconds = [Fraction(0), Fraction(1, 30), Fraction(1, 10), Fraction(1), Fraction(101, 100)]
    with VideoWriter(tmp_path / "a.mp4", Fraction(30)) as writer:
        for number, second in enumerate(seconds):
            writer.add(Image.new("RGB", size, (50 * number, 0, 0)), second)
    frames = list(read_frames(tmp_path / "a.mp4"))
    assert [frame.image.shape[1::-1] for frame in frames] == [(size[0] // 2 * 2, size[1] // 2 * 2)] * 5
    for frame, second in zip(frames, seconds, strict=True):
        assert abs(frame.seconds - second) < Fraction(1, 1000)
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_an_interrupted_video_can_be_played(tmp_path):
    with pytest.raises(KeyboardInterrupt), VideoWriter(tmp_path / "a.mp4", Fraction(30)) as writer:
        for number in range(3):
            writer.add(Image.new("RGB", (64, 48)), Fraction(number, 30))
        raise KeyboardInterrupt
    assert len(list(read_frames(tmp_path / "a.mp4"))) == 3
    with VideoWriter(tmp_path / "none.mp4", Fraction(30)):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_what_is_no_video(tmp_path):
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    playlist = tmp_path / "list.mp4"
    playlist.write_text("#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n")
    whole = write_clip(tmp_path / "whole.mp4", [np.zeros((32, 32, 3), np.uint8)] * 9, Fraction(25)).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.mp4").touch()
    for name in ("text.mp4", "list.mp4", "cut.mp4", "empty.mp4"):
        with refused(DataError, name, code="I34"):
            list(read_frames(tmp_path / name))
    with refused(DataError, "none.mp4", code="I29"):
        list(read_frames(tmp_path / "none.mp4"))


def test_a_missing_camera():
    if Path("/dev/video99").exists():
        pytest.fail("a camera 99")
    with refused(MachineError, "/dev/video99"):
        next(read_frames("camera:99"))


def test_a_folder_that_is_missing(tmp_path):
    with refused(MachineError, "a.mp4"), VideoWriter(tmp_path / "none" / "a.mp4", Fraction(30)) as writer:
        writer.add(Image.new("RGB", (64, 48)), Fraction(0))


def test_without_av(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with refused(MachineError, "pip install av"):
        next(read_frames(tmp_path / "a.mp4"))


@pytest.mark.parametrize(("rotation", "turned"), [(0, 0), (-90, 3), (90, 1), (180, 2), (-180, 2)])
def test_frames_are_upright(rotation, turned):
    """A phone that is held upright stores -90: the player turns the picture clockwise."""
    pixels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    frame = SimpleNamespace(rotation=rotation, to_ndarray=lambda format: pixels)
    shown = _upright(frame)
    assert np.array_equal(shown, np.rot90(pixels, turned))
    if rotation == -90:
        assert np.array_equal(shown[0, -1], pixels[0, 0])  # the upper left corner comes to the upper right
