"""Lists in the dialects that people write, and a line number for every row that is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from class_data import write_tree
from refusals import refused
from regard.data.class_images.dataset import open_classification
from regard.data.class_images.listing import class_name
from regard.errors import DataError

ROWS = (("images/a.png", "cat"), ("images/b.png", "dog"), ("c, d.png", "cat"))


def data_set(root: Path, text: str | bytes, val: str = "path,label\nimages/b.png,dog\n") -> Path:
    write_tree(root, {name: number for number, (name, _) in enumerate(ROWS)})
    (root / "train.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    (root / "val.csv").write_text(val)
    return root


@pytest.mark.parametrize(
    "text",
    [
        'path,label\nimages/a.png,cat\nimages/b.png,dog\n"c, d.png",cat\n',
        "path;label\nimages/a.png;cat\nimages/b.png;dog\nc, d.png;cat\n",
        "path\tlabel\r\nimages/a.png\tcat\r\nimages/b.png\tdog\r\nc, d.png\tcat",
        b'\xef\xbb\xbfFilename, Class\nimages/a.png, cat\nimages/b.png, dog\n"c, d.png", cat\n\n',
        'id,category,fold,image\n1,cat,0,./images/a.png\n2,dog,1,images/b.png\n3,cat,1,"c, d.png"\n',
    ],
)
def test_dialects(tmp_path, text):
    data = open_classification(data_set(tmp_path, text))
    assert [(data[i].path, data.categories[data[i].label].name) for i in range(3)] == [
        (str(tmp_path / name), label) for name, label in ROWS
    ]
    val = open_classification(tmp_path, "val")
    assert (val.labels.tolist(), val.categories) == ([1], data.categories)


def test_numbers_are_lines_of_the_labels_file(tmp_path):
    data_set(tmp_path, "path,label\nimages/a.png,2\nimages/b.png,0\n", "path,label\nimages/b.png,zebra\n")
    assert [category.name for category in open_classification(tmp_path).categories] == ["0", "2"]
    (tmp_path / "labels.txt").write_text("zebra\nant\ncat\n")
    train, val = open_classification(tmp_path), open_classification(tmp_path, "val")
    assert [category.name for category in train.categories] == ["zebra", "ant", "cat"]
    assert (train.labels.tolist(), val.labels.tolist()) == ([2, 0], [0])
    (issue,) = train.report.issues
    assert issue.code == "A46" and "1 of 3 classes" in issue.what and "ant" in issue.what


def test_the_same_row_twice_counts_once(tmp_path):
    data_set(tmp_path, "path,label\nimages/a.png,cat\nimages/b.png,dog\n./images/a.png,cat\n")
    assert open_classification(tmp_path).counts() == [1, 1]


@pytest.mark.parametrize(
    ("text", "line", "code", "what"),
    [
        ("images/a.png,cat\nimages/b.png,dog\n", 1, "A49", "path and label"),
        ("path,colour\nimages/a.png,cat\n", 1, "A49", "path and label"),
        ("", 1, "A49", "path and label"),
        ("path,label\nimages/a.png,cat\nimages/b.png\n", 3, "A49", "1 columns"),
        ("path,label\nimages/a.png,cat\nc, d.png,cat\n", 3, "A49", "3 columns"),
        ("path,label\nimages/a.png,\n", 2, "A49", "empty label"),
        ("path,label\n,cat\n", 2, "A49", "empty path"),
        ("path,label\nimages/a.png,cat\nx.png,dog\ny.png,dog\n", 3, "A49", "2 of 3 images are missing: x.png, y.png"),
        ("path,label\nimages/a.png,cat\nimages/b.png,dog\nimages/a.png,dog\n", 4, "A49", "'dog'"),
        ("path,label\n/etc/hostname,cat\n", 2, "A32", "leaves the folder"),
        ("path,label\n../x.png,cat\n", 2, "A32", "leaves the folder"),
        ("path,label\nhttps://example.org/x.png,cat\n", 2, "A32", "leaves the folder"),
        (b"path,label\nimages/a.png,caf\xe9\n", None, "A49", "UTF-8"),
        ('path,label\n"images/a.png,cat\n', None, "A49", "UTF-8"),
        ("path,label\nimages/a.png,cat\n", None, "A45", "'cat'"),
        ("path,label\n", None, "A45", "no classes"),
    ],
)
def test_a_wrong_row_is_one_line(tmp_path, text, line, code, what):
    data_set(tmp_path, text)
    with refused(DataError, what, code=code) as caught:
        open_classification(tmp_path)
    assert caught.value.where == str(tmp_path / "train.csv") + (f":{line}" if line else "")


def test_a_label_that_training_does_not_know(tmp_path):
    text = "path,label\nimages/a.png,cat\nimages/b.png,dog\n"
    data_set(tmp_path, text, "path,label\nimages/b.png,eel\n")
    with refused(DataError, "'eel'", "2 classes", "images/b.png", code="A48"):
        open_classification(tmp_path, "val")
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    with refused(DataError, "'eel'", "0 to 1", "val.csv:2", code="A49"):
        open_classification(tmp_path, "val")


def test_class_names_of_digits_stand_beside_line_numbers():
    names = ("2010", "2011")
    assert [class_name(text, names, "a.csv:2") for text in ("2011", "2010", "0", "1")] == [
        "2011",
        "2010",
        "2010",
        "2011",
    ]
    with refused(DataError, "2", "a.csv:2", code="A49"):
        class_name("2", names, "a.csv:2")
