"""What `regard models` says of papers whose weights were not released."""

from __future__ import annotations

from rich.console import Console

from regard.models.catalog import PAPER_RESULTS, WEIGHTS, describe, list_models, table
from regard.models.parameter_counts import PARAMETER_COUNTS


def test_numbers_of_a_paper_stand_beside_ours():
    assert set(PAPER_RESULTS) <= set(list_models("retinanet_*"))
    console = Console(width=200)
    with console.capture() as capture:
        console.print(table("retinanet_*"))
    rows = {line.split()[1]: line for line in capture.get().splitlines() if "retinanet" in line}
    assert set(rows) == set(list_models("retinanet_*"))
    assert "34.3 M" in rows["retinanet_aa_resnet50"] and "33.1 M, box AP 38.2" in rows["retinanet_aa_resnet50"]
    assert "paper" not in rows["retinanet_tiny"]
    assert describe("retinanet_aa_resnet101")[-1] == "published: paper: 51.7 M, box AP 39.2, AP50 57.8, AP75 41.9"
    assert "box AP 36.4; paper: 33.4 M, box AP 36.8" in describe("retinanet_resnet50")[-1]
    assert describe("retinanet_tiny")[-1] == "weights: none released"


def test_counts_differ_from_the_papers_by_a_few_percent():
    """The plain ones: the paper's code has other heads. Attention changes little in both."""
    for name, paper in PAPER_RESULTS.items():
        assert abs(PARAMETER_COUNTS[name] / 1e6 / paper.parameters - 1) < 0.05, name
    assert "retinanet_aa_resnet50" not in WEIGHTS
