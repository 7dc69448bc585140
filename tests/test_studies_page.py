"""The page of all studies: its numbers are those of the folders, its published numbers those of the source."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

import studies_page
from documents import regard_commands
from regard.studies.catalog import STUDIES
from regard.studies.results import make_result
from studies_page import INTRODUCTION, PAGE, page, read_scores, read_study, write_scores


def write(folder, name, seeds=3, data="digits", **plan):
    """A folder as a study leaves it, of runs as a training leaves them."""
    study = STUDIES[name]
    run = folder / "trained" / name
    run.mkdir(parents=True)
    (run / "metrics.json").write_text("{}")
    (run / "environment.json").write_text(json.dumps({"torch": "2.9.1+cu130", "device": "cpu"}))
    rows = [row.name for row in study.rows if row.words]
    scores = {
        row: {seed: 50.0 + 3 * place + 0.1 * seed * (place + 1) for seed in range(seeds)}
        for place, row in enumerate(rows)
    }
    result = make_result(name, study, scores, dict.fromkeys(rows, (str(run),)), f"data {data}, 7 epochs")
    output = folder / name
    output.mkdir()
    (output / "results.json").write_text(json.dumps(result.as_json()))
    about = {"study": name, "data": data, "epochs": 7, "train_images": None, "full": False, "budget": None, **plan}
    (output / "study.json").write_text(json.dumps(about))
    return output


def tables(text):
    """Section -> row -> cells of its table."""
    found = {}
    for part in re.split(r"^### ", text, flags=re.M)[1:]:
        rows = [
            [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            for line in part.splitlines()
            if line[:1] == "|"
        ]
        found[part.splitlines()[0]] = {row[0].replace("\\|", "|"): row for row in rows[2:]}
    return found


def test_a_page_of_two_studies(tmp_path):
    folders = (
        write(tmp_path, "positions", data="/somewhere/cifar10", train_images=5000),
        write(tmp_path, "tokens", seeds=1),
    )
    text = page([read_study(folder, "one core") for folder in folders])
    assert "/somewhere" not in text and "data cifar10/, 7 epochs" in text and ", one core, torch 2.9.1 on cpu." in text
    assert regard_commands(text)[:2] == [
        ["study", "positions", "--data", "cifar10/", "--epochs", "7", "--train-images", "5000"],
        ["study", "tokens", "--epochs", "7", "--seeds", "1"],
    ]
    cells = tables(text)["positions"]["augmented, sine"]
    assert cells[1:6] == ["56.30", "0.30", "3", "77.5", "+3.10"]
    # Each row is better than the one before it by about 3; for the paper the second to the fourth are equal.
    assert "| [positions](#positions) | 3 | 2 of 2 | ResNet, augmented, relative |  |" in text
    assert "| [tokens](#tokens) | 1 |" in text and text.index("### positions") < text.index("### tokens")
    assert "`retinanet`" in text and "`tokens`, " not in text


def test_published_numbers_are_those_of_today(tmp_path):
    folder = write(tmp_path, "attention_ratios")
    found = json.loads((folder / "results.json").read_text())
    for row in found["rows"]:
        row["published"] = 99.9
    (folder / "results.json").write_text(json.dumps(found))
    text = page([read_study(folder, "one core")])
    assert "99.9" not in text and tables(text)["attention_ratios"]["ResNet"][4] == "76.4"


def test_renamed_rows_keep_their_place(tmp_path, capsys):
    folder = write(tmp_path, "positions")
    found = json.loads((folder / "results.json").read_text())
    found["rows"][0]["row"], found["rows"][3]["row"] = "plain", "coordinates"
    (folder / "results.json").write_text(json.dumps(found))
    rows = tables(page([read_study(folder, "one core")]))["positions"]
    assert rows["ResNet"][1] == "50.10" and rows["augmented, coordinates"][1] == "59.40"
    assert "'coordinates' is now 'augmented, coordinates'" in capsys.readouterr().err


def test_folders_that_are_no_part_of_the_page(tmp_path):
    folder = write(tmp_path / "a", "positions", full=True)
    with pytest.raises(ValueError, match="small scale"):
        read_study(folder, "one core")
    folder = write(tmp_path / "b", "positions")
    found = json.loads((folder / "results.json").read_text())
    del found["rows"][2]
    (folder / "results.json").write_text(json.dumps(found))
    with pytest.raises(ValueError, match="'augmented, coordinates'"):
        page([read_study(folder, "one core")])
    (folder / "results.json").unlink()
    with pytest.raises(ValueError, match=r"results\.json"):
        read_study(folder, "one core")


def test_scores_are_kept(tmp_path, monkeypatch):
    """A study that ran before stays, one that ran again is replaced, and the page comes from what is kept."""
    monkeypatch.setattr(studies_page, "SCORES", tmp_path / "studies.json")
    monkeypatch.setattr(studies_page, "PAGE", tmp_path / "studies.md")
    first = [read_study(write(tmp_path / "a", name), "one core") for name in ("tokens", "positions")]
    write_scores(first)
    assert read_scores() == {"positions": first[1], "tokens": first[0]}
    again = write(tmp_path / "b", "tokens", seeds=1)
    monkeypatch.setattr("sys.argv", ["studies_page.py", str(again), "--machine", "two cores"])
    studies_page.main()
    assert read_scores() == {"positions": first[1], "tokens": read_study(again, "two cores")}
    assert studies_page.PAGE.read_text() == page(list(read_scores().values()))


def test_a_remark_goes_with_its_scores(tmp_path, monkeypatch):
    monkeypatch.setattr(studies_page, "SCORES", tmp_path / "studies.json")
    monkeypatch.setattr(studies_page, "PAGE", tmp_path / "studies.md")
    folder = write(tmp_path / "a", "tokens")
    write_scores([dataclasses.replace(read_study(folder, "one core"), remark="Too short a training.")])
    for given, remarks in ((folder, 1), (write(tmp_path / "b", "tokens", seeds=1), 0)):
        monkeypatch.setattr("sys.argv", ["studies_page.py", str(given)])
        studies_page.main()
        assert studies_page.PAGE.read_text().count("\n\nToo short a training.\n\n") == remarks


def test_the_page_agrees_with_the_source():
    """Published numbers that have changed since it was made, and studies that are no more."""
    text = PAGE.read_text()
    assert text.startswith(INTRODUCTION) and text == page(list(read_scores().values()))
    for name, rows in tables(text).items():
        published = {row.name: (row.published, row.published_difference) for row in STUDIES[name].rows}
        told = {}
        for row, cells in rows.items():
            number = float(cells[4]) if cells[4] else None
            told[row] = (None, number) if cells[4].startswith(("+", "-")) else (number, None)
        assert told == published, f"{name}: {studies_page.__doc__}"
        assert STUDIES[name].question in text and STUDIES[name].source in text


def test_every_study_is_of_a_paper():
    assert [name for names in studies_page.PAPERS.values() for name in names] == list(STUDIES)
    assert Path(studies_page.__file__).parent == PAGE.parents[1]
