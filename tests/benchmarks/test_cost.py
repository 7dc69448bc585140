"""Curves of cost: operations against formulas, and what grows."""

import io

from PIL import Image
from rich.console import Console

from regard.benchmarks import cost
from regard.benchmarks.cost import CLASSIFIER, Point, draw, points, run, table

DETECTOR = "detr_tiny"  # that of the benchmark is larger, and costs grow alike


def test_operations_times_and_picture(tmp_path, monkeypatch):
    monkeypatch.setattr(cost, "DETECTOR", DETECTOR)
    measured = [
        Point(CLASSIFIER, "images", 1, (1, 32, 32)),
        Point(CLASSIFIER, "images", 2, (2, 32, 32)),
        Point(DETECTOR, "queries", 25, (1, 64, 64), 25),
        Point(DETECTOR, "queries", 50, (1, 64, 64), 50),
    ]
    rows = run(1, measured=measured)
    one, two, few, many = rows
    # A block has 12 n d^2 + 2 n^2 d products of n tokens of width d; in the last one the class token alone asks.
    n, d = 1 + 4, 384
    blocks = 11 * (12 * n * d**2 + 2 * n**2 * d) + (10 + 2 * n) * d**2 + 2 * n * d
    ends = 4 * 16 * 16 * 3 * d + d * 1000
    assert round(one.gigaflops * 1e9) == 2 * (blocks + ends) and two.gigaflops == 2 * one.gigaflops
    assert many.gigaflops > few.gigaflops and all(row.seconds > 0 and row.floor > 0 <= row.memory for row in rows)
    text = io.StringIO()
    Console(file=text, width=100).print(table(rows))
    assert f"{one.seconds / one.floor:.2f}x" in text.getvalue()
    draw(rows, tmp_path / "cost.png")
    assert Image.open(tmp_path / "cost.png").size[0] > 1000


def test_every_curve_has_points():
    kinds = {(point.model, point.what) for point in points()}
    assert len(kinds) == 5 and all(sum((p.model, p.what) == kind for p in points()) >= 4 for kind in kinds)
