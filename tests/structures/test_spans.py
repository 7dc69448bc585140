"""Parts of a step: time inside of a part is not counted twice."""

import time

import pytest
import torch

from regard.structures.spans import Spans, measuring, span


def test_inner_parts_are_not_counted_twice() -> None:
    spans = Spans(torch.device("cpu"))
    with measuring(spans), spans.timed("rest"):
        for _ in range(2):
            with span("loss"), span("matching"):
                time.sleep(0.02)
    assert list(spans.seconds) == ["matching", "loss", "rest"]
    assert spans.seconds["matching"] >= 0.04 and spans.seconds["loss"] < 0.02 and spans.seconds["rest"] < 0.02


def test_nothing_is_measured_outside_and_errors_pass() -> None:
    spans = Spans(torch.device("cpu"))
    with pytest.raises(ZeroDivisionError), measuring(spans), span("part"):
        raise ZeroDivisionError
    with span("other"):
        pass
    assert list(spans.seconds) == ["part"]
