"""The threshold of segments: searched in training, kept by the run."""

import json
from dataclasses import replace

import pytest
import torch

from regard.data.coco.panoptic import open_panoptic
from regard.data.generated.shapes import ShapesConfig, write_shapes
from regard.evaluation.detection import evaluate_detector
from regard.evaluation.segments import THRESHOLDS
from regard.losses import SetCriterion
from regard.training.distributed import Processes
from segment_finder import Finder

pytestmark = pytest.mark.usefixtures("blank_charts")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "shapes"
    write_shapes(ShapesConfig(train=1, val=4, size=32), folder)
    return open_panoptic(folder, "val")


def evaluated(dataset, *thresholds, known=None):
    net = Finder(list(dataset), dataset.categories)
    net.card = replace(net.card, threshold=known)
    criterion, group = (
        SetCriterion(net.config.num_classes, classification="focal"),
        Processes(0, 1, torch.device("cpu")),
    )
    return evaluate_detector(
        net, dataset, criterion, batch_size=3, workers=0, processes=group, segment_thresholds=thresholds
    )


def test_the_best_threshold_is_between_right_and_wrong(dataset, tmp_path):
    found = evaluated(dataset, *THRESHOLDS)
    assert found.segments.threshold == 0.2 and found.scores.stats["PQ"] == 1  # the higher one of 0.15 and 0.2
    alone = {one: evaluated(dataset, one).scores.stats["PQ"] for one in THRESHOLDS}
    assert alone[0.1] < 1 == alone[0.15] == alone[0.2] and alone[0.25] == 0
    found.write(tmp_path, "shapes")
    assert json.loads((tmp_path / "metrics.json").read_text())["best_threshold"] == 0.2


def test_no_threshold_is_best_if_nothing_is_right(dataset, tmp_path):
    """Neither 0.5 nor 0.25, the higher ones of equals: `predict` would find nothing."""
    found = evaluated(dataset, 0.25, 0.3, 0.5)
    assert found.scores.stats["PQ"] == 0 and found.segments.threshold == 0.3  # as of a model without a run
    found.write(tmp_path, "shapes")
    assert "best_threshold" not in json.loads((tmp_path / "metrics.json").read_text())
    assert evaluated(dataset, 0.4, 0.5).segments.threshold == 0.4  # the nearest that was tried


def test_the_only_threshold_is_not_the_best(dataset, tmp_path):
    """Unless the training of the model found it: an evaluation keeps what the run knows."""
    for known, kept in ((None, False), (0.15, False), (0.2, True)):
        evaluated(dataset, 0.2, known=known).write(tmp_path, "shapes")
        assert ("best_threshold" in json.loads((tmp_path / "metrics.json").read_text())) == kept
