"""Pascal VOC: pixels from 1, difficult objects, lists of splits, XML that is wrong or hostile."""

from __future__ import annotations

from pathlib import Path

import pytest

from detection_files import draw_pictures, write_voc
from refusals import refused
from regard.data.coco.dataset import open_detection
from regard.data.formats.voc_xml import parse_xml, read_voc
from regard.errors import DataError, ImageError

OBJECT = "<object><name>cat</name>{}<bndbox><xmin>{}</xmin><ymin>2</ymin><xmax>8</xmax><ymax>6</ymax></bndbox></object>"


def xml(path: Path, *objects: str, head: str = "") -> Path:
    path.write_text("\n".join([f"{head}<annotation>", "<filename>a.png</filename>", *objects, "</annotation>"]))
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for split, seed in (("train", 0), ("val", 1)):
        write_voc(draw_pictures(tmp_path / "a", 3, seed=seed), tmp_path / "d/JPEGImages", tmp_path / "d/Annotations")
        lists = tmp_path / "d/ImageSets/Main"
        lists.mkdir(parents=True, exist_ok=True)
        (lists / f"{split}.txt").write_text("".join(f"photo.{seed}-{k}\n" for k in range(3)))
        (lists / f"cat_{split}.txt").write_text("".join(f"photo.{seed}-{k} -1\n" for k in range(3)))
    return tmp_path / "d"


def test_pixels_are_counted_from_one(tmp_path: Path) -> None:
    """The whole of a 10x8 image is 1, 1, 10, 8 (development kit of VOC)."""
    text = "<object><name>x</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>10</xmax><ymax>8</ymax></bndbox></object>"
    (found,) = read_voc(xml(tmp_path / "a.xml", text)).objects
    assert found.box_xywh == (0, 0, 10, 8) and found.line == 3 and not found.is_difficult


def test_parts_are_no_objects(tmp_path: Path) -> None:
    part = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>"
    file = xml(tmp_path / "a.xml", OBJECT.format("", 3).replace("</object>", f"{part}</object>"))
    assert [found.name for found in read_voc(file).objects] == ["cat"]


def test_difficult_objects_are_ignored(root: Path) -> None:
    file = root / "Annotations/photo.0-0.xml"
    file.write_text(file.read_text().replace("<name>dog</name>", "<name>dog</name><difficult>1</difficult>"))
    data = open_detection(root, "train")
    assert [data.categories[label].name for label in data[0].labels.tolist()] == ["cat"]
    rows = [row for row in data.to_coco()["annotations"] if row["image_id"] == 1]
    assert [row["iscrowd"] for row in rows] == [0, 1]
    (issue,) = [issue for issue in data.annotations.report.issues if issue.code == "A34"]
    assert issue.where.startswith(f"{file}:")


def test_trainval_alone_is_split(root: Path) -> None:
    lists = root / "ImageSets/Main"
    (lists / "trainval.txt").write_text((lists / "train.txt").read_text() + (lists / "val.txt").read_text())
    for name in ("train", "val"):
        (lists / f"{name}.txt").unlink()
    parts = [open_detection(root, split) for split in ("train", "val")]
    assert sum(map(len, parts)) == 6 and len(parts[1]) < 4


def test_lists_name_what_is_missing(root: Path) -> None:
    (root / "ImageSets/Main/train.txt").write_text("photo.0-0\ngone\n")
    with refused(DataError, "gone", f"{root}/ImageSets/Main/train.txt:2", code="A31"):
        open_detection(root, "train")
    (root / "ImageSets/Main/train.txt").write_text("photo.0-0.png\n")
    (root / "JPEGImages/photo.1-1.png").unlink()
    with refused(DataError, "photo.1-1", root / "JPEGImages", code="A31"):
        open_detection(root, "val")


