"""A clip in, the same clip with boxes out; results frame by frame."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from command_line import run
from image_files import encode
from refusals import refused
from regard.data.videos import Frame, frame_rate, read_frames
from regard.errors import ConfigError, DataError
from regard.prediction.files import predict_files
from regard.prediction.options import PredictionOptions
from regard.prediction.predict import predict
from regard.results.detections import Detections
from run_files import small_detector, write_run
from video_files import write_clip

pytest.importorskip("av")
RATE = Fraction(25)


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    """Two seconds: a white square moves over black."""
    images = []
    for number in range(50):
        image = np.zeros((96, 128, 3), np.uint8)
        image[30:60, number : number + 30] = 255
        images.append(image)
    return write_clip(tmp_path_factory.mktemp("videos") / "clip.mp4", images, RATE)


@pytest.fixture
def net(monkeypatch):
    """A detector that says where the bright pixels are: its boxes are replaced by those of the frame."""
    made = small_detector()
    plain = made.forward

    def forward(images, *args, **options):
        output = plain(images, *args, **options)
        for row, pixels in enumerate(images.pixels):
            rows, columns = (pixels.mean(0) > 0.5).any(1).nonzero(), (pixels.mean(0) > 0.5).any(0).nonzero()
            height, width = pixels.shape[-2:]
            x0, x1 = columns.min() / width, (columns.max() + 1) / width
            y0, y1 = rows.min() / height, (rows.max() + 1) / height
            output.boxes[row, 0] = torch.stack(((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0))
            output.logits[row] = -9.0
            output.logits[row, :, -1] = 9.0
            output.logits[row, 0] = torch.tensor([-9.0, 9.0, -9.0, -9.0])
        return output

    monkeypatch.setattr(made, "forward", forward)
    return made


def test_results_of_frames(net, clip):
    results = predict(net, str(clip), batch_size=8)
    assert isinstance(results, Iterator)
    found = list(results)
    assert len(found) == 50
    for number, result in enumerate(found):
        assert isinstance(result, Detections) and result.names == ["dog"] and result.size == (96, 128)
        assert result.boxes[0].tolist() == pytest.approx([number, 30, number + 30, 60], abs=5)


def test_frames_are_read_as_they_are_asked_for(net, monkeypatch):
    """An endless camera: a batch at a time."""
    asked = []

    def endless(source):
        image = np.zeros((96, 128, 3), np.uint8)
        image[30:60, 20:50] = 255
        while True:
            asked.append(source)
            yield Frame(image, Fraction(len(asked), 30))

    monkeypatch.setattr("regard.prediction.predict.read_frames", endless)
    results = predict(net, "camera:0", batch_size=4)
    assert not asked
    for _ in range(6):
        assert next(results).names == ["dog"]
    assert asked == ["camera:0"] * 8


def test_an_annotated_clip(net, clip, tmp_path):
    """Same frames, same rate, same times, and the box is drawn where the square is."""
    lines = list(predict_files(net, [clip], output=tmp_path / "out", json_file=tmp_path / "found.json"))
    assert len(lines) == 50 and lines[25] == f"{clip} 1.00 s: 1 dog"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["clip.mp4"]
    drawn, plain = list(read_frames(tmp_path / "out" / "clip.mp4")), list(read_frames(clip))
    assert len(drawn) == len(plain) == 50 and frame_rate(tmp_path / "out" / "clip.mp4") == RATE
    for number, (frame, original) in enumerate(zip(drawn, plain, strict=True)):
        assert abs(frame.seconds - original.seconds) < Fraction(1, 1000)
        factor = frame.image.shape[0] // 96
        assert frame.image.shape == (96 * factor, 128 * factor, 3)
        colours = frame.image.astype(int).max(2) - frame.image.astype(int).min(2)  # the clip is grey
        lower = colours[60 * factor - 4 : 60 * factor + 4, (number + 3) * factor : (number + 27) * factor]
        assert (lower.max(0) > 80).mean() > 0.9, number
        if number < 25:
            assert (colours[-8 * factor :, -30 * factor :] < 60).all()  # nothing elsewhere
    rows = json.loads((tmp_path / "found.json").read_text())
    assert [(row["image_id"], row["frame"]) for row in rows] == [(n + 1, n) for n in range(50)]
    assert rows[10]["seconds"] == pytest.approx(0.4, abs=1e-3) and rows[10]["file_name"] == str(clip)


def test_images_and_videos_together(net, clip, tmp_path):
    bright = np.zeros((96, 128, 3), np.uint8)
    bright[30:60, 20:50] = 255
    (tmp_path / "clip.png").write_bytes(encode(bright, "PNG"))
    (tmp_path / "bad.mp4").write_text("no video")
    lines = []
    with refused(DataError, "bad.mp4", code="I34"):
        for line in predict_files(net, [tmp_path / "bad.mp4", clip, tmp_path / "clip.png"], output=tmp_path / "out"):
            lines.append(line)
    assert len(lines) == 51 and lines[0] == f"{tmp_path / 'clip.png'}: 1 dog"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["clip.jpg", "clip.mp4"]


def test_the_clip_of_the_user_is_not_replaced(net, clip):
    before = clip.read_bytes()
    with refused(ConfigError, "clip.mp4", code="C11"):
        list(predict_files(net, [clip], output=clip.parent))
    assert clip.read_bytes() == before and [path.name for path in clip.parent.iterdir()] == ["clip.mp4"]


def test_only_a_drawn_video_is_replaced(net, clip, tmp_path):
    """As for pictures: a video of the user stays, whatever it holds."""
    target = tmp_path / "out" / "clip.mp4"
    target.parent.mkdir()
    for content in (clip.read_bytes(), b"text", b""):
        target.write_bytes(content)
        for output in (target.parent, target):
            with refused(ConfigError, target, code="C11"):
                list(predict_files(net, [clip], output=output))
        assert target.read_bytes() == content
    target.unlink()
    for output in (target.parent, target):
        assert len(list(predict_files(net, [clip], output=output))) == 50
        assert len(list(read_frames(target))) == 50
        target.with_name("x.jpg").write_bytes(target.read_bytes())  # whatever its name says
    assert sorted(path.name for path in target.parent.iterdir()) == ["clip.mp4", "x.jpg"]
    with refused(ConfigError, "clip.jpg", "clip.mp4", code="C09"):
        list(predict_files(net, [clip], output=tmp_path / "clip.jpg"))


def test_a_recording_of_a_camera_is_never_replaced(net, clip, tmp_path, monkeypatch):
    """It cannot be made again."""
    frames = list(read_frames(clip))[:3]
    monkeypatch.setattr("regard.prediction.videos.read_frames", lambda source: iter(frames))
    for number in range(3):
        list(predict_files(net, ["camera:0"], output=tmp_path / "out"))
        assert len(list((tmp_path / "out").iterdir())) == number + 1
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"camera-0.mp4", "camera-0-2.mp4", "camera-0-3.mp4"}
    for source in ("camera:0", shutil.copy(clip, tmp_path / "camera-0.mp4")):
        recording = tmp_path / "out" / "camera-0.mp4"
        before = recording.read_bytes()
        with refused(ConfigError, "camera-0.mp4", code="C11"):
            list(predict_files(net, [source], output=recording))
        assert recording.read_bytes() == before


def test_the_command(clip, tmp_path, capsys):
    write_run(tmp_path / "run", small_detector(), {1: 0.5})
    out = tmp_path / "out"
    said = run(
        capsys, "predict", tmp_path / "run", clip, "--output", out, "--threshold", "0", "--labels", "off"
    ).worked()
    assert len(said.splitlines()) == 50 and len(list(read_frames(out / "clip.mp4"))) == 50
    run(capsys, "predict", tmp_path / "run", "camera:99").refused(6, None, "/dev/video99")


def test_pictures_of_frames_follow_the_options(net, clip, tmp_path):
    shown = {}
    for labels in ("on", "off"):
        list(predict_files(net, [clip], output=tmp_path / labels, options=PredictionOptions(labels=labels)))
        frame = next(read_frames(tmp_path / labels / "clip.mp4")).image.astype(int)
        shown[labels] = ((frame.max(2) - frame.min(2)) > 80).sum()
    assert shown["on"] > 1.5 * shown["off"] > 0
    assert Image.fromarray(next(read_frames(clip)).image).size == (128, 96)
