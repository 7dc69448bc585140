"""Images in lanes: the results of the plain path in the order of the images, within bounded memory."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from regard.data.coco.panoptic_png import ids_of
from regard.drawing.boxes import encode_picture
from regard.errors import DataError, DivergedError
from regard.models.build import create
from regard.prediction import lanes
from regard.prediction.files import predict_files
from regard.prediction.lanes import Planned, in_batches, in_lanes, planned
from regard.prediction.options import PredictionOptions
from regard.prediction.predict import draw, predict_each
from regard.prediction.progress import progress_bar
from run_files import small_detector

SIZES = [(40, 60), (60, 40), (40, 60), (33, 47), (80, 120), (40, 60), (60, 40), (64, 64), (40, 60)]


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    paths = []
    for number, (height, width) in enumerate(SIZES):
        coarse = Image.fromarray(rng.integers(0, 256, (4, 6, 3), np.uint8))
        paths.append(tmp_path / "photos" / f"{number}.png")
        paths[-1].parent.mkdir(exist_ok=True)
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(paths[-1])
    return paths


@pytest.fixture(params=[1, 2, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    assert torch.get_num_threads() == request.param  # as it was
    torch.set_num_threads(before)


def images(*sizes: tuple[int, int]) -> list[Planned]:
    return [Planned(number, str(number), size, size[0] * size[1]) for number, size in enumerate(sizes)]


def numbers(batches: Sequence[Sequence[Planned]]) -> list[list[int]]:
    return [[image.number for image in batch] for batch in batches]


# Results


@pytest.mark.parametrize("batch_size", [None, 1, 3])
def test_detections_are_those_of_the_plain_path(photos, tmp_path, threads, batch_size):
    net, options = small_detector(), PredictionOptions(threshold=0.0)
    plain = list(predict_each(net, photos, options=options))
    output, target = tmp_path / "drawn", tmp_path / "found.json"
    lines = list(predict_files(net, photos, output=output, json_file=target, options=options, batch_size=batch_size))
    assert lines == [f"{path}: {result.summary()}" for path, result in zip(photos, plain, strict=True)]
    rows = json.loads(target.read_text())
    expected = [row for number, result in enumerate(plain, start=1) for row in result.to_coco(number)]
    assert [row["image_id"] for row in rows] == [row["image_id"] for row in expected]
    for name in ("score", "bbox"):
        assert np.allclose([row[name] for row in rows], [row[name] for row in expected], atol=1e-3)
    for path, result in zip(photos, plain, strict=True):
        drawn = np.asarray(Image.open(output / f"{path.stem}.jpg")).astype(int)
        alone = tmp_path / "alone.jpg"
        alone.write_bytes(encode_picture(draw(result, options), alone))
        # Boxes that differ in the last digits may round to another pixel.
        assert (np.abs(drawn - np.asarray(Image.open(alone))).max(-1) > 24).mean() < 0.02


def test_one_image_at_a_time_gives_equal_bits(photos, tmp_path):
    net, options = small_detector(), PredictionOptions(threshold=0.0)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        plain = list(predict_each(net, photos, options=options))
        list(predict_files(net, photos, json_file=tmp_path / "found.json", options=options, batch_size=1))
    finally:
        torch.set_num_threads(before)
    rows = [row for number, result in enumerate(plain, start=1) for row in result.to_coco(number)]
    found = json.loads((tmp_path / "found.json").read_text())
    assert [(row["score"], row["bbox"]) for row in found] == [(row["score"], row["bbox"]) for row in rows]


def test_classes_and_segments(photos, tmp_path, threads):
    net = create("deit_nano_patch4_32")
    list(predict_files(net, photos, json_file=tmp_path / "classes.json"))
    rows = json.loads((tmp_path / "classes.json").read_text())
    for row, path, result in zip(rows, photos, predict_each(net, photos), strict=True):
        assert row["file_name"] == str(path)
        assert np.allclose([c["score"] for c in row["classes"]], [c["score"] for c in result.to_dicts(5)], atol=1e-5)

    net = create("detr_tiny_panoptic").eval()
    net.card = replace(net.card, panoptic=True)
    options = PredictionOptions(threshold=0.0)
    list(predict_files(net, photos, json_file=tmp_path / "segments.json", options=options))
    for path, result in zip(photos, predict_each(net, photos, options=options), strict=True):
        png = ids_of(np.asarray(Image.open(tmp_path / "segments" / f"{path.stem}.png")))
        assert (png == result.ids.numpy()).mean() > 0.99


def test_broken_images_in_their_turn(photos, tmp_path, threads):
    for number in (2, 5):
        photos[number].write_bytes(b"")
    lines = []
    with pytest.raises(DataError) as caught:
        for line in predict_files(small_detector(), photos, json_file=tmp_path / "found.json"):
            lines.append(line)
    whole = [path for number, path in enumerate(photos) if number not in (2, 5)]
    assert [line.split(":")[0] for line in lines[:-1]] == [str(path) for path in whole]
    assert str(photos[2]) in caught.value.line and str(photos[5]) in lines[-1]


def test_weights_that_are_not_finite_are_told(photos, threads):
    net = small_detector()
    with torch.no_grad():
        net.bbox_embed.last.bias.fill_(float("nan"))
    with pytest.raises(DivergedError):
        list(predict_files(net, photos, options=PredictionOptions(threshold=0.0)))


# Batches


def test_batches_have_one_shape():
    a, b = (32, 48), (48, 32)
    assert numbers(in_batches(images(a, b, a, a, b, b, a), 2)) == [[0, 2], [1, 4], [3, 6], [5]]
    assert numbers(in_batches(images(a, b, a), 1)) == [[0], [1], [2]]
    assert numbers(in_batches(images(*[a] * 20), None)) == [list(range(16)), [16, 17, 18, 19]]  # small ones share
    assert numbers(in_batches(images((800, 1066), (800, 1066)), None)) == [[0], [1]]  # large ones do not
    alone = Planned(0, "-", None, 100)
    assert numbers(in_batches([alone, alone._replace(number=1)], 8)) == [[0], [1]]


def test_an_image_waits_for_few_others(monkeypatch):
    monkeypatch.setattr(lanes, "WAIT", 5)
    a, b = (32, 48), (48, 32)
    batches = numbers(in_batches(images(b, *[a] * 12), 2))
    assert [0] in batches[:4] and sorted(n for batch in batches for n in batch) == list(range(13))


def test_batches_are_bounded_in_pixels():
    shape, pixels = (224, 224), lanes.BATCH_PIXELS // 3 + 1
    large = [Planned(number, "", shape, pixels) for number in range(5)]
    assert numbers(in_batches(large, 8)) == [[0, 1], [2, 3], [4]]
    assert numbers(in_batches([large[0]._replace(pixels=10 * lanes.BATCH_PIXELS)], 8)) == [[0]]


def test_plans_come_from_headers(photos):
    photos[1].write_bytes(b"no image")
    found = list(planned([*photos[:2], "https://example.org/a.jpg"], lambda size: (size[0] * 2, size[1] * 2)))
    assert [(image.shape, image.pixels) for image in found] == [
        ((80, 120), lanes.LEAST), (None, lanes.LEAST), (None, lanes.UNKNOWN),
    ]  # fmt: skip


# Threads


def test_look_ahead_is_bounded_in_pixels(monkeypatch):
    """However slow the first image is, the others do not run ahead of it without end."""
    monkeypatch.setattr(lanes, "BATCH_PIXELS", 100)
    started, release = [], threading.Event()

    def work(batch):
        started.append(batch[0].number)
        if batch[0].number == 0:
            release.wait(20)
        return [image.number for image in batch]

    batches = [[Planned(number, "", None, 50)] for number in range(100)]
    results = in_lanes(batches, work, 2)
    first = []
    reader = threading.Thread(target=lambda: first.append(next(results)))
    reader.start()
    time.sleep(0.5)
    limit = 2 * lanes.BATCHES_AHEAD * 100 // 50
    assert len(started) <= limit
    release.set()
    reader.join()
    assert first + list(results) == list(range(100))


def test_results_come_in_order_whatever_ends_first():
    batches = [[Planned(n, "", None, 1) for n in group] for group in ([0, 3], [1, 5], [2], [4])]

    def work(batch):
        time.sleep(0.05 if batch[0].number == 0 else 0)
        return [image.number for image in batch]

    assert list(in_lanes(batches, work, 3)) == list(range(6))


def test_an_exception_comes_after_the_results_before_it():
    def work(batch):
        if batch[0].number == 3:
            raise ZeroDivisionError
        time.sleep(0.01)
        return [batch[0].number]

    found = []
    with pytest.raises(ZeroDivisionError):
        for result in in_lanes([[Planned(n, "", None, 1)] for n in range(9)], work, 2):
            found.append(result)
    assert found == [0, 1, 2] and not [t for t in threading.enumerate() if t.name.startswith("regard-predict")]


def test_an_interrupt_waits_for_no_lane():
    release = threading.Event()

    def batches():
        yield [Planned(0, "", None, 1)]
        raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        list(in_lanes(batches(), lambda batch: [release.wait(20)], 1))
    assert time.monotonic() - started < 10
    release.set()


def lanes_alive() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("regard-predict")]


def test_no_lane_works_on_after_a_picture_that_cannot_be_written(photos, tmp_path, monkeypatch):
    """On a full disk the images that wait would be computed before the command ends."""

    def fail(data, path):
        raise OSError("No space left on device")

    monkeypatch.setattr("regard.prediction.job.write_picture", fail)
    with pytest.raises(OSError, match="No space"):
        list(predict_files(small_detector(), photos, output=tmp_path / "drawn", batch_size=1))
    assert not lanes_alive()  # while the exception, with its frames, is still here


def test_no_lane_works_on_for_a_reader_that_has_left(photos):
    lines = predict_files(small_detector(), photos, batch_size=1)
    assert "0.png" in next(lines)
    lines.close()
    assert not lanes_alive()


def test_threads_share_the_cores():
    before, seen = torch.get_num_threads(), []
    torch.set_num_threads(4)
    try:
        list(in_lanes([[Planned(0, "", None, 1)]], lambda batch: [seen.append(torch.get_num_threads())], 2))
        assert seen == [2] and torch.get_num_threads() == 4
        assert lanes.lane_count(1) == 1 and lanes.lane_count(100) == 4
    finally:
        torch.set_num_threads(before)


def test_the_bar_is_for_terminals(capsys, monkeypatch):
    with progress_bar(3) as advance:
        advance()
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    with progress_bar(3) as advance:
        print("a line of results")
        for _ in range(3):
            advance()
    shown = capsys.readouterr()
    assert shown.out == "a line of results\n" and "3/3" in shown.err