def test_years_are_to_be_named(tmp_path: Path) -> None:
    for year in ("VOC2007", "VOC2012"):
        write_voc(draw_pictures(tmp_path / "a", 3), tmp_path / year / "JPEGImages", tmp_path / year / "Annotations")
    with refused(DataError, f"--data {tmp_path}/VOC2012", code="A64"):
        open_detection(tmp_path, "train")
    assert len(open_detection(tmp_path / "VOC2012", "train")) == 2


def test_names_of_files_in_the_xml(tmp_path: Path) -> None:
    """XML files numbered by a tool; the image is found by `filename`. Images without XML are left out."""
    pictures = draw_pictures(tmp_path / "a", 4)
    write_voc(pictures, tmp_path / "d/images", tmp_path / "d/annotations", sizes=False)
    for number, file in enumerate(sorted((tmp_path / "d/annotations").iterdir())):
        file.rename(file.with_name(f"annotation {number}.xml"))
    (tmp_path / "d/annotations/annotation 3.xml").unlink()
    parts = [open_detection(tmp_path / "d", split) for split in ("train", "val")]
    assert sum(map(len, parts)) == 3
    (issue,) = [issue for issue in parts[0].annotations.report.issues if issue.code == "A63"]
    assert issue.where.endswith("photo.0-3.png")


BAD = {
    "cut": ("<annotation>\n<object>", "A63", 2),
    "no XML": ("cat 1 2 3 4", "A63", 1),
    "empty": ("", "A63", 1),
    "another kind": ("<svg></svg>", "A63", 1),
    "no box": ("<annotation>\n<object><name>cat</name></object></annotation>", "A17", 2),
    "no name": ("<annotation>\n<object></object></annotation>", "A63", 2),
    "text": (f"<annotation>\n{OBJECT.format('', 'one')}</annotation>", "A17", 2),
    "NaN": (f"<annotation>\n{OBJECT.format('', 'nan')}</annotation>", "A16", 2),
    "corners swapped": (f"<annotation>\n{OBJECT.format('', 12)}</annotation>", "A14", 2),
    "encoding": ("<?xml version='1.0' encoding='martian'?><annotation></annotation>", "A63", None),
    "deep": ("<annotation>" + "<a>" * 100_000, "A63", 1),
    "entities": ('<!DOCTYPE a [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]>\n<annotation>&b;</annotation>', "A63", 1),
    "outside": ('<!DOCTYPE a SYSTEM "file:///etc/passwd">\n<annotation/>', "A63", 1),
}


@pytest.mark.parametrize("name", BAD)
def test_wrong_files(root: Path, name: str) -> None:
    text, code, line = BAD[name]
    file = root / "Annotations/photo.0-1.xml"
    file.write_text(text)
    with refused(DataError, code, file if line is None else f"{file}:{line}"):
        open_detection(root, "train")


def test_entities_in_another_encoding(tmp_path: Path) -> None:
    text = '<?xml version="1.0" encoding="UTF-16"?><!DOCTYPE a [<!ENTITY a "x">]><annotation>&a;</annotation>'
    (tmp_path / "a.xml").write_bytes(text.encode("utf-16"))
    with refused(DataError, "document type", code="A63"):
        parse_xml(tmp_path / "a.xml")


def test_another_size_than_stated_names_the_file(root: Path) -> None:
    file = root / "Annotations/photo.0-1.xml"
    file.write_text(file.read_text().replace("<width>", "<width>1"))
    with refused(ImageError, file, root / "JPEGImages/photo.0-1.png", code="A33"):
        open_detection(root, "train")[1]


def test_issues_of_the_checks_name_the_file(root: Path) -> None:
    file = root / "Annotations/photo.0-1.xml"
    box = "<bndbox><xmin>5</xmin><ymin>5</ymin><xmax>400</xmax><ymax>9</ymax></bndbox>"
    file.write_text(f"<annotation>\n\n<object>\n<name>cat</name>{box}</object></annotation>")
    (issue,) = [issue for issue in open_detection(root, "train").annotations.report.issues if issue.code == "A11"]
    assert issue.where == f"{file}:4"
