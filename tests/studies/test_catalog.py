"""All studies: their words are those of `regard train`, and the list has each."""

from pathlib import Path

import pytest

from command_line import run
from regard.studies.catalog import OTHERS, STUDIES
from regard.studies.plan import plan_runs
from regard.studies.study import Scale


@pytest.mark.parametrize("name", STUDIES)
def test_words_are_known_and_rows_are_different_trainings(name):
    study = STUDIES[name]
    for full in (False, True):
        scale = Scale(data=study.data, epochs=4)
        plan = plan_runs(study, scale, 3, str, None, full)
        rows = {row.name: row for row in study.rows if (row.full if full else row.words)}
        assert set(plan.keys) == set(rows)
        if not full:  # rows of one run report different numbers of it
            told = {(plan.keys[row], rows[row].statistic, rows[row].beside) for row in rows}
            assert len(told) == len(rows) > 1 and study.baseline in rows
    assert study.question.endswith("?")
    told = {number for row in study.rows for number in (row.published, row.published_difference)}
    assert told > {None} or study.published.startswith("no numbers")


def test_list(capsys):
    told = run(capsys, "study", "--list").worked()
    assert told == run(capsys, "study").worked()
    for name, study in STUDIES.items():
        assert f"regard study {name}\n" in told and study.question in told and study.source in told
    assert all(f"regard study {name}" in told for name in OTHERS)


def test_the_guide_names_every_study():
    """Beside the table or figure that it covers."""
    text = (Path(__file__).parents[2] / "docs/guide/studies.md").read_text()
    assert not [name for name in (*STUDIES, *OTHERS) if f"`{name}`" not in text]


def test_unknown(capsys):
    run(capsys, "study", "positoins").refused(2, "C01", "'positions'")
