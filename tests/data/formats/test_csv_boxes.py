"""CSV files of boxes: columns by their names, wrong rows with their lines."""

from __future__ import annotations

from pathlib import Path

import pytest

from detection_files import copy_images, draw_pictures
from refusals import refused
from regard.data.coco.dataset import open_detection
from regard.data.formats.find import detection_format
from regard.errors import DataError

NAME = "photo.0-0.png"


def write(root: Path, *rows: str, file: str = "train.csv") -> Path:
    copy_images(draw_pictures(root.parent / "a", 3), root / "images")
    (root / file).write_text("\n".join(rows))
    return root


@pytest.mark.parametrize(
    ("header", "row"),
    [
        ("filename,width,height,class,xmin,ymin,xmax,ymax", f"{NAME},WIDE,HIGH,cat,2,3,12,9"),
        ("image,xmin,xmax,ymin,ymax,label", f"images/{NAME},2,12,3,9,cat"),
        ("image_path;x1;y1;x2;y2;class_name", f"{NAME};2;3;12;9;cat"),
        ("path\tx\ty\tw\th\tlabel", f"{NAME}\t2\t3\t10\t6\tcat"),
        ("label_name,bbox_x,bbox_y,bbox_width,bbox_height,image_name,image_width,image_height",
         f"cat,2,3,10,6,{NAME},WIDE,HIGH"),
        ("Image,X Min,Y Min,X Max,Y Max,Class", f"{NAME},2.0,3.0,12.0,9.0,cat"),
        ("name,x,y,width,height,class", f"{NAME},2,3,10,6,cat"),
    ],
)  # fmt: skip
def test_columns(tmp_path: Path, header: str, row: str) -> None:
    (first, *_) = draw_pictures(tmp_path / "a", 1)
    row = row.replace("WIDE", str(first.size[0])).replace("HIGH", str(first.size[1]))
    root = write(tmp_path / "d", header, row)
    write(root, header, row, file="val.csv")
    assert detection_format(root) == "CSV"
    sample = open_detection(root, "train")[0]
    assert sample.boxes.tolist() == [[2, 3, 12, 9]] and sample.original_size == first.size[::-1]


HEADER = "filename,class,xmin,ymin,xmax,ymax"
ROWS = {
    "columns": (f"{NAME},cat,1,2,3", "A49", "5 columns"),
    "text": (f"{NAME},cat,1,2,x,4", "A17", "'x'"),
    "empty value": (f"{NAME},cat,1,2,,4", "A17", "''"),
    "NaN": (f"{NAME},cat,1,2,nan,4", "A16", "finite"),
    "swapped": (f"{NAME},cat,5,2,3,4", "A14", "-2 x 2"),
    "no class": (f"{NAME},,1,2,3,4", "A49", "class"),
    "no image": (",cat,1,2,3,4", "A49", "image"),
    "outside": ("../secret.png,cat,1,2,3,4", "A32", "../secret.png"),
    "missing": ("gone.png,cat,1,2,3,4", "A31", "gone.png"),
}


@pytest.mark.parametrize("name", ROWS)
def test_wrong_rows(tmp_path: Path, name: str) -> None:
    row, code, says = ROWS[name]
    root = write(tmp_path / "d", HEADER, f"{NAME},cat,1,2,9,9", row)
    with refused(DataError, code, says, f"{root}/train.csv:3"):
        open_detection(root, "train")


def test_fractions_are_refused(tmp_path: Path) -> None:
    """Open Images."""
    root = write(tmp_path / "d", "ImageID,LabelName,XMin,XMax,YMin,YMax", f"{NAME},/m/01,0.1,0.5,0.2,1")
    with refused(DataError, f"{root}/train.csv:2", code="A19"):
        open_detection(root, "train")


def test_several_files(tmp_path: Path) -> None:
    row = f"{NAME},cat,1,2,9,9"
    root = write(tmp_path / "d", HEADER, row, file="cats.csv")
    write(root, HEADER, row, file="dogs.csv")
    with refused(DataError, "cats.csv", "dogs.csv", f"--data {root}/cats.csv", code="A64"):
        open_detection(root, "train")


def test_issues_of_the_checks_name_rows(tmp_path: Path) -> None:
    root = write(tmp_path / "d", HEADER, f"{NAME},cat,1,2,9,9", f"{NAME},cat,1,2,900,9")
    write(root, HEADER, f"{NAME},cat,1,2,9,9", file="val.csv")
    (issue,) = open_detection(root, "train").annotations.report.issues
    assert issue.code == "A11" and issue.where == f"{root}/train.csv:3"


def test_columns_of_width_and_height_may_be_those_of_the_box(tmp_path: Path) -> None:
    rows = [f"{NAME},cat,2,3,12,9,10,6", f"{NAME},dog,1,1,6,8,5,7"]
    root = write(tmp_path / "d", "filename,class,xmin,ymin,xmax,ymax,width,height", *rows)
    write(root, *(root / "train.csv").read_text().splitlines(), file="val.csv")
    (first, *_) = draw_pictures(tmp_path / "a", 1)
    sample = open_detection(root, "train")[0]
    assert sample.original_size == first.size[::-1] and sample.boxes.tolist() == [[2, 3, 12, 9], [1, 1, 6, 8]]


def test_two_spellings_of_a_file_are_one_image(tmp_path: Path) -> None:
    root = write(tmp_path / "d", HEADER, f"{NAME},cat,2,3,12,9", f"./{NAME},dog,1,1,6,8")
    write(root, HEADER, f"{NAME},cat,2,3,12,9", file="val.csv")
    data = open_detection(root, "train")
    assert len(data) == 1 and len(data[0].labels) == 2
