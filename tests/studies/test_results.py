"""Tables: what is compared, what is said of the paper's order, and files that other programs read."""

import csv
import json
from dataclasses import replace

import pytest
from PIL import Image

from regard.studies.result_files import latex, markdown, write_results
from regard.studies.results import make_result, order_of
from regard.studies.study import Row, Study

STUDY = Study(
    question="Which?",
    source="Someone 2020, table 1",
    published="AP",
    baseline="plain",
    rows=(
        Row(name="plain", words=("resnet20",), published=70.0),
        Row(name="more & better_", words=("resnet20", "lr=1"), published=75.0),
        Row(name="worse", words=("resnet20", "lr=2"), published=60.0),
        Row(name="unsure | open", words=("resnet20", "lr=3"), published=71.0),
        Row(name="never published", words=("resnet20", "lr=4")),
        Row(name="only published", published=77.0),
    ),
)
BASE = {0: 50.0, 1: 51.0, 2: 52.0}
SCORES = {
    "plain": BASE,
    "more & better_": {seed: value + 5 + 0.1 * seed for seed, value in BASE.items()},
    "worse": {seed: value + 5 - 0.1 * seed for seed, value in BASE.items()},
    "unsure | open": {0: 52.0, 1: 50.0, 2: 52.5},
    "never published": {0: 40.0},
}


def result():
    return make_result("which", STUDY, SCORES, {}, "3 epochs")


def test_verdict_counts_what_is_beyond_noise():
    said = result().verdict
    assert "3 differences" in said and "1 is seen here (more & better_)" in said
    assert "1 is the other way round here (worse)" in said and "1 cannot be told from chance with 3 seeds" in said


def test_one_seed_shows_nothing():
    scores = {name: {0: values[0]} for name, values in SCORES.items()}
    said = make_result("which", STUDY, scores, {}, "").verdict
    assert "2 have the same sign here (more & better_, unsure | open), 1 does not (worse)" in said
    assert "--seeds" in said and "seen" not in said


def test_the_order_of_one_seed_is_told_without_a_claim():
    scores = {name: {0: values[0]} for name, values in SCORES.items()}
    order = order_of("plain", make_result("which", STUDY, scores, {}, "").rows)
    assert order.alike == ("more & better_", "unsure | open") and not order.seen and not order.turned
    assert order.noise == ("more & better_", "worse", "unsure | open") and order.count == 3
    order = order_of("plain", result().rows)
    assert (order.seen, order.turned, order.noise) == (("more & better_",), ("worse",), ("unsure | open",))


def test_a_published_difference_counts_as_its_numbers_do():
    """The paper says by how much a row is better, and prints no number for it, or for none."""
    rows = {row.name: row for row in STUDY.rows}
    rows["more & better_"] = replace(rows["more & better_"], published=None, published_difference=5.0)
    rows["worse"] = replace(rows["worse"], published=None, published_difference=-10.0)
    found = make_result("which", replace(STUDY, rows=tuple(rows.values())), SCORES, {}, "3 epochs")
    assert found.verdict == result().verdict
    line = next(line for line in markdown(found).splitlines() if line.startswith("| worse"))
    assert "| -10.0 |" in line and "with a sign" in markdown(found) and "with a sign" not in markdown(result())
    rows["plain"] = replace(rows["plain"], published=None)
    alone = make_result("which", replace(STUDY, rows=tuple(rows.values())), SCORES, {}, "").verdict
    assert alone.startswith("Of the paper's 2 differences") and "1 is seen here (more & better_)" in alone
    with pytest.raises(ValueError, match="worse"):
        replace(STUDY, rows=(*STUDY.rows[:2], replace(rows["worse"], published=60.0)))


def test_rows_are_compared_over_common_seeds():
    scores = {"plain": BASE, "worse": {0: 49.0, 2: 49.0, 3: 10.0}}
    row = make_result("which", STUDY, scores, {}, "").rows[2]
    assert row.against.pairs == 2 and row.against.difference == -2.0
    empty = make_result("which", STUDY, {}, {}, "")
    assert all(row.against is None and row.mean is None for row in empty.rows)


def test_a_teacher_is_not_compared():
    rows = tuple(replace(row, seeds=1) if row.name == "worse" else row for row in STUDY.rows)
    found = make_result("which", replace(STUDY, rows=rows), SCORES, {}, "")
    assert found.rows[2].against is None and "worse" not in found.verdict


def test_a_step_is_not_compared_but_has_all_seeds():
    rows = tuple(replace(row, step=row.name == "worse", statistic="other") for row in STUDY.rows)
    found = make_result("which", replace(STUDY, rows=rows), SCORES, {}, "")
    assert found.rows[2].against is None and len(found.rows[2].scores) == 3 and "worse" not in found.verdict


def test_numbers_have_a_name_if_there_is_one():
    assert "Our numbers: top1, in %;" in markdown(result())
    rows = (replace(STUDY.rows[0], statistic="top5"), *STUDY.rows[1:])
    assert "top1" not in markdown(make_result("which", replace(STUDY, rows=rows), SCORES, {}, ""))


def test_files(tmp_path):
    write_results(result(), tmp_path)
    told = json.loads((tmp_path / "results.json").read_text())
    assert told["rows"][1]["against_baseline"]["pairs"] == 3 and told["rows"][5]["mean"] is None
    assert told["rows"][5]["published"] == 77.0 and told["rows"][5]["published_difference"] is None
    assert told["verdict"] == result().verdict
    with (tmp_path / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["row"] for row in rows] == [row.name for row in STUDY.rows]
    assert float(rows[1]["difference"]) == told["rows"][1]["against_baseline"]["difference"]
    assert rows[0]["scores"].split(";") == ["50.0", "51.0", "52.0"] and rows[5]["mean"] == ""
    assert Image.open(tmp_path / "results.png").size[0] > 500
    table = [line for line in markdown(result()).splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in table} == {9} and len(table) == 2 + len(STUDY.rows)
    lines = latex(result()).splitlines()
    assert r"more \& better\_" in latex(result())
    assert {line.replace(r"\&", "").count("&") for line in lines if line.endswith(r"\\")} == {7}
