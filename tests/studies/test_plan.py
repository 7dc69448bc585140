"""Keys of runs, words of rows, and what a budget grants."""

from dataclasses import replace
from pathlib import Path

import pytest

from refusals import refused
from regard.errors import ConfigError
from regard.studies.plan import data_fingerprint, plan_runs, rounded, share_budget
from regard.studies.study import Row, Scale, Study

SCALE = Scale(data="digits", epochs=4)
STUDY = Study(
    question="?",
    source="a table",
    published="top-1",
    baseline="plain",
    rows=(
        Row(name="student", words=("deit_nano_distilled_patch4_32", "teacher=run:teacher")),
        Row(name="plain", words=("resnet20",)),
        Row(name="teacher", words=("resnet20", "lr=1e-3"), seeds=1),
        Row(name="its head", words=("deit_nano_distilled_patch4_32", "teacher=run:teacher"), statistic="x"),
        Row(name="longer", words=("resnet20", "start_from=run:plain"), longer=2.5),
    ),
)


def plan(study=STUDY, scale=SCALE, seeds=2, data=str, minutes=None):
    return plan_runs(study, scale, seeds, data, minutes, full=False)


def test_each_run_once_and_after_those_that_it_names(tmp_path):
    found = plan()
    assert len(found.trainings) == 7 and found.keys["student"] == found.keys["its head"]
    names = [one.name for one in found.trainings]
    for one in found.trainings:
        assert all(names.index(other) < names.index(one.name) for other in one.before)
    assert [one.seed for one in found.trainings] == sorted(one.seed for one in found.trainings)
    words = {one.name: one.arguments(tmp_path) for one in found.trainings}
    student, longer = f"{found.keys['student']}-1", f"{found.keys['longer']}-1"
    assert f"teacher={tmp_path}/{found.keys['teacher']}-0" in words[student]  # it has one seed
    assert f"start_from={tmp_path}/{found.keys['plain']}-1" in words[longer] and "epochs=10" in words[longer]
    assert "evaluate_every=10" in words[longer] and words[longer][-1] == str(tmp_path / longer)
    assert found.folders("teacher", tmp_path) == {0: tmp_path / f"{found.keys['teacher']}-0"}
    assert found.folder("teacher", 1, tmp_path) == tmp_path / f"{found.keys['teacher']}-0"


def test_keys_are_of_settings_and_content():
    first = plan().keys
    assert plan(seeds=5).keys == first
    moved = plan(scale=replace(SCALE, data="./digits"), data=lambda _: "digits")
    assert set(moved.keys.values()).isdisjoint(first.values())  # mirror images: not by the digits' rule
    other = plan(data=lambda _: "other images")
    longer = plan(scale=replace(SCALE, epochs=5))
    fewer = plan(scale=replace(SCALE, train_images=50))
    timed = plan(minutes=1.5)
    for changed in (other, longer, fewer, timed):
        assert set(changed.keys.values()).isdisjoint(first.values())
    # What depends on a teacher changes with it.
    rows = tuple(replace(row, words=(*row.words, "lr=2e-3")) if row.name == "teacher" else row for row in STUDY.rows)
    changed = plan(replace(STUDY, rows=rows)).keys
    assert [name for name in first if first[name] != changed[name]] == ["teacher", "student", "its head"]


def test_the_same_folder_elsewhere_is_the_same_run():
    one, two = (plan(scale=replace(SCALE, data=folder), data=lambda _: "abc") for folder in ("a/cifar", "b/cifar"))
    assert one.keys == two.keys and one.trainings[0].arguments(Path("s")) != two.trainings[0].arguments(Path("s"))


def test_a_wrong_word_is_refused_before_anything():
    rows = (*STUDY.rows, Row(name="typo", words=("resnet20", "lrr=1")))
    refused(ConfigError, lambda: plan(replace(STUDY, rows=rows)), "C01", "lrr")
    with pytest.raises(ValueError):
        replace(STUDY, baseline="nobody")
    with pytest.raises(ValueError):
        replace(STUDY, rows=(*STUDY.rows, Row(name="student")))


def test_minutes_of_rows_that_train_longer():
    words = {one.row: one.words for one in plan(minutes=2.0).trainings}
    assert "minutes=2" in words["plain"] and "minutes=5" in words["longer"] and "epochs=1000" in words["plain"]


def test_a_recipe_of_its_own_sees_the_same_images():
    teacher = Row(name="teacher", words=("resnet20", "--recipe", "small"), own=True)
    study = replace(STUDY, rows=(*STUDY.rows[1:2], teacher))
    words = {one.row: one.words for one in plan(study, replace(SCALE, train_images=70)).trainings}
    assert "train_images=70" in words["plain"] and "train_images=70" in words["teacher"]
    assert not any(word.startswith("train_images") for one in plan(study).trainings for word in one.words)


def test_budget_is_shared_or_seeds_are_given_up():
    shares = {1: 5.0, 2: 10.0, 3: 15.0}
    assert share_budget(30, shares, 1) == (2.0, 3) and share_budget(30, shares, 2) == (4.0, 3)
    assert share_budget(30, shares, 100) == (30.0, 3)  # no more at once than there are
    assert share_budget(6, shares, 1) == (0.6, 2) and share_budget(3, shares, 1) == (0.6, 1)
    assert share_budget(1, shares, 1) == (0.2, 1)
    assert [rounded(value) for value in (1.999, 0.5, 12.7, 123.0, 0.0456)] == [1.9, 0.5, 12.0, 120.0, 0.045]


def test_fingerprint_knows_content():
    first = data_fingerprint("digits", "classification")
    assert first == data_fingerprint("digits", "classification") and len(first) == 32
