"""Segments in pictures: colours, borders, names."""

from __future__ import annotations

import itertools

import numpy as np
import torch

from regard.drawing import masks as mask_pictures
from regard.drawing.boxes import overlap
from regard.drawing.masks import SHARE, draw_segments

RED, BLUE = (248, 0, 0), (0, 158, 255)


def scene() -> tuple[torch.Tensor, torch.Tensor]:
    """A grey image of 400 x 500 pixels with two segments and a strip of none."""
    ids = torch.zeros(400, 500, dtype=torch.int64)
    ids[:, 200:] = 1
    ids[200:, 200:] = 2
    return torch.full((3, 400, 500), 100, dtype=torch.uint8), ids


def test_each_segment_has_its_colour():
    image, ids = scene()
    pixels = np.asarray(draw_segments(image, ids, ["", ""], [RED, BLUE])).astype(int)
    assert pixels.shape == (400, 500, 3)
    assert (pixels[:, :190] == 100).all()
    for place, color in (((50, 480), RED), ((390, 480), BLUE)):
        expected = [round(100 * (1 - SHARE) + value * SHARE) for value in color]
        assert np.abs(pixels[place] - expected).max() <= 1
    assert (pixels[50, 199] == 255).all() and (pixels[199, 480] == 255).all()  # borders


def test_equal_colours_are_told_apart_and_the_input_stays():
    image, ids = scene()
    before = image.clone()
    pixels = np.asarray(draw_segments(image, ids, ["", ""], [RED, RED])).astype(int)
    assert np.abs(pixels[50, 480] - pixels[390, 480]).max() > 20
    assert torch.equal(image, before)


def test_names_lie_in_their_segments_and_hide_no_other(monkeypatch):
    seen = []
    draw = mask_pictures.draw_tag
    monkeypatch.setattr(mask_pictures, "draw_tag", lambda pen, tag, size: (seen.append(tag), draw(pen, tag, size)))
    image, ids = scene()
    ids[100:104, 300:304] = 3  # too small for its name
    draw_segments(image, ids, ["sky", "road", "bird"], [RED, BLUE, RED], [0.9, 0.8, 0.7])
    assert {tag.text for tag in seen} == {"sky 0.90", "road 0.80"}
    for tag in seen:
        x, y = (tag.place[0] + tag.place[2]) // 2, (tag.place[1] + tag.place[3]) // 2
        assert ids[y, x] == (1 if tag.text.startswith("sky") else 2)
    assert not any(overlap(a.place, b.place) for a, b in itertools.combinations(seen, 2))


def test_small_images_are_enlarged_and_empty_segments_are_no_trouble():
    ids = torch.zeros(20, 30, dtype=torch.int64)
    ids[5:15, 5:25] = 1
    picture = draw_segments(torch.zeros(3, 20, 30, dtype=torch.uint8), ids, ["one", "none"], [RED, BLUE])
    assert min(picture.size) >= 320 and np.asarray(picture).max() > 0


def test_names_do_not_hide_many_small_segments(monkeypatch):
    """Names of a crowd get smaller, and only those that fit into their segment stay; a single one has its name."""
    seen = []
    monkeypatch.setattr(mask_pictures, "draw_tag", lambda pen, tag, size: seen.append((tag, size)))
    image = torch.full((3, 400, 500), 100, dtype=torch.uint8)
    ids = torch.ones(400, 500, dtype=torch.int64)
    ids[20:34, 20:34] = 2
    draw_segments(image, ids, ["background", "cell"], [RED, BLUE])
    assert [tag.text for tag, _ in seen] == ["background", "cell"][::-1]
    normal = seen[0][1]
    seen.clear()
    ids[:] = 1
    corners = list(itertools.product(range(10, 260, 30), range(10, 480, 60)))
    for number, (top, left) in enumerate(corners, start=2):
        ids[top : top + 14, left : left + 14] = number
    ids[280:380, 300:480] = len(corners) + 2
    draw_segments(image, ids, ["background", *["cell"] * (len(corners) + 1)], [RED] + [BLUE] * (len(corners) + 1))
    assert sorted(tag.text for tag, _ in seen) == ["background", "cell"]
    assert all(size < normal for _, size in seen)
    (cell,) = (tag for tag, _ in seen if tag.text == "cell")
    assert cell.place[1] >= 280 and cell.place[0] >= 300
