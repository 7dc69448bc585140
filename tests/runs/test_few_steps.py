"""Warnings about few steps: the numbers in them are enough, and trainings that are long enough have none."""

import json
import re
from dataclasses import replace

import pytest

from line_task import CONFIG, Line, trainer
from regard.errors import counted
from regard.runs.few_steps import Enough, few_ahead, few_done
from regard.runs.notes import keep_notes

MODEL = Enough("model", 30)


class Flat(Line):
    def evaluate(self, model, step):
        return {"fit": 0.5}


@pytest.mark.parametrize(("epochs", "warns"), [(1, True), (4, True), (5, False), (50, False)])
def test_before_the_first_step(tmp_path, epochs, warns):
    """Epochs of six steps each."""
    job = trainer(tmp_path, config=replace(CONFIG, epochs=epochs))
    told = few_ahead(MODEL, job)
    assert len(told) == warns
    if told:
        assert f"{6 * epochs} steps are few for a model" in told[0]
        enough = int(re.search(r"epochs=(\d+) or more", told[0])[1])
        assert not few_ahead(MODEL, trainer(tmp_path / "more", config=replace(CONFIG, epochs=enough)))
        assert few_ahead(MODEL, trainer(tmp_path / "less", config=replace(CONFIG, epochs=enough - 1)))


def test_what_was_told_before_is_not_told_again(tmp_path):
    job = trainer(tmp_path)
    job.fit()
    assert few_ahead(MODEL, job) and not few_done(MODEL, job)


@pytest.mark.parametrize("step", [1, 12, 29, 30, 31])
def test_the_clock_ended_it(tmp_path, step):
    """The minutes that are named have as many steps as it takes, at the same speed."""
    job = trainer(tmp_path, config=replace(CONFIG, epochs=10**5, minutes=2.0))
    job.progress.step, job.progress.seconds = step, 120.0
    told = few_done(MODEL, job)
    assert len(told) == (step < 30) and not few_ahead(MODEL, job)
    if told:
        minutes = int(re.search(r"minutes=(\d+) or more", told[0])[1])
        assert f"{counted(step, 'step')} in 2 minutes" in told[0]
        assert minutes * step / 2 >= 30 > (minutes - 1) * step / 2


def test_patience_ended_it(tmp_path):
    job = trainer(tmp_path, Flat(), replace(CONFIG, epochs=50, patience=2))
    job.fit()
    (told,) = few_done(MODEL, job)
    assert job.progress.step == 18 and "patience=0" in told and "minutes" not in told
    assert not few_done(Enough("model", 18), job)


def test_notes_of_a_resumed_run(tmp_path):
    """Those of its first start stay, those of its length are written anew."""

    def kept():
        return json.loads((tmp_path / "notes.json").read_text())

    keep_notes(tmp_path, ["the data chose lr"], ["8 steps are few"], resumed=False)
    assert kept() == {"start": ["the data chose lr"], "length": ["8 steps are few"]}
    keep_notes(tmp_path, [], [], resumed=True)
    assert kept() == {"start": ["the data chose lr"], "length": []}
    keep_notes(tmp_path, ["another start"], [], resumed=False)
    assert kept() == {"start": ["another start"], "length": []}
    (tmp_path / "notes.json").unlink()
    keep_notes(tmp_path, ["as of now"], [], resumed=True)  # a run of an earlier version
    assert kept()["start"] == ["as of now"]
